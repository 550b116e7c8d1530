"""What an interrupted training needs to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cir_eval.pictures import Contents
from cir_export.container import read_container, write_container
from cir_infer.errors import CheckpointError, TrainingError

__all__ = ["Begun", "TrainingState", "load_state", "save_state"]

_VERSION = 2


class Begun(NamedTuple):
    """What decides what a training learns.

    Attributes:
        configuration: digest of it.
        queries: digest of all of them.
        initial: digests of the weights that it starts from.
        pictures: which they are.
    """

    configuration: str
    queries: str
    initial: tuple[str, ...]
    pictures: Contents

    def other(self, now: Begun) -> str:
        """What is another now, in words; empty where nothing is."""
        found = [
            words
            for words, was, one in (
                ("another configuration", self.configuration, now.configuration),
                ("other queries", self.queries, now.queries),
                ("other weights to start from", self.initial, now.initial),
            )
            if was != one
        ]
        if self.pictures != now.pictures:
            were, are = str(self.pictures), str(now.pictures)
            found.append(f"other pictures ({were}, {'of other content' if were == are else f'now {are}'})")
        return " and ".join(found)


@dataclass
class TrainingState:
    """A training between two steps.

    Attributes:
        begun: what it was begun with; a state continues nothing else.
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

    begun: Begun
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
        write_container(path, {"version": _VERSION, **vars(state), "begun": _plain(state.begun)})
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error


def load_state(path: Path, begun: Begun) -> TrainingState | None:
    """The state to continue from, or None if there is no file.

    Args:
        path: the file.
        begun: what the training that goes on is of.

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
        configuration, queries, initial, pictures = content.pop("begun")
        was = Begun(configuration, queries, tuple(initial), Contents(*pictures))
        state = TrainingState(begun=was, **content)
    except CheckpointError as error:
        raise TrainingError(f"{error}; {remedy}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is no training state; {remedy}") from error
    if other := state.begun.other(begun):
        raise TrainingError(f"{path} was written with {other}; give it what it was begun with, or {remedy}")
    return state


def _plain(begun: Begun) -> list[Any]:
    return [begun.configuration, begun.queries, list(begun.initial), list(astuple(begun.pictures))]
