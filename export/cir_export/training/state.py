"""What an interrupted training needs to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_export.container import read_container, write_container
from cir_infer.errors import CheckpointError, TrainingError

__all__ = ["TrainingState", "load_state", "save_state"]

_VERSION = 1


@dataclass
class TrainingState:
    """A training between two steps.

    Attributes:
        digest: of the configuration and the data; a state continues nothing else.
        step: steps done.
        epoch_loss: sum of the losses of the steps done in the current epoch.
        seconds: wall time spent in steps so far.
        cpu_seconds: processor time spent in steps so far, all threads together.
        model: weights.
        optimizer: AdamW's state.
        scaler: the float16 gradient scaler's state.
        random: PyTorch's random state, for dropout.
        best: weights of the best epoch so far.
        best_recall: its R@1 on the validation split, -1 before the first epoch's end.
        best_epoch: its number, from 1.
        log: entries of log.jsonl so far.
    """

    digest: str
    step: int = 0
    epoch_loss: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    best_recall: float = -1.0
    best_epoch: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state; an interruption leaves the old file or the new one.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        write_container(path, {"version": _VERSION, **vars(state)})
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error


def load_state(path: Path, digest: str) -> TrainingState | None:
    """The state to continue from, or None if there is no file.

    Raises:
        TrainingError: the file is damaged, or belongs to another configuration or data set.
    """
    if not path.exists():
        return None
    remedy = "start anew with --restart, or remove it"
    try:
        content = read_container(path)
        if content.pop("version") != _VERSION:
            raise TrainingError(f"{path} was written by another release; {remedy}")
        state = TrainingState(**content)
    except CheckpointError as error:
        raise TrainingError(f"{error}; {remedy}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no training state; {remedy}") from error
    if state.digest != digest:
        raise TrainingError(f"{path} was written with another configuration or data set; {remedy}")
    return state
