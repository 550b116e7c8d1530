#!/usr/bin/env python3
"""Carries files to a machine without a network, in parts of a given size, and puts them together there.

    python3 tools/packages/pack_offline.py pack --part-mib 60 -o parts wheels/ trt/libnvinfer.so.8 shop.cir
    python3 tools/packages/pack_offline.py unpack parts -o offline

`pack` writes NAME.000, NAME.001, ... and NAME.json with the sha256 of every part and of the whole; this
script alone, which needs only Python, does the rest there. `unpack` says which parts are missing or
damaged before it writes anything, and never writes outside of its folder. Large libraries shrink to about a
third; packing takes a minute for each 50 MB, unpacking a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

FORMAT = "cir-offline"
CHUNK = 1 << 20


class PackError(Exception):
    """What was found, what was expected and what to do."""


class _Parts:
    """A file that is written as parts of at most so many bytes, each with its digest."""

    def __init__(self, folder: Path, name: str, most: int) -> None:
        self._folder, self._name, self._most = folder, name, most
        self._file: IO[bytes] | None = None
        self._room = 0
        self._digest = hashlib.sha256()
        self.whole = hashlib.sha256()
        self.bytes = 0
        self.listed: list[dict[str, Any]] = []

    def write(self, data: bytes) -> int:
        """As a file's."""
        view = memoryview(data)
        while view:
            if self._room == 0:
                self._next()
            assert self._file is not None
            piece = view[: self._room]
            self._file.write(piece)
            self._digest.update(piece)
            self.whole.update(piece)
            self.bytes += len(piece)
            self._room -= len(piece)
            view = view[len(piece) :]
        return len(data)

    def close(self) -> None:
        """End the part that is being written."""
        if self._file is not None:
            size = self._file.tell()
            self._file.close()
            name = Path(self._file.name).name
            self.listed.append({"name": name, "bytes": size, "sha256": self._digest.hexdigest()})
            self._file = None

    def _next(self) -> None:
        self.close()
        self._file = (self._folder / f"{self._name}.{len(self.listed):03}").open("xb")
        self._digest = hashlib.sha256()
        self._room = self._most


def pack(sources: list[Path], folder: Path, name: str, part_mib: float, preset: int) -> dict[str, Any]:
    """Write the parts and their list; returns the list.

    Raises:
        PackError: a source is missing, two have one name, or the parts are there already.
    """
    names = [source.name for source in sources]
    for source in sources:
        if not source.exists():
            raise PackError(f"{source} does not exist")
        if names.count(source.name) > 1:
            raise PackError(f"two of the sources are called {source.name}; pack them from one folder")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{name}.*")):
        raise PackError(f"{folder} holds parts of {name} already; choose another --name or folder")
    parts = _Parts(folder, name, max(1, int(part_mib * (1 << 20))))
    compressor = lzma.LZMACompressor(preset=preset)

    class Compressed:
        def write(self, data: bytes) -> int:
            parts.write(compressor.compress(data))
            return len(data)

    with tarfile.open(fileobj=Compressed(), mode="w|") as archive:  # type: ignore[call-overload]
        for source in sources:
            archive.add(source, source.name, filter=_plain)
    parts.write(compressor.flush())
    parts.close()
    listed = {
        "format": FORMAT,
        "version": 1,
        "bytes": parts.bytes,
        "sha256": parts.whole.hexdigest(),
        "parts": parts.listed,
    }
    (folder / f"{name}.json").write_text(json.dumps(listed, indent=1) + "\n")
    return listed


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Equal content gives equal parts, and nothing tells whose files they were."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info


def unpack(folder: Path, target: Path, name: str | None = None) -> list[str]:
    """Check the parts and extract them; returns the names that were written.

    Raises:
        PackError: parts are missing or damaged, the target is not empty, or a member would leave it.
    """
    listed = _list(folder, name)
    wrong = [problem for part in listed["parts"] if (problem := _problem(folder, part))]
    if wrong:
        raise PackError(f"{'; '.join(wrong)}: copy these again")
    if target.exists() and any(target.iterdir()):
        raise PackError(f"{target} is not empty; choose a new folder")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target) as archive:
        decompressor = lzma.LZMADecompressor()
        whole = hashlib.sha256()
        for part in listed["parts"]:
            with (folder / part["name"]).open("rb") as file:
                while data := file.read(CHUNK):
                    whole.update(data)
                    archive.write(decompressor.decompress(data))
        if whole.hexdigest() != listed["sha256"] or not decompressor.eof:
            raise PackError("the parts do not make up what was packed; pack them again")
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r:") as members:
            return _extract(members, target)


def _list(folder: Path, name: str | None) -> dict[str, Any]:
    lists = [folder / f"{name}.json"] if name else sorted(folder.glob("*.json"))
    if len(lists) != 1 or not lists[0].exists():
        raise PackError(f"{folder} holds {[path.name for path in lists]}; expected one list, or say --name")
    try:
        listed = json.loads(lists[0].read_text())
        if listed["format"] != FORMAT or listed["version"] != 1:
            raise ValueError("another format")
        names = [part["name"] for part in listed["parts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{lists[0]} is no list of parts ({error}); copy it again") from error
    if any(Path(part).name != part for part in names):
        raise PackError(f"{lists[0]} names parts outside of its folder")
    return dict(listed)


def _problem(folder: Path, part: dict[str, Any]) -> str:
    path = folder / part["name"]
    if not path.exists():
        return f"{part['name']} is missing"
    if path.stat().st_size != part["bytes"]:
        return f"{part['name']} has {path.stat().st_size} bytes, not {part['bytes']}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return "" if digest.hexdigest() == part["sha256"] else f"{part['name']} is damaged"


def _extract(members: tarfile.TarFile, target: Path) -> list[str]:
    """Regular files, folders, and links that stay inside, whatever the version of Python checks itself."""
    root = target.resolve()
    checked = []
    links = {Path(member.name) for member in members.getmembers() if member.issym()}
    for member in members.getmembers():
        ends = [root / member.name]
        if member.issym():
            ends.append((root / member.name).parent / member.linkname)
        elif member.islnk():
            ends.append(root / member.linkname)
        elif not (member.isfile() or member.isdir()):
            raise PackError(f"{member.name} is neither a file nor a folder nor a link")
        # Steps up come first in a link and never in a name, and nothing is written through a link, so
        # that what is checked here is what is written.
        down = Path(member.linkname.lstrip("./")) if member.issym() else Path(member.name)
        straight = ".." not in (*Path(member.name).parts, *down.parts)
        straight &= links.isdisjoint(Path(member.name).parents)
        if not straight or not all(end.resolve().is_relative_to(root) for end in ends):
            raise PackError(f"{member.name} would be written outside of {target}")
        member.mode &= 0o755
        checked.append(member)
    for member in checked:
        members.extract(member, target, set_attrs=True)
    return [member.name for member in checked]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make parts")
    packing.add_argument("sources", nargs="+", type=Path, help="files and folders")
    packing.add_argument("-o", "--output", type=Path, required=True, help="folder for the parts")
    packing.add_argument("--name", default="offline", help="what the parts are called")
    packing.add_argument("--part-mib", type=float, default=60.0, help="size of a part, default 60")
    packing.add_argument("--preset", type=int, choices=range(10), default=6, help="of xz; 9 is smallest")
    unpacking = commands.add_parser("unpack", help="put parts together")
    unpacking.add_argument("folder", type=Path, help="with the parts")
    unpacking.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    unpacking.add_argument("--name", help="of the parts, where the folder holds several")
    args = parser.parse_args()
    try:
        if args.command == "pack":
            listed = pack(args.sources, args.output, args.name, args.part_mib, args.preset)
            print(f"wrote {len(listed['parts'])} parts, {listed['bytes'] / 1e6:.1f} MB, to {args.output}")
        else:
            names = unpack(args.folder, args.output, args.name)
            print(f"wrote {len(names)} files and folders to {args.output}")
    except (PackError, OSError, lzma.LZMAError, tarfile.TarError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
