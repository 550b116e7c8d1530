"""Text from outside on a terminal: file names, ids, metadata and errors, in whatever encoding it has.

Nothing that is printed obeys to what a stranger wrote, and nothing is lost because a terminal lacks a letter.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from cir_infer.errors import CirError, brief

__all__ = [
    "OneLine",
    "ReaderLeft",
    "json_text",
    "printable",
    "safe_output",
    "standard_streams",
    "tell_warnings",
]

_log = logging.getLogger(__name__)

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""What JSON leaves as it is and a terminal would obey, or no encoding holds; the first is what it obeys."""


def printable(text: str) -> str:
    """A stranger's text as one line: control characters, marks of direction and the like are escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else ascii(char)[1:-1]
        for char in text
    )


def json_text(value: Mapping[str, Any], encoding: str | None = "utf-8") -> str:
    """JSON that a terminal can show and every reader of JSON understands.

    Args:
        value: NumPy numbers, arrays and paths become plain values.
        encoding: of where it is written. Letters that it lacks are escaped, as JSON has it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, default=_plain)
    text = _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        text.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return json.dumps(value, ensure_ascii=True, allow_nan=False, indent=2, default=_plain)
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class ReaderLeft(BrokenPipeError):  # noqa: N818 - nothing went wrong here
    """Whoever read standard output (head, less) has enough."""


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Whoever started the command may have closed its streams (`2>&-`): they lead nowhere then.

    Descriptors 0 to 2 are taken as well. The next file that is opened would get one of them, and what a
    library writes to stderr would go into rows of a gallery.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    with contextlib.ExitStack() as stack:
        for name, redirect in (
            ("stdout", contextlib.redirect_stdout),
            ("stderr", contextlib.redirect_stderr),
        ):
            if getattr(sys, name) is None:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
                stack.enter_context(redirect(nowhere if name == "stderr" else _Closed(nowhere)))
        yield


class _Wrapped:
    """A stream that does something beside writing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def flush(self) -> None:
        """See `io.IOBase.flush`."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Closed(_Wrapped):
    """Standard output that was closed from the start: what is done is done to its end, then found lost."""

    lost = False

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        self.lost |= bool(text)
        return len(text)

    def flush(self) -> None:
        """See `io.IOBase.flush`."""


class _Escaping(_Wrapped):
    """Standard output in which a terminal finds nothing to obey but ends of lines and tabs.

    What could not be written is known at the end, whoever has swallowed the error, as argparse does.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._failed: OSError | None = None

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        with self._about_output():
            self._stream.write(_OBEYED.sub(lambda match: ascii(match[0])[1:-1], text))
        return len(text)

    def flush(self) -> None:
        """See `io.IOBase.flush`."""
        with self._about_output():
            self._stream.flush()

    def finish(self) -> None:
        """Hand over what is still held.

        Raises:
            OSError: not all that was printed could be written.
        """
        if self._failed is None:
            with contextlib.suppress(OSError):
                self.flush()
        if getattr(self._stream, "lost", False):
            raise OSError(errno.EBADF, "it is closed, so what was printed is lost", "standard output")
        if self._failed is not None:
            self._drop()
            raise self._failed

    def _drop(self) -> None:
        """What is left is not tried again when Python ends, which would complain by itself."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # of a stream without a descriptor
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

    @contextlib.contextmanager
    def _about_output(self) -> Iterator[None]:
        """Say of an error of the system that it is one of standard output; nothing else names it."""
        try:
            yield
        except OSError as error:
            kind = ReaderLeft if isinstance(error, BrokenPipeError) else OSError
            self._failed = kind(error.errno, error.strerror, "standard output")
            raise self._failed from error


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Whatever is printed meanwhile can be printed, or is an error at the end.

    Letters that the encoding lacks are escaped, instead of ending the program, and so is on stdout what a
    terminal would obey.

    Raises:
        OSError: not all that was printed could be written; an error of the program's own goes before.
        ReaderLeft: nobody reads it any more.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    output = _Escaping(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            yield
        except SystemExit:  # of --help
            output.finish()
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                output.finish()
            raise
        output.finish()


class OneLine(logging.Formatter):
    """A log message as one line, whatever was put into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """See `logging.Formatter`."""
        record.message = printable(" ".join(brief(record.message, CirError.longest).split()))
        return super().formatMessage(record)


@contextlib.contextmanager
def tell_warnings() -> Iterator[None]:
    """Python's warnings become log lines, each once; those of the image library are dropped.

    Pillow warns of large images and odd EXIF data, which this SDK reads, or refuses by an error.
    """
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = f"{category.__name__}: {' '.join(str(message).split())[:500]}"
        if text not in said:
            said.add(text)
            _log.warning("%s", text)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.showwarning = show
        yield
