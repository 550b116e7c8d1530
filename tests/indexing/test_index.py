from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cir_infer.commands import gallery as gallery_command
from cir_infer.commands.index import main
from cir_infer.engine import Engine
from cir_infer.errors import DeviceError, GalleryError
from cir_infer.gallery import Gallery
from cir_infer.indexing import run as indexing
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_source
from cir_infer.processes.children import child_command
from tests.bundles import write_tiny_bundle
from tests.indexing.support import assert_rows_are_those_of, folder_of, images_of, indexed, png, shard_of


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.cir")


@pytest.fixture
def engine(bundle: Path) -> Engine:
    return Engine(bundle)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_source_ends_in_the_gallery(tmp_path: Path, engine: Engine, workers: int) -> None:
    folder = folder_of(tmp_path / "f", 30)
    shard = shard_of(tmp_path / "s.tar", 5)
    gallery = Gallery.create(tmp_path / "g", engine)
    report = index(
        gallery, engine, [open_source(str(folder)), open_source(str(shard))], workers=workers, batch_size=8
    )
    assert report.added == 35 and report.broken == []
    shards = {f"s/{number:04d}.png": png(number) for number in range(5)}
    assert_rows_are_those_of(gallery, engine, images_of(30) | shards)
    row = gallery.snapshot().row("s/0003.png")
    assert row is not None and gallery.snapshot().metadata([row]) == [{"number": 3, "caption": "caption 3"}]
    assert gallery.verify().ok


def test_what_has_not_changed_is_passed_over(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 10)
    gallery = Gallery.create(tmp_path / "g", engine)
    sources = [open_source(str(folder))]
    index(gallery, engine, sources, workers=0)
    generation = gallery.snapshot().generation
    report = index(gallery, engine, sources, workers=0)
    assert (report.added, report.replaced, report.unchanged) == (0, 0, 10)
    assert gallery.snapshot().generation == generation
    (folder / "0.png").write_bytes(png(100))
    os.utime(folder / "0.png", ns=(1, 1))
    (folder / "new.png").write_bytes(png(101))
    (folder / "2.png").unlink()
    report = index(gallery, engine, sources, workers=0)
    assert (report.added, report.replaced, report.unchanged, report.removed) == (1, 1, 8, 0)
    report = index(gallery, engine, sources, workers=0, prune=True)
    assert (report.unchanged, report.removed) == (10, 1)
    images = images_of(10) | {"0.png": png(100), "new.png": png(101)}
    assert_rows_are_those_of(gallery, engine, {k: v for k, v in images.items() if k != "2.png"})


def test_changed_metadata_is_taken_over(tmp_path: Path, engine: Engine) -> None:
    folder_of(tmp_path / "f", 2)
    manifest = tmp_path / "m.jsonl"
    gallery = Gallery.create(tmp_path / "g", engine)
    for price in (10, 20):
        manifest.write_text(json.dumps({"id": "a", "image": "f/0.png", "price": price}) + "\n")
        index(gallery, engine, [open_source(str(manifest))], workers=0)
        assert gallery.snapshot().matching({"price": price}) == len(gallery) == 1


def test_pruning_is_limited_to_what_the_source_put_there(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 4)
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "sku", "image": "f/0.png"}) + "\n")
    gallery = Gallery.create(tmp_path / "g", engine)
    sources = [open_source(str(folder)), open_source(str(tmp_path / "m.jsonl"))]
    index(gallery, engine, sources, workers=0)
    gallery.add_vectors(ids=["other"], vectors=engine.encode_images([png(50)]))
    (folder / "0.png").unlink()
    report = index(gallery, engine, sources[:1], workers=0, prune=True)
    assert report.removed == 1 and sorted(gallery.ids) == ["2.png", "other", "sku", "sub/1.png", "sub/3.png"]


def test_an_unreadable_source_prunes_nothing(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 4)
    gallery = Gallery.create(tmp_path / "g", engine)
    sources = [open_source(str(folder)), open_source(str(shard_of(tmp_path / "s.tar", 3)))]
    index(gallery, engine, sources, workers=0)
    folder.rename(tmp_path / "unplugged")
    (tmp_path / "s.tar").write_bytes(b"damaged")
    report = index(gallery, engine, sources, workers=0, prune=True)
    assert len(report.broken) == 2 and report.removed == 0 and len(gallery) == 7


def test_broken_items_do_not_stop_the_rest(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 6)
    (folder / "bad.jpg").write_bytes(b"no image")
    (folder / "cut.png").write_bytes(png(1)[:200])
    (folder / "empty.png").write_bytes(b"")
    rows = [
        {"id": "good", "image": "f/0.png"},
        {"id": "huge", "image": "f/0.png", "x": 1 << 70},
        {"id": "good", "image": "f/2.png"},
        {"id": "", "image": "f/0.png"},
        {"id": "gone", "image": "f/gone.png"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gallery = Gallery.create(tmp_path / "g", engine)
    sources = [open_source(str(folder)), open_source(str(tmp_path / "m.jsonl"))]
    report = index(gallery, engine, sources, workers=1, batch_size=4)
    assert_rows_are_those_of(gallery, engine, images_of(6) | {"good": png(0)})
    reasons = {broken.id: broken.reason for broken in report.broken}
    assert set(reasons) == {"bad.jpg", "cut.png", "empty.png", "huge", "good", "", "gone"}
    assert "came before" in reasons["good"] and "64 bits" in reasons["huge"]
    assert all(broken.source for broken in report.broken)


HOSTILE = """
import os, time
from cir_infer.indexing import worker
from cir_infer.indexing.items import Location
read = Location.read
def hang():
    open({folder!r} + "/hangs-%d" % os.getpid(), "w").close()
    time.sleep(1000)
def hostile(self):
    if self.path.endswith("2.png"): {deed}
    return read(self)
Location.read = hostile
worker.main()
"""


@pytest.mark.parametrize(("deed", "batch_size"), [("os._exit(3)", 4), ("hang()", 1)])
def test_a_decoder_that_dies_or_hangs_costs_only_its_image(
    tmp_path: Path, engine: Engine, monkeypatch, deed: str, batch_size: int
) -> None:
    class Timer(threading.Timer):
        """Time is up for a decoder that hangs, by its number; one on a busy machine has all it needs."""

        def run(self) -> None:
            while not self.finished.wait(0.05):
                if (tmp_path / f"hangs-{self.function.__self__._process.pid}").exists():
                    self.function()
                    return

    # Stands in for native code that goes down with one image.
    (tmp_path / "hostile_worker.py").write_text(HOSTILE.format(deed=deed, folder=str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "cir_infer.indexing.decoding.child_command", lambda _: child_command("hostile_worker")
    )
    monkeypatch.setattr("cir_infer.indexing.decoding.threading.Timer", Timer)
    folder = folder_of(tmp_path / "f", 6)
    gallery = Gallery.create(tmp_path / "g", engine)
    report = index(gallery, engine, [open_source(str(folder))], workers=2, batch_size=batch_size)
    assert [(broken.id, "crashed or hung" in broken.reason) for broken in report.broken] == [("2.png", True)]
    assert_rows_are_those_of(gallery, engine, {k: v for k, v in images_of(6).items() if k != "2.png"})


def test_a_worker_that_cannot_start_is_an_error(tmp_path: Path, engine: Engine, monkeypatch) -> None:
    folder = folder_of(tmp_path / "f", 3)
    gallery = Gallery.create(tmp_path / "g", engine)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match="cannot be started"):
        index(gallery, engine, [open_source(str(folder))], workers=2)
    assert len(gallery) == 0


def test_a_script_without_a_main_guard_can_index(tmp_path: Path, bundle: Path) -> None:
    folder = folder_of(tmp_path / "f", 5)
    script = tmp_path / "script.py"
    script.write_text(
        "from cir_infer import Engine, Gallery\n"
        "from cir_infer.indexing.run import index\n"
        "from cir_infer.indexing.sources import open_source\n"
        f"engine = Engine({str(bundle)!r})\n"
        f"gallery = Gallery.create({str(tmp_path / 'g')!r}, engine)\n"
        f"print(index(gallery, engine, [open_source({str(folder)!r})], workers=2).added)\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert result.stdout == "5\n", result.stderr


def test_an_interrupted_run_keeps_what_was_encoded(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 20)
    gallery = Gallery.create(tmp_path / "g", engine)
    calls = []

    class Interrupted(Engine):
        def encode_prepared(self, batch):  # type: ignore[no-untyped-def]
            if len(calls) == 3:
                raise KeyboardInterrupt
            calls.append(len(batch))
            return super().encode_prepared(batch)

    with pytest.raises(KeyboardInterrupt):
        index(gallery, Interrupted(engine.path), [open_source(str(folder))], workers=0, batch_size=4)
    assert len(gallery) == sum(calls) == 12
    report = index(gallery, engine, [open_source(str(folder))], workers=0)
    assert (report.added, report.unchanged) == (8, 12)
    assert_rows_are_those_of(gallery, engine, images_of(20))


def command(*arguments: str) -> list[str]:
    code = "import sys; from cir_infer.commands.index import main; sys.exit(main())"
    return [sys.executable, "-c", code, *arguments]


def test_a_killed_run_is_continued(tmp_path: Path, bundle: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 60)
    code = (
        "import sys; from cir_infer.indexing import run; run.COMMIT_ROWS = 4\n"
        "from cir_infer.commands.index import main; sys.exit(main())"
    )
    arguments = [str(bundle), str(folder), "--gallery", str(tmp_path / "g"), "--batch-size", "4"]
    kills = 0
    for delay in (0.0, 0.02, 0.05, 0.1):
        with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (tmp_path / "g").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(delay)
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        with Gallery.open(tmp_path / "g", engine) as gallery:
            assert gallery.verify().ok
            assert_rows_are_those_of(
                gallery, engine, {name: images_of(60)[name] for name in gallery.ids} or {}
            )
    assert kills
    subprocess.run(command(*arguments), check=True)
    with Gallery.open(tmp_path / "g", engine) as gallery:
        assert_rows_are_those_of(gallery, engine, images_of(60))


def test_the_command_reports_and_lists_broken_images(tmp_path: Path, bundle: Path, capsys) -> None:
    folder = folder_of(tmp_path / "f", 3)
    gallery = tmp_path / "g"
    arguments = [str(bundle), str(folder), "--gallery", str(gallery), "--workers", "0"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "3 items (3 added" in said and "images/s" in said
    assert main(arguments) == 0
    assert "images/s" not in capsys.readouterr().out  # none was encoded
    alone = [str(bundle), str(folder_of(tmp_path / "alone", 1)), "--gallery", str(tmp_path / "one")]
    assert main(alone) == 0
    assert "one: 1 item (1 added" in capsys.readouterr().out
    (folder / "bad.png").write_bytes(b"?")
    assert main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["unchanged"] == 3 and report["broken"] == 1 and report["items"] == 3
    assert captured.err.count("\n") == 1 and "bad.png" in captured.err
    listed = [json.loads(line) for line in Path(report["broken_list"]).read_text().splitlines()]
    assert [entry["id"] for entry in listed] == ["bad.png"] and "bad.png" in listed[0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "'nowhere' does not exist; expected a folder, a pattern in quotes, a manifest"),
        ([], 2, "no source"),
        (["f", "--workers", "-1"], 2, "--workers"),
        (["f", "--reencode"], 2, "--reencode takes"),
        (["f/*.png", "--watch"], 2, "--watch takes folders"),
        (["--reencode"], 1, "expected the folder of a gallery"),
    ],
)
def test_wrong_usage_of_the_command(
    tmp_path: Path, bundle: Path, capsys, monkeypatch, arguments: list[str], code: int, message: str
) -> None:
    folder_of(tmp_path / "f", 1)
    monkeypatch.chdir(tmp_path)
    assert main([str(bundle), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_bundle_is_refused_with_both_fingerprints(
    tmp_path: Path, bundle: Path, engine: Engine, capsys
) -> None:
    folder = folder_of(tmp_path / "f", 2)
    assert main([str(bundle), str(folder), "--gallery", str(tmp_path / "g"), "--workers", "0"]) == 0
    other = Engine(write_tiny_bundle(tmp_path / "other.cir", system="features"))
    assert main([other.path, str(folder), "--gallery", str(tmp_path / "g")]) == 1
    error = capsys.readouterr().err
    assert engine.fingerprint in error and other.fingerprint in error


def test_watch_keeps_a_folder_in_step(tmp_path: Path, bundle: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 4)
    arguments = [str(bundle), str(folder), "--gallery", str(tmp_path / "g"), "--watch", "0.05", "--json"]
    with subprocess.Popen(
        command(*arguments, "--workers", "1"),
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with the signal ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            wait_for(lambda: Gallery.open(tmp_path / "g", engine), 4)
            with Gallery.open(tmp_path / "g", engine, read_only=True) as gallery:
                (folder / "late.png").write_bytes(png(77))
                (folder / "0.png").unlink()
                (folder / "cut.png").write_bytes(png(3)[:100])  # a copy in progress
                expected = {k: v for k, v in images_of(4).items() if k != "0.png"} | {"late.png": png(77)}
                wait_until(lambda: sorted(gallery.ids) == sorted(expected))
                (folder / "cut.png").write_bytes(png(3))  # and finished
                wait_until(lambda: "cut.png" in gallery)
                assert_rows_are_those_of(gallery, engine, expected | {"cut.png": png(3)})
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130


def wait_for(opening, count: int) -> None:
    def ready() -> bool:
        try:
            with opening() as gallery:
                return len(gallery) == count
        except GalleryError:
            return False

    wait_until(ready)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited two minutes in vain"
        time.sleep(0.02)


def test_looking_after_a_gallery(tmp_path: Path, engine: Engine, capsys) -> None:
    indexed(tmp_path, engine).close()
    path = str(tmp_path / "g")

    def run(*arguments: str, code: int = 0) -> dict:
        assert gallery_command.main([*arguments, "--json"]) == code
        out = capsys.readouterr().out
        return json.loads(out) if out else {}

    assert run("info", path, "--where", "number < 2")["matching"] == 2
    assert run("remove", path, "0.png", "2.png") == {"removed": 2, "items": 13}
    assert run("verify", path)["ok"] is True
    assert run("compact", path)["rows_dropped"] == 2
    assert run("export", path, str(tmp_path / "x.safetensors"))["items"] == 13
    assert run("import", str(tmp_path / "h"), str(tmp_path / "x.safetensors"))["items"] == 13
    assert run("remove", path, "nobody", code=1) == {}
    assert run("info", path, "--where", "number <", code=2) == {}
    damaged = next((tmp_path / "h" / "rows").iterdir())
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    assert run("verify", str(tmp_path / "h"), code=1)["problems"]


def test_commits_are_made_along_the_way(tmp_path: Path, engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 8)
    folder = folder_of(tmp_path / "f", 20)
    gallery = Gallery.create(tmp_path / "g", engine)
    sizes = []
    index(
        gallery,
        engine,
        [open_source(str(folder))],
        workers=0,
        batch_size=4,
        on_item=lambda: sizes.append(len(gallery)),
    )
    assert sorted(set(sizes)) == [8, 16, 20]
