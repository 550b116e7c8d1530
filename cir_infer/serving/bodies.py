"""The bodies of requests: read up to a limit and in time, as JSON or as a form, and nothing else."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cir_infer.errors import shown
from cir_infer.serving.connections import WIRE, Wire
from cir_infer.serving.ends import Ends
from cir_infer.serving.problems import Problem, busy

if TYPE_CHECKING:
    from fastapi import Request

__all__ = ["Budget", "Form", "from_base64", "header_of", "media_type", "read_body", "read_form"]

_BOUNDARY = re.compile(r"boundary=(?:\"([^\"\\]{1,70})\"|([^\s;\",]{1,70}))", re.IGNORECASE)
_NAME = re.compile(rb"[; ]name=\"([^\"\\\r\n]{1,64})\"", re.IGNORECASE)
_AS_IT_IS = (b"7bit", b"8bit", b"binary")
_MOST_PARTS = 300
_LONGEST_FIELD = 1 << 20


class Budget:
    """Bytes of bodies that may lie in memory at one time, over all requests."""

    def __init__(self, total: int) -> None:
        self._left = total

    def take(self, count: int) -> None:
        """Count bytes in.

        Raises:
            Problem: there is no room for them.
        """
        if count > self._left:
            raise busy("too much is being uploaded at the moment; try again")
        self._left -= count

    def give_back(self, count: int) -> None:
        """Count bytes out."""
        self._left += count


def header_of(request: Request, name: bytes, otherwise: str = "") -> str:
    """The last header of a name. Starlette's way to it reads every header, each time."""
    head: dict[bytes, bytes] = request.scope["state"]["head"]
    value = head.get(name)
    return otherwise if value is None else value.decode("latin-1")


def media_type(request: Request) -> str:
    """The media type of a request's body, without parameters."""
    value = header_of(request, b"content-type")
    return value.partition(";")[0].strip().lower()


async def read_body(request: Request, most: int, seconds: float, budget: Budget) -> bytes:
    """The body of a request; its bytes are counted in, and out again when the request ends.

    Args:
        request: its `state.taken` adds up what it took of the budget.
        most: bytes.
        seconds: for all of it.
        budget: over all requests.

    Raises:
        Problem: it is larger, slower, compressed, or the client went away.
    """
    if header_of(request, b"content-encoding", "identity").lower() != "identity":
        raise Problem("unsupported-media-type", "the body is compressed; send it as it is")
    length = header_of(request, b"content-length")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    state = request.scope["state"]
    wire: Wire | None = request.scope.get("extensions", {}).get(WIRE)
    if wire is not None and b"expect" not in state["head"]:
        whole = wire.body()
        if whole is not None:
            if len(whole) > most:
                raise _too_large(most)
            budget.take(len(whole))
            state["taken"] = len(whole)
            return whole
    late = Problem(
        "request-timeout",
        f"the body did not arrive within {seconds:g} seconds",
        {"Connection": "close"},
    )
    return await Ends().within(seconds, _received(request, most, budget), late)


async def _received(request: Request, most: int, budget: Budget) -> bytes:
    parts, size, state = [], 0, request.scope["state"]
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem("cancelled", "the client went away while it sent the request")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        budget.take(len(part))
        state["taken"] = state.get("taken", 0) + len(part)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(most: int) -> Problem:
    return Problem(
        "too-large", f"the body has more than {most:,} bytes; send a smaller one", {"Connection": "close"}
    )


def from_base64(text: str) -> bytes:
    """An image in JSON.

    Raises:
        Problem: it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(
            "invalid-argument", "image is not base64; expected the bytes of an image file"
        ) from None


@dataclass
class Form:
    """A form of text fields and at most one file.

    Attributes:
        fields: the values of each field, in order.
        file: the bytes of the part named "image", None where there is none.
    """

    fields: dict[str, list[str]] = field(default_factory=dict)
    file: bytes | None = None

    def one(self, name: str) -> str | None:
        """The one value of a field, None where there is none.

        Raises:
            Problem: there are several.
        """
        values = self.fields.get(name, [])
        if len(values) > 1:
            raise Problem("invalid-argument", f"the field {name} is there {len(values)} times; expected one")
        return values[0] if values else None


def read_form(content_type: str, body: bytes) -> Form:
    """A body of type multipart/form-data.

    Raises:
        Problem: it is malformed.
    """
    from python_multipart.multipart import MultipartParser

    found = _BOUNDARY.search(content_type)
    if found is None:
        raise Problem("malformed-request", "the form's Content-Type names no boundary")
    parts = _Parts()
    try:
        parser = MultipartParser(found[1] or found[2], parts.callbacks(), max_size=len(body) + 1)
        parser.write(body)
        parser.finalize()
    except Problem:
        raise
    except Exception as error:  # the library's own, and what its index arithmetic makes of nonsense
        raise Problem("malformed-request", f"the form is malformed ({shown(error, 80)})") from None
    if not parts.ended:
        raise Problem("malformed-request", "the form ends before its last boundary")
    return parts.form


class _Parts:
    """What the parser tells, put together."""

    def __init__(self) -> None:
        self.form, self.ended, self._count = Form(), False, 0
        self._head, self._name, self._value = bytearray(), bytearray(), bytearray()
        self._disposition: bytes = b""
        self._data: list[bytes] = []

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MOST_PARTS:
            raise Problem("too-large", f"the form has more than {_MOST_PARTS} parts")
        self._disposition, self._data = b"", []

    def _header(self) -> None:
        name = self._name.lower()
        if name == b"content-disposition":
            self._disposition = bytes(self._value)
        elif name == b"content-transfer-encoding" and self._value.strip().lower() not in _AS_IT_IS:
            raise Problem("malformed-request", "a part of the form is encoded; send its bytes as they are")
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        found = _NAME.search(self._disposition)
        if found is None:
            raise Problem("malformed-request", "a part of the form has no name")
        try:
            name = found[1].decode()
        except UnicodeDecodeError:
            raise Problem("malformed-request", "a part's name is not UTF-8") from None
        if name == "image":
            if self.form.file is not None:
                raise Problem("invalid-argument", "the form has several images; expected one")
            self.form.file = b"".join(self._data)
            return
        value = b"".join(self._data)
        if len(value) > _LONGEST_FIELD:
            raise Problem("too-large", f"the field {shown(name)} has more than {_LONGEST_FIELD:,} bytes")
        try:
            self.form.fields.setdefault(name, []).append(value.decode())
        except UnicodeDecodeError:
            raise Problem("malformed-request", f"the field {shown(name)} is not UTF-8") from None

    def _finish(self) -> None:
        self.ended = True
