"""Zip archives of strangers: refused where their directory or members are more than they can be."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from cir_infer.foreign import checked_members, opened_archive, read_json


def archive(*members: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", kind) as made:
        warnings.simplefilter("ignore")
        for name, data in members:
            made.writestr(name, data)
    return stream.getvalue()


def members_of(path: Path, data: bytes, most: int = 1 << 20) -> list[str]:
    path.write_bytes(data)
    with opened_archive(path, most) as opened:
        return list(checked_members(opened, len(data)))


def overlapping() -> bytes:
    """Two members that are the same bytes."""
    data = bytearray(archive(("a", bytes(1000)), ("b", bytes(1000))))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<I", data, second + 42, 0)
    cut = data.index(b"PK\3\4", 4)
    start = data.index(b"PK\1\2")
    directory = bytes(data[start:])
    end = directory.rindex(b"PK\5\6")
    closed = bytearray(directory)
    struct.pack_into("<I", closed, end + 16, cut)
    return bytes(data[:cut]) + bytes(closed)


def test_a_plain_archive_is_opened(tmp_path: Path) -> None:
    assert members_of(tmp_path / "a", archive(("a", b"1"), ("b", b""))) == ["a", "b"]
    assert members_of(tmp_path / "c", archive(("a", b"1")) + b"") == ["a"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (archive(("a", b"1"), ("a", b"2")), "twice"),
        (archive(("a", bytes(1000)), kind=zipfile.ZIP_DEFLATED), "compressed"),
        (overlapping(), "claim"),
        (archive(*((f"{n:0500}", b"") for n in range(2500))), "directory"),
        (b"PK\3\4" + bytes(100), "no zip archive"),
        (b"", "no zip archive"),
    ],
    ids=["twice", "compressed", "overlapping", "many", "cut", "nothing"],
)
def test_odd_archives_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        members_of(tmp_path / "x", data)


def test_the_directory_of_a_large_archive_is_found(tmp_path: Path) -> None:
    many = archive(*((f"{n:05}", b"") for n in range(70_000)))  # more than 65,535 have another end
    assert len(members_of(tmp_path / "x", many, 64 << 20)) == 70_000
    with pytest.raises(ValueError, match="directory"):
        members_of(tmp_path / "x", many)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"\xff", b"", b"[1,]"])
def test_json_that_is_none_is_a_short_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_json(text)
    assert len(str(caught.value)) < 200
