"""Tar shards as cameras, Macs, WebDataset and broken disks leave them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from cir_infer.errors import DatasetError
from cir_infer.indexing.items import Broken, Item
from cir_infer.indexing.sources import open_source
from tests.indexing.support import png, shard_of


def shard(path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def read(path: Path) -> tuple[dict[str, Item], list[Broken], dict[str, int], str | None]:
    source = open_source(str(path))
    entries: list[Item | Broken] = []
    problem = None
    try:
        entries.extend(source.items())
    except DatasetError as error:
        problem = str(error)
        entries = []
        stream = source.items()
        with pytest.raises(DatasetError):
            while True:
                entries.append(next(stream))
    items = {entry.id: entry for entry in entries if isinstance(entry, Item)}
    return items, [e for e in entries if isinstance(e, Broken)], dict(source.survey.left_out), problem


def test_names_with_dots_are_names(tmp_path: Path) -> None:
    names = [f"2023.06.{n // 24 + 1:02d}_{n % 24:02d}.00.png" for n in range(150)]
    members = [(name, png(1)) for name in names]
    members += [(f"2023.06.{n:02d}_05.00.json", json.dumps({"day": n}).encode()) for n in (1, 3)]
    items, broken, left_out, problem = read(shard(tmp_path / "c.tar", members))
    assert list(items) == [f"c/{name}" for name in names] and (broken, problem, left_out) == ([], None, {})
    told = {name: item.metadata for name, item in items.items() if item.metadata}
    assert told == {"c/2023.06.01_05.00.png": {"day": 1}, "c/2023.06.03_05.00.png": {"day": 3}}


def test_side_files_are_found_wherever_they_lie(tmp_path: Path) -> None:
    members = [(f"d{n % 2}/{n}.png", png(n)) for n in range(6)]
    members += [(f"d{n % 2}/{n}.json", json.dumps({"n": n}).encode()) for n in range(6)]
    members += [("d0/0.txt", "\ufeff a red dress \n".encode()), ("d0/nobody.json", b"{}")]
    for number, order in enumerate((members, members[::-1])):
        items, broken, left_out, _ = read(shard(tmp_path / f"{number}.tar", order))
        found = {name.partition("/")[2]: item.metadata for name, item in items.items()}
        assert found == {
            f"d{n % 2}/{n}.png": {"n": n} | ({} if n else {"caption": "a red dress"}) for n in range(6)
        }
        assert broken == [] and left_out == {"side files without an image": 1}


def test_webdatasets_keys_group_several_images(tmp_path: Path) -> None:
    members = [
        ("7.json", b'{"a": 1}'),
        ("7.left.png", png(1)),
        ("7.right.png", png(2)),
        ("7.right.json", b'{"b": 2}'),
    ]
    items, _, _, _ = read(shard(tmp_path / "s.tar", members))
    assert {name: item.metadata for name, item in items.items()} == {
        "s/7.left.png": {"a": 1},
        "s/7.right.png": {"a": 1, "b": 2},
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("0.json", b'{"price": ', "not JSON"),
        ("0.json", b"[1]", "expected a JSON object"),
        ("0.json", b'{"price": 1, "price": 2}', "'price' occurs twice"),
        ("0.json", b"[" * 100_000, "not JSON"),
        ("0.txt", b"caf\xe9", "not UTF-8"),
        ("0.json", b" " * (1 << 20) + b"{}", "at most 1,048,576"),
    ],
)
def test_a_side_file_that_says_nothing_is_told_and_its_image_kept(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    items, broken, _, _ = read(
        shard(
            tmp_path / "s.tar", [("0.png", png(0)), (name, data), ("1.png", png(1)), ("1.json", b'{"a": 1}')]
        )
    )
    assert [item.metadata for item in items.values()] == [None, {"a": 1}]
    assert [entry.id for entry in broken] == [f"s/{name}"] and reason in broken[0].reason


def test_what_macos_and_archivers_add_is_left_out(tmp_path: Path) -> None:
    double = b"\0\x05\x16\x07" + bytes(60)
    members = [
        ("./._1.png", double),
        ("./1.png", png(1)),
        ("./.DS_Store", b"x"),
        ("__MACOSX/._1.png", double),
        ("__MACOSX/2.png", double),
        ("PaxHeaders.12/1.png", b"30 mtime=1\n"),
        (".thumbs/1.png", png(2)),
        ("a/./._3.png", double),
    ]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        items, broken, left_out, _ = read(shard(tmp_path / "mac.tar", members, format))
        assert list(items) == ["mac/./1.png"] and broken == [] and left_out == {"hidden": 7}


def test_other_members_are_counted(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", [("1.png", png(1)), ("1.cls", b"3"), ("photo", png(2)), ("notes", b"x")])
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "1.png"
        archive.addfile(member)
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    items, broken, left_out, _ = read(path)
    assert list(items) == ["s/1.png", "s/photo"] and broken == []
    assert left_out == {".cls": 1, "without an ending": 1, "links and other special members": 1}


@pytest.mark.parametrize(
    ("which", "zeros"),
    # Two blocks of zeros behind the last whole member are the end of an archive, whatever follows.
    [*((which, zeros) for which in range(5) for zeros in (0, 512, 1024, 1536)), (5, 0), (5, 512)],
)
def test_a_damaged_header_costs_its_member(tmp_path: Path, which: int, zeros: int) -> None:
    """Whatever lies there now: a disk that lost some blocks gives zeros, which end an archive elsewhere."""
    path = shard(tmp_path / "s.tar", [(f"{n}.png", png(n)) for n in range(6)])
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[which].offset
    data = bytearray(path.read_bytes())
    if zeros:
        data[offset : offset + zeros] = bytes(zeros)
    else:
        data[offset + 20 : offset + 200] = b"\xa5" * 180
    path.write_bytes(data)
    items, broken, _, problem = read(path)
    assert set(items) == {f"s/{n}.png" for n in range(6) if n != which} and problem is None
    assert len(broken) == 1 and f"damaged at byte {offset:,}" in broken[0].reason
    assert all(item.location.read() == png(int(name[2])) for name, item in items.items())


def test_every_cut_is_noticed_and_costs_only_what_is_cut(tmp_path: Path) -> None:
    whole = shard(tmp_path / "s.tar", [(f"{n}.png", png(n)) for n in range(3)]).read_bytes()
    ends = []
    with tarfile.open(tmp_path / "s.tar") as archive:
        ends = [member.offset_data + member.size for member in archive.getmembers()]
    for cut in range(512, -(-ends[-1] // 512) * 512 + 1, 128):  # behind that lies only the end mark
        (tmp_path / "s.tar").write_bytes(whole[:cut])
        items, broken, _, problem = read(tmp_path / "s.tar")
        complete = {f"s/{n}.png" for n, end in enumerate(ends) if end <= cut}
        assert complete <= set(items)
        assert problem is not None or broken, f"cut at {cut} is passed over"
        for name in complete:
            assert items[name].location.read() == png(int(name[2]))


@pytest.mark.parametrize("between", [0, 512, 1 << 20])
@pytest.mark.parametrize("behind", [b"", b"signature" * 100])
def test_shards_that_were_put_together_are_read_whole(tmp_path: Path, between: int, behind: bytes) -> None:
    first, second = (shard(tmp_path / f"{n}.tar", [(f"{n}.png", png(n))]).read_bytes() for n in range(2))
    (tmp_path / "both.tar").write_bytes(first + bytes(between) + second + behind)
    items, broken, _, problem = read(tmp_path / "both.tar")
    assert sorted(items) == ["both/0.png", "both/1.png"] and broken == [] and problem is None


@pytest.mark.parametrize("data", [b"", b"no tar", b"\x1f\x8b" + bytes(2000), bytes(10240), b"x" * 5000])
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    source = open_source(str(tmp_path / "s.tar"))
    try:
        assert list(source.items()) == [] and data == bytes(10240)
    except DatasetError as error:
        assert "s.tar" in str(error)
    assert source.count() in (None, 0)


def test_counting_agrees_with_reading(tmp_path: Path) -> None:
    assert open_source(str(shard_of(tmp_path / "s.tar", 7))).count() == 7


def test_a_shard_that_is_away_is_not_called_damaged(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", [("1.png", png(1))])
    source = open_source(str(path))
    path.unlink()
    with pytest.raises(DatasetError, match=r"s\.tar: cannot be read \(No such file or directory\)$"):
        list(source.items())
