"""API keys: read from a file, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from cir_infer.errors import UsageError, shown
from cir_infer.foreign import text_of
from cir_infer.inputs.opening import why

__all__ = ["Keys", "tell_of_readers"]

_log = logging.getLogger(__name__)
_SHORTEST = 16
_MOST = 1 << 24
"""Bytes of the file."""
_LINE = re.compile(r"(?:(?P<name>[\w.-]{1,64})\s*[:=]\s*)?(?P<key>[!-~]+)")


def tell_of_readers(path: str | os.PathLike[str]) -> None:
    """Say in the log where others can read a file of keys; once, though each worker reads it."""
    with suppress(OSError):
        if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):  # noqa: PTH116
            _log.warning("%s can be read by other users of this machine; chmod 600 it", shown(Path(path)))


class Keys:
    """The keys that a service accepts. Keys themselves are not kept.

    Args:
        keys: key by the name that logs call it by.
    """

    def __init__(self, keys: dict[str, str]) -> None:
        self._digests = {name: _digest(key.encode()) for name, key in keys.items()}

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Keys:
        """The keys of a file: one a line, with a name before it if it has one (`phone: 3f9c...`).

        Raises:
            UsageError: the file cannot be read, has no key, or one of fewer than 16 characters.
        """
        file = Path(path)
        try:
            text = text_of(file, most=_MOST)
        except (OSError, ValueError) as error:
            raise UsageError(f"the file of API keys {shown(file)} cannot be read ({why(error)})") from error
        keys: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None or len(found["key"]) < _SHORTEST:
                raise UsageError(
                    f"{shown(file)}, line {number}: expected a key of at least {_SHORTEST} letters, digits "
                    "and signs, or `name: key`; make one with `openssl rand -hex 24`"
                )
            name = found["name"] or f"key{number}"
            if name in keys:
                raise UsageError(f"{shown(file)}, line {number}: there are two keys named {shown(name)}")
            keys[name] = found["key"]
        if not keys:
            raise UsageError(f"{shown(file)} holds no key; make one with `openssl rand -hex 24`")
        return Keys(keys)

    def name_of(self, authorization: bytes | None) -> str | None:
        """The name of the key in an `Authorization: Bearer` header, None where it is no key of ours.

        Every key is compared, to the end, so that time tells nothing.
        """
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == b"bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
