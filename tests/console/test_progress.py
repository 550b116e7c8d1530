"""What a long command says meanwhile, and where it says nothing."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable, Iterator

import pytest

from cir_infer.console import progress
from cir_infer.console.common import CirParser, run_command
from cir_infer.console.progress import progress_bar, progress_of, tell


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _level_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("cir_infer", progress.__name__)]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class Clock:
    """A process that has just begun, and in which time passes as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "_now", lambda: self.now)
        monkeypatch.setattr(progress, "_pace", progress._Pace())

    def passing(self, items: int, seconds: float) -> Iterator[int]:
        for item in range(items):
            self.now += seconds
            yield item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


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


def lines_of(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], *arguments: str) -> list[str]:
    """What a command says on a stderr that is a file."""

    @run_command
    def main(arguments: object = None) -> int:
        CirParser("cir-x", "Takes long.", example="cir-x").parse_args(arguments)
        work()
        return 0

    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert main(arguments) == 0
    return stderr.getvalue().splitlines()


def test_what_is_soon_done_leaves_a_file_clean(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    assert lines_of(monkeypatch, lambda: list(progress_bar(clock.passing(99, 0.1), 99, "turning"))) == []


def test_a_file_is_told_what_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_of(monkeypatch, lambda: tell("opening \x1b[2Jit")) == ["cir-x: opening \\x1b[2Jit"]


@pytest.mark.parametrize("arguments", [(), ("--verbose",)])
def test_a_file_is_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, arguments: tuple[str, ...]
) -> None:
    def work() -> None:
        assert list(progress_bar(clock.passing(40, 1.0), 40, "turning", "turn")) == list(range(40))

    first, *_ = said = lines_of(monkeypatch, work, *arguments)
    assert first == "cir-x: turning: 25% 10/40 [00:10<00:30, 1.00turn/s]" and len(said) == 4


def test_of_many_short_ones_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    def work() -> None:
        for name in range(100):
            for _ in progress_bar(clock.passing(3, 0.25), 3, f"part {name}"):
                pass

    assert 4 <= len(lines_of(monkeypatch, work)) <= 7


def test_a_day_has_few_lines_and_no_long_silence(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    times: list[float] = []
    info = progress._log.info

    def timed(*args: object) -> None:
        times.append(clock.now)
        info(*args)

    monkeypatch.setattr(progress._log, "info", timed)
    day = 86_400
    said = lines_of(monkeypatch, lambda: list(progress_bar(clock.passing(day, 1.0), day, "turning")))
    assert len(said) == len(times) < 200
    assert max(later - before for before, later in itertools.pairwise(times)) <= 601


def test_what_counts_is_asked_only_where_it_is_said(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    asked: list[int] = []

    def total() -> int:
        asked.append(1)
        return 30

    def work(seconds: float) -> None:
        with progress_of(total, "turning", "turn") as update:
            for _ in clock.passing(30, seconds):
                update()

    assert lines_of(monkeypatch, lambda: work(0.01)) == [] and asked == []
    assert "/30 " in lines_of(monkeypatch, lambda: work(1.0))[0] and asked == [1]


def test_a_program_of_somebody_elses_is_not_written_into(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(logging.getLogger(progress.__name__), "level", logging.NOTSET)
    monkeypatch.setattr("sys.stderr", stderr := io.StringIO())
    tell("opening")
    assert len(list(progress_bar(clock.passing(90, 1.0), 90, "turning"))) == 90
    assert stderr.getvalue() == ""


def test_what_begins_in_a_silence_is_said(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Its first unit may take minutes."""

    def work() -> None:
        list(progress_bar(clock.passing(1, 1.0), 1, "short", "turn"))
        clock.now += 60.0
        with progress_of(3, "long", "turn"):
            clock.now += 600.0

    assert lines_of(monkeypatch, work) == ["cir-x: long: 0% 0/3 [00:00<?, ?turn/s]"]
