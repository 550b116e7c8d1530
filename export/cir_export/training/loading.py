"""A data set made ready: preprocessing and tokens of the model, pictures, splits to measure on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from cir_eval.pictures import Contents
from cir_eval.protocols.contract import Part, Protocol
from cir_export.preprocessing import check_inputs, feature_input, padded_crop, plain_resize, word_text
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts
from cir_export.training.configuration import TrainingConfig
from cir_export.training.data import TextTokens, TrainingQueries
from cir_export.training.images import Images
from cir_export.training.reading import Reading
from cir_export.training.sources import open_source
from cir_export.training.sources.contract import Measured
from cir_export.training.systems import image_size, max_tokens
from cir_infer.bundle.manifest import FeatureInput, PixelInput
from cir_infer.errors import TrainingError, UsageError, shown
from cir_infer.inputs.images import ImageLike

__all__ = ["Loaded", "MeasuredPart", "MeasuredSplit", "image_inputs", "load_data"]

_DRAWN = ("scenes", "css", "emoji")
"""Drawn data sets, square already: nothing is cut off their pictures."""


@dataclass(frozen=True)
class MeasuredPart:
    """A gallery with its queries, and its pictures as the model's input.

    Attributes:
        part: the gallery and its queries.
        images: the gallery's pictures.
        references: the references' pictures, by the same rows.
    """

    part: Part
    images: Images
    references: Images


@dataclass(frozen=True)
class MeasuredSplit:
    """A split that recall is measured on.

    Attributes:
        name: in the data set.
        protocol: what counts as correct.
        parts: its galleries.
    """

    name: str
    protocol: Protocol
    parts: tuple[MeasuredPart, ...]


@dataclass(frozen=True)
class Loaded:
    """All that a training reads.

    Attributes:
        name: of the data set.
        train: the queries to learn from.
        validation: chooses the best epoch; None keeps the last.
        test: measures the stored model; None measures nothing. May be the same split as `validation`, as
            where the authors report on the split that they select on.
        tokenizer: of the model.
        image: preprocessing, as in a bundle's manifest.
        text: likewise.
        digest: see `Source`.
        contents: which pictures they are, see `Source`.
        view: see `Source`.
        licence: see `Source`.
    """

    name: str
    train: TrainingQueries
    validation: MeasuredSplit | None
    test: MeasuredSplit | None
    tokenizer: Tokenizer
    image: dict[str, Any]
    text: dict[str, Any]
    digest: str
    contents: Contents
    view: str
    licence: str


def load_data(config: TrainingConfig, reading: Reading | None = None) -> Loaded:
    """Open the data set of a configuration.

    Args:
        config: what to open, for which model.
        reading: how texts are read; None builds a vocabulary of words from the training texts.

    Raises:
        TrainingError: the configuration does not fit the data set.
        DatasetError: the data set is missing or damaged.
        ImageError: a picture is missing or damaged.
    """
    data, training = config.data, config.training
    image = image_inputs(config)
    source = open_source(data)
    if reading is not None:
        tokenizer, text = reading.tokenizer, reading.text
        image = image if data.preparation else reading.image
    else:
        try:
            tokenizer = build_tokenizer(vocabulary_from_texts(source.train.texts()))
        except UsageError as error:
            raise TrainingError(f"the training split of {source.name}: {error}") from error
        try:
            text = word_text(max_tokens(config.model))
        except UsageError as error:
            raise TrainingError(f"model: {error}") from error
    spec = check_inputs(image, text)
    memory, threads = data.memory_mb << 20, max(1, torch.get_num_threads())
    _check_features(spec, source.train.images[0])
    pictures = Images(
        source.train.images, spec, memory, data.workers, threads, "train", training.augmentation
    )

    def measured(found: Measured | None) -> MeasuredSplit | None:
        if found is None:
            return None
        # Pictures that several parts share are decoded once, and encoded once.
        made: dict[int, Images] = {}

        def pictures_of(images: Sequence[ImageLike]) -> Images:
            if id(images) not in made:
                made[id(images)] = Images(images, spec, memory, data.workers, threads, found.split)
            return made[id(images)]

        parts = []
        for part in found.parts:
            images = pictures_of(part.images)
            seen = part.reference_images
            parts.append(MeasuredPart(part, images, images if seen is None else pictures_of(seen)))
        return MeasuredSplit(found.split, source.protocol, tuple(parts))

    validation = measured(source.validation)
    same = source.test is source.validation
    return Loaded(
        name=source.name,
        train=TrainingQueries(
            source.train, pictures, TextTokens(tokenizer, text), training.seed, training.families_per_batch
        ),
        validation=validation,
        test=validation if same else measured(source.test),
        tokenizer=tokenizer,
        image=image,
        text=text,
        digest=source.digest,
        contents=source.contents(),
        view=source.view,
        licence=source.licence,
    )


def image_inputs(config: TrainingConfig) -> dict[str, Any]:
    """The preprocessing of a configuration, as in a bundle's manifest.

    Raises:
        TrainingError: the size or `data.preparation` does not fit.
    """
    table = config.model.get("image", {})
    if isinstance(table, Mapping) and "features" in table:
        size = table["features"]
        if not isinstance(size, int) or not 1 <= size <= 1 << 16:
            raise TrainingError(f"model.image.features: {shown(size)}; expected the length of a feature")
        return feature_input(size)
    side = image_size(config.model)
    if not isinstance(side, int) or not 8 <= side <= 1024:
        raise TrainingError(f"model.image.size: {shown(side)}; expected pixels a side, from 8 to 1024")
    chosen = config.data.preparation or ("plain" if config.data.dataset in _DRAWN else "padded-crop")
    if chosen == "plain":
        return plain_resize(side)
    # 256 for 224 pixels, and in this proportion for others.
    return padded_crop(side, round(side * 256 / 224))


def _check_features(spec: PixelInput | FeatureInput, image: Any) -> None:
    given = getattr(image, "ndim", None) == 1
    if given and isinstance(spec, PixelInput):
        raise TrainingError(
            f"the data set holds features of {len(image)} values; expected model.image.features = "
            f"{len(image)}, or another data.protocol to read its pictures"
        )
    if isinstance(spec, FeatureInput) and given and len(image) != spec.size:
        raise TrainingError(f"model.image.features: {spec.size}; the data set's have {len(image)} values")
