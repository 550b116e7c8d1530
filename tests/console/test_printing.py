"""Printing what a stranger wrote: nothing obeys, nothing breaks, whatever the terminal can encode."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.console.common import CirParser, complain, print_json, run_command
from cir_infer.console.printing import OneLine, json_text, printable, safe_output
from cir_infer.console.tables import format_table
from cir_infer.errors import CirError, UsageError
from cir_infer.hits import Hit, Hits

NASTY = "red\x1b[31m\n\r\x00\x07\x7f\x9b2J\u202egpj.\u2028\u061c\udce9 日本\u3000😀 é"
SENDABLE = NASTY.encode("utf-8", "replace").decode()
"""What pytest's workers can send to one another: they report warnings."""


def obeyed(text: str) -> list[str]:
    """Characters that a terminal obeys, or that no encoding holds."""
    kinds = ("Cc", "Cs", "Zl", "Zp")
    return [c for c in text if unicodedata.category(c) in kinds or c in "\u202e\u061c\u200e\u200f"]


def test_what_is_printed_obeys_to_nobody() -> None:
    shown = printable(NASTY)
    assert obeyed(shown) == []
    assert shown == r"red\x1b[31m\n\r\x00\x07\x7f\x9b2J\u202egpj.\u2028\u061c\udce9 日本　😀 é"


@settings(max_examples=300)
@given(text=st.text(alphabet=st.characters(), max_size=40))
def test_any_text_is_one_line_and_json(text: str) -> None:
    assert obeyed(printable(text)) == []
    for encoding in ("utf-8", "ascii", "cp1252", "latin-1", None):
        written = json_text({"id": text, text: [text]}, encoding)
        written.encode(encoding or "ascii")
        assert json.loads(written) == {"id": text, text: [text]}
        assert set(obeyed(written)) <= {"\n"}


def test_json_takes_what_a_result_holds() -> None:
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x"), "d": np.int64(7)}
    assert json.loads(json_text(value)) == {"a": 0.5, "b": [0, 1, 2], "c": "x", "d": 7}


def test_tables_keep_one_row_a_line() -> None:
    table = format_table(["id", "n"], [["two\nlines", "1"], ["\x1b[2J", "22"], ["日本", "3"]], right=[1])
    assert table.splitlines() == [
        "id           n",
        "----------  --",
        r"two\nlines   1",
        "\\x1b[2J     22",
        "日本         3",
    ]


def test_hits_print_as_a_table_whatever_their_ids_are() -> None:
    hits = Hits([Hit(NASTY, 1, 0.5, {"a": 0.5}, {"note\n": NASTY, "long": "x" * 10_000_000})])
    lines = repr(hits).splitlines()
    assert len(lines) == 3 and all(obeyed(line) == [] for line in lines)
    assert len(repr(hits)) < 1000


def test_log_lines_are_lines() -> None:
    record = logging.LogRecord("cir_infer", logging.WARNING, "x.py", 1, "the file %s", (NASTY,), None)
    line = OneLine("cir-x: %(message)s").format(record)
    assert obeyed(line) == [] and line.startswith("cir-x: the file red")


# ---- commands


def command(main: Any) -> Any:
    """A command whose work is `main`."""

    @run_command
    def entry(arguments: Any = None) -> int | None:
        CirParser("cir-test", "Test.", "cir-test").parse_args(arguments)
        return main()

    return entry


def raising(error: BaseException) -> Any:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CirError(f"no {NASTY}"), 1, "no red"),
        (UsageError("wrong"), 2, "wrong"),
        (OSError(28, "No space left on device", "/x\n\x1b"), 1, "No space left"),
        (MemoryError(), 1, "no memory left"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("price"), 1, "unexpected KeyError: 'price'"),
        (RecursionError("maximum recursion depth"), 1, "unexpected RecursionError"),
        (TypeError("x" * 10_000_000), 1, "unexpected TypeError"),
        (UnicodeEncodeError("ascii", "x\ud800", 1, 2, "surrogate"), 1, "unexpected UnicodeEncodeError"),
    ],
)
def test_whatever_ends_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert command(raising(error))([]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err
    assert err.count("\n") == 1 and set(obeyed(err)) <= {"\n"} and len(err) < 4000


def test_verbose_shows_where_a_fault_is(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert command(raising(KeyError("price")))(["--verbose"]) == 1
    finally:
        logging.getLogger("cir_infer").setLevel(logging.NOTSET)
    assert "Traceback" in capsys.readouterr().err


def test_what_a_command_prints_cannot_be_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(lambda: print(f"wrote {NASTY}\tdone"))([]) == 0
    out = capsys.readouterr().out
    assert set(obeyed(out)) <= {"\n", "\t", "\udce9"} and out.endswith("done\n")
    assert command(lambda: print_json({"id": NASTY}))([]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": NASTY}


def test_warnings_are_one_line_each_and_only_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def main() -> None:
        for _ in range(3):
            warnings.warn(f"overflow\nin {SENDABLE}", RuntimeWarning, stacklevel=1)
        warnings.warn_explicit("Palette images ...", UserWarning, "PIL/Image.py", 1, "PIL.Image")

    assert command(main)([]) == 0
    assert [record.getMessage()[:24] for record in caplog.records] == ["RuntimeWarning: overflow"]
    assert "PIL" not in caplog.text


def test_usage_errors_quote_safely(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(lambda: None)([f"--{NASTY}"])
    assert set(obeyed(capsys.readouterr().err)) <= {"\n"}


@pytest.mark.parametrize(
    "typed", [["-k", "9" * 100_000], ["a", "b" * 100_000], ["-k", "1", "--" + "x" * 100_000]]
)
def test_usage_errors_are_short(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = CirParser("cir-x", "Do x.", example="cir-x 1")
    parser.add_argument("-k", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(typed)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("cir-x: error: ") and "characters left out" in said and len(said) < 600


def test_a_stream_that_escapes_is_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    with safe_output():
        assert sys.stdout.write("a\x1b") == 2
        assert sys.stdout.encoding
        sys.stdout.flush()
    assert capsys.readouterr().out == "a\\x1b"


PROGRAM = """
import sys
from cir_infer.console.common import complain, print_json, run_command
text = sys.argv[2].encode("ascii").decode("unicode_escape")
@run_command
def main(arguments=None):
    if sys.argv[1] == "json":
        print_json({"id": text})
    else:
        print("id " + text)
        complain("the file " + text)
sys.exit(main())
"""


@pytest.mark.parametrize("coding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-8:strict", "shift_jis"])
@pytest.mark.parametrize("kind", ["json", "text"])
def test_every_encoding_of_a_terminal(coding: str, kind: str) -> None:
    escaped = NASTY.encode("unicode_escape").decode("ascii")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, escaped],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": coding},
        check=False,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    text = done.stdout.decode(coding.partition(":")[0])
    if kind == "json":
        assert json.loads(text) == {"id": NASTY}
    else:
        assert text.count("\n") == 2 and set(obeyed(text)) <= {"\n"}  # its own, and the end of the line


def test_without_any_locale_or_stdout(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    environment |= {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    run = [sys.executable, "-c", PROGRAM, "text", "\\u65e5"]
    done = subprocess.run(run, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"id \\u65e5\n"), done.stderr
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *run], capture_output=True, env=environment, check=False
    )
    assert (closed.returncode, b"Traceback" in closed.stderr) == (1, False), closed.stderr


STREAMS = """
import os, sys
from pathlib import Path
from cir_infer.console.common import complain, run_command
@run_command
def main(arguments=None):
    with open(sys.argv[1], "w") as file:
        descriptor = file.fileno()
        os.system("echo of a library; echo of a library >&2")
        complain("something")
        print("done", flush=True)
        assert sys.stderr.isatty() in (True, False) and sys.stdout.encoding
    return 0 if descriptor > 2 and not Path(sys.argv[1]).read_text() else 3
sys.exit(main())
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    run = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", STREAMS, str(tmp_path / "rows")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    written = ">&-" not in closed.replace("2>&-", "")
    assert (done.returncode, "Traceback" in done.stderr) == (0 if written else 1, False), done.stderr
    assert ("done" in done.stdout) == written


def lost_output(
    where: str, unbuffered: bool, program: str, *arguments: str, stdout: int = subprocess.PIPE
) -> tuple[int, list[str]]:
    """The exit code, and what is said, of a program whose output goes where it cannot be written."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    run = ["sh", "-c", f'"$@" {where}', "sh", sys.executable, "-c", program, *arguments]
    done = subprocess.run(run, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    return done.returncode, done.stderr.splitlines()


HELP = """
from cir_infer.console.common import CirParser, run_command
@run_command
def main(arguments=None):
    CirParser("cir-x", "Do x.", example="cir-x").parse_args(arguments)
import sys
sys.exit(main(sys.argv[1:]))
"""

FULL = pytest.param(
    *(">/dev/full", "No space left on device"),
    marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device"),
)


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (PROGRAM, ["json", "x"]),
        (PROGRAM, ["text", "x"]),
        (PROGRAM, ["json", "x" * 100_000]),
        (HELP, ["--help"]),
        (HELP, ["--version"]),
    ],
)
@pytest.mark.parametrize(("where", "said"), [FULL, (">&-", "it is closed, so what was printed is lost")])
def test_output_that_cannot_be_written_is_a_failure(
    unbuffered: bool, program: str, arguments: list[str], where: str, said: str
) -> None:
    """Whatever Python keeps of it, and though argparse swallows what goes wrong."""
    code, told = lost_output(where, unbuffered, program, *arguments)
    told = [line for line in told if ": the file " not in line]
    assert code == 1 and len(told) == 1 and told[0].endswith(f": standard output: {said}")


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize(("program", "argument"), [(PROGRAM, "json"), (HELP, "--help"), (HELP, "--version")])
def test_a_reader_that_has_left_ends_a_command_without_a_word(
    unbuffered: bool, program: str, argument: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert lost_output("", unbuffered, program, argument, "x", stdout=writing) == (141, [])
    finally:
        os.close(writing)


def test_a_stream_of_somebody_elses_may_fail_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A notebook's, say: whatever it lacks, the reason is told."""

    class Theirs:
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "their disk is gone")

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Theirs())
    assert command(lambda: print("an answer"))([]) == 1
    assert capsys.readouterr().err.endswith(": standard output: their disk is gone\n")


def test_what_went_wrong_goes_before_output_that_is_lost() -> None:
    program = """
import sys
from cir_infer.console.common import run_command
from cir_infer.errors import UsageError
@run_command
def main(arguments=None):
    print("a table")
    raise UsageError("k is 0; expected at least 1")
sys.exit(main())
"""
    for where in (">/dev/full", ">&-") if Path("/dev/full").exists() else (">&-",):
        code, told = lost_output(where, False, program)
        assert code == 2 and len(told) == 1 and told[0].endswith("k is 0; expected at least 1")


def test_a_pipe_of_its_own_that_broke_is_no_reader_that_left() -> None:
    program = """
import errno, sys
from cir_infer.console.common import run_command
@run_command
def main(arguments=None):
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")
sys.exit(main())
"""
    code, told = lost_output("", False, program)
    assert code == 1 and told[0].endswith(": Broken pipe")


def test_what_is_said_is_short_whatever_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"{'x' * 100_000} is no folder")
    said = capsys.readouterr().err
    assert len(said) < 300 and said.endswith("x is no folder\n")
    record = logging.LogRecord("cir_infer", logging.WARNING, "", 1, "%s is slow", ("x" * 100_000,), None)
    line = OneLine("%(message)s").format(record)
    assert len(line) < 300 and line.endswith("x is slow")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("cir-bench latency needs onnx", "cir-bench: latency needs onnx"),
        ("cir-benchmark is another", "cir-bench: cir-benchmark is another"),
        ("--rows must be at least 1", "cir-bench: --rows must be at least 1"),
    ],
)
def test_a_complaint_names_the_command_once(
    message: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cir-bench"])
    complain(message)
    assert capsys.readouterr().err == f"{told}\n"


def test_complaining_to_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        pass
    monkeypatch.setattr(sys, "stderr", file)
    complain("nobody hears this")


@pytest.mark.parametrize("columns", [40, 100])
def test_help_is_as_wide_as_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    example = "cir-x " + "long-argument " * 9
    parser = CirParser("cir-x", "Does what takes many words to say. " * 5, example)
    parser.epilog = f"{parser.epilog}\n\n" + "And one more paragraph. " * 8
    parser.actions()("do", "say it with words " * 9, "x " * 70)
    for arguments, as_it_stands in ((["-h"], example.strip()), (["do", "-h"], "cir-x do " + "x " * 70)):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        lines = capsys.readouterr().out.splitlines()
        assert f"  {as_it_stands}".rstrip() in [line.rstrip() for line in lines]  # people copy it
        assert all(len(line) <= columns for line in lines if as_it_stands not in line)
