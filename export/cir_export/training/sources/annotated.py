"""Data sets whose training triplets are annotated: FashionIQ, CIRR, Shoes, CSS, Birds-to-Words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cir_eval.datasets import birds, cirr, css, fashioniq, shoes
from cir_export.training.configuration import DataSettings
from cir_export.training.sources.contract import (
    FixedTriplets,
    Indexed,
    Joined,
    Measured,
    Source,
    Triplet,
    checked_rows,
    chosen_protocol,
)
from cir_infer.errors import DatasetError
from cir_infer.inputs.images import ImageLike

__all__ = ["open_birds", "open_cirr", "open_css", "open_fashioniq", "open_shoes"]


def open_fashioniq(root: Path, settings: DataSettings) -> Source:
    """All three categories together, as every repository but CoSMo's trains.

    A pair has two captions: `data.captions` "both" makes two queries of it, one an order (ARTEMIS);
    "random" one whose order each epoch draws; "first" one in the file's order (CLIP4Cir).
    """
    row, triplets = Indexed(), []
    for category in fashioniq.CATEGORIES:
        for pair in fashioniq.read_pairs(root, category, "train"):
            assert pair.target is not None  # only the test split hides it
            orders = [pair.captions, pair.captions[::-1]] if settings.captions == "both" else [pair.captions]
            triplets += [Triplet(row(pair.reference), order, row(pair.target)) for order in orders]
    images = fashioniq.image_paths(root, [str(name) for name in row.rows])
    train = FixedTriplets(images, triplets, shuffle_captions=settings.captions == "random")
    return _source("fashioniq", root, settings, train, "val", "val")


def open_cirr(root: Path, settings: DataSettings) -> Source:
    """Hard targets; pre-extracted features where ARTEMIS' protocol finds them, else the images."""
    gallery = cirr.read_gallery(root, "train")
    protocol = chosen_protocol(settings)
    features = protocol.name == "cirr/artemis" and cirr.has_features(root)
    images: Sequence[ImageLike] = (
        cirr.read_features(root, gallery) if features else cirr.image_paths(root, gallery)
    )
    rows = {name: number for number, name in enumerate(gallery)}
    triplets = []
    for found in cirr.read_triplets(root, "train"):
        if found.reference not in rows or found.target not in rows:
            raise DatasetError(
                f"cap.{cirr.VERSION}.train.json, pair {found.pair}: an image is not in the split; "
                "download it again"
            )
        triplets.append(Triplet(rows[found.reference], (found.caption,), rows[found.target]))
    return _source("cirr", root, settings, FixedTriplets(images, triplets), "val", "val")


def open_shoes(root: Path, settings: DataSettings) -> Source:
    """One query a triplet."""
    found = shoes.read_triplets(root, "train")
    train = _named(
        ((one.reference, one.caption, one.target) for one in found),
        lambda name: shoes.image_path(root, name),
    )
    return _source("shoes", root, settings, train, "val", "val")


def open_css(root: Path, settings: DataSettings) -> Source:
    """One query for each pair of scenes that a modification leads from and to; the last epoch is kept."""
    protocol = chosen_protocol(settings)
    content = css.read_split(root, "train")
    images: Sequence[ImageLike] = content.images
    shift = 0
    if protocol.name.endswith("2d-to-3d"):
        shift, images = len(images), Joined(images, css.drawings(content))
    triplets = [
        Triplet(shift + source, (mod.text,), target)
        for mod in content.modifications
        for source, target in zip(mod.sources, mod.targets, strict=True)
    ]
    checked_rows(triplets, len(images), str(root))
    return _source("css", root, settings, FixedTriplets(images, triplets), None, "test")


def open_birds(root: Path, settings: DataSettings) -> Source:
    """An annotation leads from its first photograph to its second."""
    found = birds.read_comparisons(root, "train")
    train = _named(
        ((one.first, one.description, one.second) for one in found if one.first != one.second),
        lambda photo: birds.image_path(root, photo),
    )
    validation = "val" if birds.has_split(root, "val") else None
    return _source("birds", root, settings, train, validation, "test")


def _named(triplets: Iterable[tuple[str, str, str]], image: Callable[[str], Path]) -> FixedTriplets:
    row = Indexed()
    made = [Triplet(row(reference), (text,), row(target)) for reference, text, target in triplets]
    return FixedTriplets([image(str(name)) for name in row.rows], made)


def _source(
    name: str,
    root: Path,
    settings: DataSettings,
    train: FixedTriplets,
    validation: str | None,
    test: str,
) -> Source:
    protocol = chosen_protocol(settings)
    measured = {
        split: Measured(split, tuple(protocol.load(root, split)))
        for split in dict.fromkeys((validation, test))
        if split is not None
    }
    return Source(name, train, protocol, measured[validation] if validation else None, measured[test])
