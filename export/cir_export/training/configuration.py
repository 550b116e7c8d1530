"""The TOML file that describes a training."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cir_export.models.configuration import parse
from cir_infer.errors import TrainingError, UsageError, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DataSettings", "TrainingConfig", "TrainingSettings", "read_config"]

PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("cosine", "halving")


@dataclass(frozen=True)
class DataSettings:
    """`[data]`.

    Attributes:
        path: folder of a data set of scenes (docs/scenes.md), relative to the configuration file.
        view: the rendering of references and targets.
    """

    path: str
    view: str = "shaded"


@dataclass(frozen=True)
class TrainingSettings:
    """`[training]`.

    Attributes:
        epochs: passes over the training queries.
        families_per_batch: a batch holds so many families with all their queries; the scenes of a family
            are hard negatives of each other.
        learning_rate: of AdamW, at its peak.
        temperature_rate: the temperature's learning rate, as a multiple of `learning_rate`. Adam moves its
            logarithm by at most that much a step, so a short training needs more than 1.
        weight_decay: of AdamW, on matrices and kernels.
        warmup_steps: steps over which the learning rate rises from 0.
        schedule: "cosine" down to 0, or "halving" every `halving_epochs` epochs (ARTEMIS, sec. 4).
        halving_epochs: see `schedule`.
        frozen_epochs: epochs at the start during which pre-trained trunks stay as they are.
        precision: of the forward pass: "float32", "bfloat16", or "float16" (on a GPU only).
        weights: precision of the stored weights, "float32" or "float16"; recall is measured on these.
        seed: of the initial weights and of the order of the batches.
    """

    epochs: int
    families_per_batch: int = 4
    learning_rate: float = 5e-4
    temperature_rate: float = 1.0
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "halving"
    halving_epochs: int = 10
    frozen_epochs: int = 0
    precision: str = "float32"
    weights: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("weights", ("float32", "float16")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"training.{name}: {shown(getattr(self, name))}; expected one of {', '.join(allowed)}"
                )
        for name in ("epochs", "families_per_batch", "halving_epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"training.{name}: {getattr(self, name)}; expected at least 1")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"training.learning_rate: {self.learning_rate}; expected between 0 and 1")
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

    @property
    def digest(self) -> str:
        """Sha256 over everything but the path of the data set, in hexadecimal."""
        parts = {"view": self.data.view, "model": self.model, "training": asdict(self.training)}
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
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}; expected a TOML file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} is not TOML: {error}") from error
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
    if not isinstance(model, dict) or not isinstance(model.get("clip", model.get("text")), dict):
        raise TrainingError(f"{path}: model has no table text; expected system, image and text, or clip")
    return TrainingConfig(DataSettings(str((path.parent / data.path).resolve()), data.view), model, training)


def _change(tables: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    *path, name = key.strip().split(".")
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
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
