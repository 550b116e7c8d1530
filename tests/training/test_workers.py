"""Processes that decode pictures for a training, and what they leave behind in the program that trains."""

from __future__ import annotations

import signal

import pytest

from cir_export.training.images import in_processes
from cir_infer.errors import ImageError


def made(key: int) -> list[int]:
    if key == 3:
        raise ImageError("no picture")
    return [key]


def test_no_handler_of_signals_stays() -> None:
    def own(number: int, frame: object) -> None:
        """Somebody's."""

    before = signal.signal(signal.SIGCHLD, own)
    try:
        assert list(in_processes(made, [0, 1, 2], 2)) == [[0], [1], [2]]
        assert signal.getsignal(signal.SIGCHLD) is own
        with pytest.raises(ImageError, match="no picture"):
            list(in_processes(made, [0, 3], 2))
        assert signal.getsignal(signal.SIGCHLD) is own
        some = in_processes(made, [0, 1, 2], 2)
        assert next(some) == [0]
        some.close()
        assert signal.getsignal(signal.SIGCHLD) is own
    finally:
        signal.signal(signal.SIGCHLD, before)
