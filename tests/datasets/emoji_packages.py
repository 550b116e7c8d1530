"""Packages of emoji as the registry has them, with pictures that the tests draw."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

from cir_eval.datasets.emoji.packages import STYLES, Package, Style

TONES = ("", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
ROLES = ("1f692", "2695-fe0f", "1f680", "2696-fe0f")
HEARTS = ("2764-fe0f", "1f499", "1f49a", "1f49c")
CIRCLES = ("1f534", "1f535", "1f7e2", "1f7e3")


def names() -> list[str]:
    """Some 90 emoji as emoji-datasource names them: four roles, hearts, circles, and a banana."""
    found = [
        "-".join(filter(None, (figure, tone, "200d", role)))
        for figure, role, tone in product(("1f9d1", "1f468", "1f469"), ROLES, TONES)
    ]
    return [*found, *HEARTS, *CIRCLES, "1f34c"]


def picture(name: str, style: str) -> bytes:
    """A small PNG with an alpha channel that differs for every name and style."""
    digest = hashlib.sha256(f"{name} {style}".encode()).digest()
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((2, 2, 13, 13), fill=(*digest[:3], 255))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def tarball(path: Path, files: Mapping[str, bytes], more: Iterable[tarfile.TarInfo] = ()) -> Path:
    """A .tgz with these files, and with members of no content."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for member in more:
            archive.addfile(member)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def style_of(name: str, folder: Path, skipped: str = "") -> Style:
    """A style as `packages.STYLES` has it, of a tarball that is written into a folder."""
    style = STYLES[name]
    files = {
        f"{style.folder}/{one}{style.suffix}": picture(one, name) for one in names() if one != skipped
    } | {"package/README.md": b"pictures"}
    return replace(style, package=packed(tarball(folder / style.package.file, files), style.package))


def packed(path: Path, package: Package) -> Package:
    """The package with size and digest of another tarball."""
    content = path.read_bytes()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return replace(package, size=len(content), sha512=digest)
