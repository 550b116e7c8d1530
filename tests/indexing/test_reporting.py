"""What cir-index says, how often, and what it leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cir_infer.commands.index import main
from cir_infer.engine import Engine
from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.indexing.broken_list import BrokenList
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.items import Broken, Item, file_item
from cir_infer.indexing.pruning import Refused
from cir_infer.indexing.report import Report
from cir_infer.indexing.watching import News
from tests.bundles import write_tiny_bundle
from tests.indexing.support import folder_of, picture, png


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(write_tiny_bundle(tmp_path / "tiny.cir"))


def call(bundle: str, tmp_path: Path, *arguments: object) -> int:
    return main([bundle, *map(str, arguments), "--gallery", str(tmp_path / "g"), "--workers", "0"])


def listed(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("source", ["empty", "texts", "f/*.jpg", "m.csv", "m.jsonl", "s.tar"])
def test_nothing_found_is_a_failure_that_says_where(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    folder_of(tmp_path / "f", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.doc").touch()
    (tmp_path / "m.csv").write_text("image\n")
    (tmp_path / "m.jsonl").write_text("\n")
    (tmp_path / "s.tar").write_bytes(bytes(10240))
    assert call(bundle, tmp_path, tmp_path / source) == 1
    error = capsys.readouterr().err
    assert "no image was found" in error and source in error
    assert source != "texts" or "3 .doc" in error


def test_what_was_left_out_is_said_in_text_and_json(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "f", 2)
    (folder / "a.doc").touch()
    (folder / ".b.png").touch()
    assert call(bundle, tmp_path, folder) == 0
    assert "left out: 1 .doc, 1 hidden" in capsys.readouterr().out
    assert call(bundle, tmp_path, folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"] == {".doc": 1, "hidden": 1} and report["unchanged"] == 2
    assert report["moved"] == report["encoded"] == 0 and report["refused"] == []


def test_a_refused_removal_is_a_failure_that_names_the_flag(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "f", 8)
    assert call(bundle, tmp_path, folder) == 0
    for path in folder.rglob("[1-7].png"):
        path.unlink()
    assert call(bundle, tmp_path, folder, "--prune") == 1
    error = capsys.readouterr().err
    assert "7 of 8 items are gone" in error and "--prune-limit 7" in error and error.count("\n") == 1
    assert call(bundle, tmp_path, folder, "--prune", "--prune-limit", "7") == 0
    assert "7 removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f/*.png", "--prune"], "--prune takes folders"),
        (["f", "--prune-limit", "5"], "--prune-limit is for"),
        (["f", "--prune", "--prune-limit", "many"], "30%"),
        (["f", "--prefix", "/"], "--prefix is empty"),
        (["f", "--drop-broken"], "--drop-broken belongs to --reencode"),
        (["f", "--batch-size", "0"], "--batch-size is 0; expected a whole number of at least 1"),
        (["f", "--watch", "0"], "--watch is 0.0; expected seconds"),
        (["f", "--broken-list", "nowhere/list"], "cannot be written"),
        (["f", "--broken-list", "f"], "cannot be written"),
        (["f", "--broken-list", "f/0.png"], "holds something else"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    bundle: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    folder_of(tmp_path / "f", 1)
    monkeypatch.chdir(tmp_path)
    assert call(bundle, tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "g").exists(), "refused before the work"


def test_ids_get_prefixes(tmp_path: Path, bundle: str) -> None:
    one, two = folder_of(tmp_path / "one", 1), folder_of(tmp_path / "two", 1)
    (two / "0.png").write_bytes(png(5))
    assert call(bundle, tmp_path, f"a={one}", two, "--prefix", "rest/") == 0
    assert call(bundle, tmp_path, two) == 0
    with Gallery.open(tmp_path / "g") as gallery:
        assert sorted(gallery.ids) == ["0.png", "a/0.png", "rest/0.png"]
    assert call(bundle, tmp_path, one) == 1
    assert call(bundle, tmp_path, one, "--replace") == 0


def test_the_list_shows_what_is_broken_now(tmp_path: Path, bundle: str) -> None:
    folder, path = folder_of(tmp_path / "f", 2), tmp_path / "g.broken.jsonl"
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    for name in (str(folder / "a.png"), odd):
        Path(name).write_bytes(b"no image")
    assert call(bundle, tmp_path, folder) == 1
    names = [entry["id"] for entry in listed(path)]
    assert sorted(names) == sorted(["a.png", "caf\udce9.png"]), "a name that is no Unicode is still that name"
    Path(odd).unlink()
    (folder / "a.png").unlink()
    assert call(bundle, tmp_path, folder) == 0
    assert not path.exists()
    (folder / "b.png").write_bytes(b"no image")
    assert call(bundle, tmp_path, folder, "--broken-list", tmp_path / "mine") == 1
    assert len(listed(tmp_path / "mine")) == 1
    (folder / "b.png").unlink()
    assert call(bundle, tmp_path, folder, "--broken-list", tmp_path / "mine") == 0
    assert (tmp_path / "mine").read_text() == ""


def test_a_list_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "f", 2)
    for number in range(30):
        (folder / f"bad{number}.png").write_bytes(b"no image")
    (tmp_path / "g.broken.jsonl").mkdir()
    assert call(bundle, tmp_path, folder) == 1
    captured = capsys.readouterr()
    assert "2 added" in captured.out and "cannot be written" in captured.err
    assert 15 < captured.err.count("no image") + captured.err.count("bad") < 80
    assert call(bundle, tmp_path, folder, "--json") == 1
    assert json.loads(capsys.readouterr().out)["broken_list"] is None


def test_a_list_that_was_named_is_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder that is there"):
        BrokenList(tmp_path / "missing" / "list", named=True)
    listing = BrokenList(tmp_path / "missing" / "list", named=False)
    assert listing.write([Broken("a", "b", "c")]) == "No such file or directory"
    assert BrokenList(tmp_path / "list", named=False).write([]) is None
    os.mkfifo(tmp_path / "pipe")  # whoever writes to it waits for somebody who reads
    with pytest.raises(UsageError, match="it is a pipe, no file"):
        BrokenList(tmp_path / "pipe", named=True)
    assert (
        BrokenList(tmp_path / "pipe", named=False).write([Broken("a", "b", "c")]) == "it is a pipe, no file"
    )
    assert BrokenList(Path("/dev/null"), named=True).write([Broken("a", "b", "c")]) is None


def test_nothing_that_a_terminal_obeys_is_printed(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "f\x1b[31m", 1)
    (folder / "a\x1b[2J\nb\r.png").write_bytes(b"no image")
    (folder / "c.\x1b[2J").touch()
    assert main([bundle, str(folder), "--gallery", f"{folder}/g\x07", "--workers", "0"]) == 1
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "\x1b" not in said and "\x07" not in said and "\r" not in said
    assert captured.err.count("\n") == 1 and captured.out.count("\n") == 2


# ---- watching


def report_of(*broken: Broken, **counts: int) -> Report:
    report = Report(**counts)
    report.broken = list(broken)
    return report


def test_each_thing_is_told_once() -> None:
    news = News()
    odd, bad = Broken("x", "/x", "cannot be listed"), Broken("a", "/a", "no image", "1-1")
    first = report_of(odd, bad)
    first.given_up = [("a", "1-1")]
    assert news.take(first) and first.broken == [odd, bad]
    for _ in range(3):
        again = report_of(odd)
        again.passed_over = [("a", "1-1")]
        assert not news.take(again) and again.broken == []
        assert set(news.broken) == {odd, bad}, "the list still has both"
        assert news.known_broken == {("a", "1-1")}
    other = Broken("x", "/x", "cannot be examined")
    changed = report_of(other)
    changed.passed_over = [("a", "1-1")]
    assert news.take(changed) and changed.broken == [other]
    mended = report_of(added=1)
    assert news.take(mended) and news.broken == [] and news.known_broken == set()
    back = report_of(odd)
    assert news.take(back) and back.broken == [odd], "what was mended and breaks again is news"


def test_that_nothing_is_broken_any_more_is_news() -> None:
    news = News()
    news.take(report_of(Broken("x", "/x", "cannot be listed")))
    assert news.take(report_of()) and not news.take(report_of())


def test_a_refusal_is_told_once() -> None:
    news = News()
    for expected in (True, False, False):
        report = report_of()
        report.refused = [Refused("/f", 12, 12, "gone")]
        assert news.take(report) == expected and bool(report.refused) == expected
    report = report_of()
    report.refused = [Refused("/f", 13, 13, "gone")]
    assert news.take(report)


def test_what_is_left_out_is_news_only_when_it_changes() -> None:
    news = News()
    for count, expected in ((1, True), (1, False), (2, True), (0, True), (0, False)):
        report = report_of()
        report.left_out.update({".doc": count} if count else {})
        assert news.take(report) == expected


# ---- decoding processes


def test_what_decoders_print_stays_in_their_process(tmp_path: Path, bundle: str, capfd) -> None:
    data = bytearray()
    picture(1, (64, 64)).save(tmp_path / "a.tif", "TIFF", compression="tiff_lzw")
    data += (tmp_path / "a.tif").read_bytes()
    data[200:4000] = bytes(3800)
    (tmp_path / "a.tif").write_bytes(data)
    picture(2).convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    items = [file_item(name, str(tmp_path / name)) for name in ("a.tif", "palette.png")]
    with Decoders(Engine(bundle).manifest, 1) as decoders:
        (batch,) = decoders.batches([item for item in items if isinstance(item, Item)], 8)
    assert [item.id for item in batch.items] == ["palette.png"] and len(batch.digests) == 1
    assert [item.id for item, _ in batch.failed] == ["a.tif"]
    assert capfd.readouterr() == ("", "")


def test_workers_are_out_of_reach_of_the_terminals_interrupt(bundle: str) -> None:
    with Decoders(Engine(bundle).manifest, 1) as decoders:
        list(decoders.batches([Item("x", file_item("x", __file__).location, "")], 1))  # type: ignore[union-attr]
        (worker,) = decoders._running
        assert os.getpgid(worker._process.pid) != os.getpgid(0)
