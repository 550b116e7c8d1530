"""Which files are taken for images, and what is said of the others."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable, Mapping

from cir_infer.errors import CirError
from cir_infer.extras import is_installed
from cir_infer.inputs.images import HEIC_REMEDY
from cir_infer.inputs.remote import is_address, read_remote

__all__ = [
    "HEAD_BYTES",
    "HEIC_REMEDY",
    "IMAGE_ENDINGS",
    "describe_left_out",
    "ending_of",
    "image_endings",
    "looks_like_image",
    "object_looks_like_image",
]

IMAGE_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif"),
    )
)
"""Endings of the files of a folder or shard that are taken for images; a manifest may name any file."""

HEIC_ENDINGS = frozenset((".heic", ".heif", ".hif"))

_RAW_ENDINGS = frozenset((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"))
_ARCHIVES = frozenset((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
_ORDINARY = re.compile(r"\.[a-z0-9_+-]{1,10}")
_HEADS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n",
    b"\xff\x4f\xff\x51",
)
HEAD_BYTES = 16
"""Bytes of a file by which `looks_like_image` knows one."""
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")


def image_endings(features: bool = False) -> frozenset[str]:
    """`IMAGE_ENDINGS`, with those of HEIC where pillow-heif is installed.

    Args:
        features: whether images come as arrays of features, and so in .npy files.
    """
    if features:
        return frozenset((".npy",))
    return IMAGE_ENDINGS | HEIC_ENDINGS if _reads_heic() else IMAGE_ENDINGS


@functools.cache
def _reads_heic() -> bool:
    return is_installed("pillow_heif")


def ending_of(name: str) -> str:
    """The ending of a name in small letters, as it is counted: "" where there is none."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return ending if not ending or _ORDINARY.fullmatch(ending) else "odd endings"


def looks_like_image(head: bytes) -> bool:
    """Whether a file begins as an image does (`HEAD_BYTES` are enough)."""
    return (
        head.startswith(_HEADS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
    )


def file_looks_like_image(path: str) -> bool:
    """Whether a file without an ending is an image by its first bytes.

    One that cannot be read is none; of an object see `object_looks_like_image`.
    """
    if is_address(path):
        return object_looks_like_image(lambda: read_remote(path, 0, HEAD_BYTES, HEAD_BYTES))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and looks_like_image(os.read(fd, HEAD_BYTES))
    except OSError:
        return False
    finally:
        os.close(fd)


def object_looks_like_image(head: Callable[[], bytes]) -> bool:
    """Whether an object without an ending is an image, or cannot be read: then it is to be listed.

    Args:
        head: reads its first bytes.
    """
    try:
        return looks_like_image(head())
    except (OSError, CirError):
        return True


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """What was left out as one line, the most frequent kinds first, with the remedy where there is one."""
    parts = []
    for kind, count in sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0])):
        if kind in HEIC_ENDINGS:
            kind = f"{kind} ({HEIC_REMEDY})"
        elif kind in _RAW_ENDINGS:
            kind = f"{kind} (raw; develop them to JPEG)"
        elif kind in _ARCHIVES:
            kind = f"{kind} (unpack it)"
        parts.append(f"{count:,} {kind}")
    shown = parts[:8]
    if len(parts) > len(shown):
        shown.append(f"{len(parts) - len(shown)} more kinds (--json lists them)")
    return ", ".join(shown)
