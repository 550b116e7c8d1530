"""What a long command says meanwhile, and where it says nothing."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator

import pytest

from cir_infer.console.common import CirParser, run_command
from cir_infer.console.progress import progress_bar, tell


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _level_as_before() -> Iterator[None]:
    level = logging.getLogger("cir_infer").level
    yield
    logging.getLogger("cir_infer").setLevel(level)


def said(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    @run_command
    def main(arguments: object = None) -> int:
        CirParser("cir-x", "Takes long.", example="cir-x").parse_args(arguments)
        tell("opening \x1b[2Jit")
        assert list(progress_bar(range(3), 3, "turning", "turn")) == [0, 1, 2]
        return 0

    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # or a command adds none of its own
    assert main(arguments) == 0
    return stderr.getvalue()


def test_a_terminal_sees_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(Terminal(), monkeypatch)
    assert text.startswith("opening \\x1b[2Jit\n") and "turning: " in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_with_verbose_it_is_a_log_line(
    stream: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(stream(), monkeypatch, "--verbose").count("cir-x: opening \\x1b[2Jit\n") == 1


def test_logs_and_pipes_stay_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(io.StringIO(), monkeypatch) == ""
