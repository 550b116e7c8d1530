"""The TOML file that describes a training."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cir_export.models.configuration import parse
from cir_infer.errors import TrainingError, UsageError, shown
from cir_infer.foreign import text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DataSettings", "TrainingConfig", "TrainingSettings", "read_config"]

PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("cosine", "halving", "tenth")
OPTIMIZERS = ("adamw", "sgd")
AUGMENTATIONS = ("none", "flip", "crop", "crop-flip")

_TABLES = ("image", "text", "clip", "pair")
_MOST_SETS = 10_000
_MOST = 1 << 24
"""Bytes of the file."""
_MOST_LEVELS, _MOST_DOTS = 32, 200


@dataclass(frozen=True)
class DataSettings:
    """`[data]`.

    Attributes:
        path: the data set's folder in its published layout (docs/datasets.md), or a table of triplets,
            relative to the configuration file.
        dataset: "scenes", "emoji", "fashioniq", "cirr", "fashion200k", "shoes", "mitstates", "css", "birds",
            or "table".
        protocol: how to measure, e.g. "fashioniq/clip4cir"; "" is the data set's first.
        view: of the scenes, the rendering of targets and galleries, "" is "shaded"; of emoji their style, ""
            is every one.
        reference_view: the same of references; "" is `view`.
        captions: of FashionIQ's pairs: "both" orders as two queries (ARTEMIS), "random", or "first".
        preparation: "plain" resizes to the model's size, "padded-crop" is ARTEMIS' (resize by 8/7, crop the
            centre); "" is that of the encoders which the training starts from, else "plain" for rendered data
            sets, "padded-crop" for photographs.
        memory_mb: decoded pictures of a split are kept where they take no more, else decoded anew each time.
        workers: processes that decode then.
    """

    path: str
    dataset: str = "scenes"
    protocol: str = ""
    view: str = ""
    reference_view: str = ""
    captions: str = "both"
    preparation: str = ""
    memory_mb: int = 512
    workers: int = 2

    def __post_init__(self) -> None:
        for name, allowed in (
            ("captions", ("both", "random", "first")),
            ("preparation", ("", "plain", "padded-crop")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"data.{name}: {shown(getattr(self, name))}; expected one of "
                    f"{', '.join(word or 'nothing' for word in allowed)}"
                )
        if "\0" in self.path:
            raise UsageError(f"data.path: {shown(self.path)}; expected a path, which has no NUL")
        if self.workers > 64:
            raise UsageError(f"data.workers: {self.workers}; expected up to 64 processes")


@dataclass(frozen=True)
class TrainingSettings:
    """`[training]`.

    Attributes:
        epochs: passes over the training queries.
        families_per_batch: a batch holds so many families with all their queries; the scenes of a family
            are hard negatives of each other. Elsewhere a query is a family of its own, and this the batch.
        loss_set: K, how many targets a query is told its own from at a time (TIRG, eq. 4): 0 is all of the
            batch, batch classification; 2 is a soft triplet loss.
        loss_sets: M, how many such sets a query has; 0 is B - 1 for K = 2, else 1.
        optimizer: "adamw", or "sgd" with momentum 0.9 (TIRG).
        trunk_rate: the learning rate of pre-trained trunks, as a multiple (0.1 in TIRG).
        augmentation: of training pictures: "none", "flip", "crop", or "crop-flip" (ARTEMIS).
        learning_rate: at its peak.
        temperature_rate: the learning rate of the temperature, and of SAC's delta, as a multiple of
            `learning_rate`. Adam moves a number by at most that much a step, so a short training needs more
            than 1.
        weight_decay: on matrices and kernels.
        warmup_steps: steps over which the learning rate rises from 0.
        schedule: "cosine" down to 0, "halving" every `halving_epochs` epochs (ARTEMIS, sec. 4), or "tenth",
            to a tenth every `tenth_steps` steps (TIRG).
        halving_epochs: see `schedule`; counted anew when the frozen epochs are over.
        tenth_steps: see `schedule`.
        frozen_epochs: epochs at the start during which what came trained already stays as it is: the
            trunk, and ARTEMIS' word vectors.
        precision: of the forward pass: "float32", "bfloat16", or "float16" (on a GPU only).
        weights: precision of the stored weights, "float32" or "float16"; recall is measured on these.
        seed: of the initial weights and of the order of the batches.
    """

    epochs: int
    families_per_batch: int = 4
    loss_set: int = 0
    loss_sets: int = 0
    optimizer: str = "adamw"
    trunk_rate: float = 1.0
    augmentation: str = "none"
    learning_rate: float = 5e-4
    temperature_rate: float = 1.0
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "halving"
    halving_epochs: int = 10
    tenth_steps: int = 50_000
    frozen_epochs: int = 0
    precision: str = "float32"
    weights: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("optimizer", OPTIMIZERS),
            ("augmentation", AUGMENTATIONS),
            ("precision", PRECISIONS),
            ("weights", ("float32", "float16")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"training.{name}: {shown(getattr(self, name))}; expected one of {', '.join(allowed)}"
                )
        for name in ("epochs", "families_per_batch", "halving_epochs", "tenth_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"training.{name}: {getattr(self, name)}; expected at least 1")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"training.learning_rate: {self.learning_rate}; expected between 0 and 1")
        if self.loss_set == 1:
            raise UsageError("training.loss_set: 1; expected 0 for the whole batch, or at least 2")
        if self.loss_sets > _MOST_SETS:  # each is a loss of its own, held until the gradients are there
            raise UsageError(f"training.loss_sets: {self.loss_sets:,}; expected up to {_MOST_SETS:,}")
        if not 0 <= self.trunk_rate <= 100:
            raise UsageError(f"training.trunk_rate: {self.trunk_rate}; expected from 0 to 100")
        if not 0 < self.temperature_rate <= 100:
            raise UsageError(
                f"training.temperature_rate: {self.temperature_rate}; expected above 0, up to 100"
            )
        if not 0 <= self.weight_decay < 1:
            raise UsageError(f"training.weight_decay: {self.weight_decay}; expected from 0 to below 1")


@dataclass(frozen=True)
class TrainingConfig:
    """A whole configuration.

    Attributes:
        data: where the data set is.
        model: what `build_model` takes, without the vocabulary's size, which follows from the data.
        training: how to train.
    """

    data: DataSettings
    model: dict[str, Any]
    training: TrainingSettings

    def __post_init__(self) -> None:
        for name in _TABLES:
            if not isinstance(self.model.get(name, {}), Mapping):
                raise UsageError(
                    f"model.{name}: {shown(self.model[name])}; expected a table of keys and values"
                )

    @property
    def data_said(self) -> dict[str, Any]:
        """What decides which data are learnt and measured; where they lie and how they are read is empty."""
        return {**asdict(self.data), "path": "", "memory_mb": 0, "workers": 0}

    @property
    def digest(self) -> str:
        """Sha256 over everything but where the data lie and how they are read, in hexadecimal."""
        parts = {
            "data": self.data_said,
            "model": self.model,
            "training": asdict(self.training),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_data(self, path: Path) -> TrainingConfig:
        """The same with the data set in another folder."""
        return replace(self, data=replace(self.data, path=str(path)))

    def changed(self, changes: Sequence[str]) -> TrainingConfig:
        """The same with some values in place of others.

        Args:
            changes: `table.key=value` with a TOML value or a word, "training.seed=1", "model.form=paper".

        Raises:
            TrainingError: a change is of another form, or a key is unknown or of a wrong value.
        """
        tables = {"data": asdict(self.data), "model": deepcopy(self.model), "training": asdict(self.training)}
        for change in changes:
            _change(tables, change)
        try:
            return TrainingConfig(
                parse(DataSettings, tables["data"], "data"),
                tables["model"],
                parse(TrainingSettings, tables["training"], "training"),
            )
        except UsageError as error:
            raise TrainingError(f"--set: {error}") from error


def read_config(path: Path) -> TrainingConfig:
    """Read a configuration.

    Raises:
        TrainingError: the file is missing, not TOML, or a key is unknown, missing or of a wrong value.
    """
    try:
        tables = _read_toml(text_of(path, most=_MOST))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}; expected a TOML file") from error
    except ValueError as error:
        raise TrainingError(f"{path} is not TOML: {shown(error, 300)}") from error
    expected = {"data", "model", "training"}
    if set(tables) != expected:
        raise TrainingError(
            f"{path} has the tables {', '.join(sorted(tables)) or 'none'}; expected data, model and training"
        )
    try:
        data = parse(DataSettings, tables["data"], "data")
        training = parse(TrainingSettings, tables["training"], "training")
    except UsageError as error:
        raise TrainingError(f"{path}: {error}") from error
    model = tables["model"]
    encoders = ("clip", "pair", "text")
    if not isinstance(model, dict) or not any(isinstance(model.get(name), dict) for name in encoders):
        raise TrainingError(
            f"{path}: model has no table text; expected system, image and text, or clip, or pair"
        )
    try:
        place = (path.parent / data.path).resolve()
        return TrainingConfig(replace(data, path=str(place)), model, training)
    except UsageError as error:
        raise TrainingError(f"{path}: {error}") from error
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise TrainingError(f"{path}: data.path: {shown(error, 300)}") from error


def _read_toml(text: str) -> dict[str, Any]:
    """As `tomllib.loads`; whatever is wrong with a text is a `ValueError`, a number of any length too.

    A key with dots nests a table for each without a call for each, so what is read may be deeper than what
    can be copied; and one of 40,000 takes minutes to read.
    """
    deep = f"it is nested too deep; expected at most {_MOST_LEVELS} tables and lists in each other"
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {_MOST_DOTS} dots")
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError(deep) from None
    level: list[Any] = [tables]
    for _ in range(_MOST_LEVELS):
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
        level = [inner for inner in level if isinstance(inner, (dict, list))]
    if level:
        raise ValueError(deep)
    return tables


def _change(tables: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    *path, name = key.strip().split(".")
    try:
        read = _read_toml(f"value = {value}")["value"]
    except ValueError:
        read = value.strip()  # a word without quotes, which a shell takes away
    table: Any = tables
    for part in path:
        table = table.get(part) if isinstance(table, dict) else None
    if not equals or not path or not isinstance(table, dict):
        raise TrainingError(
            f"--set {shown(change)}; expected table.key=value with a table of the configuration, e.g. "
            "training.seed=1"
        )
    table[name] = read
