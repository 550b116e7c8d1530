"""cir-query as a user types it: output, exit codes, one line for a failure."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from cir_infer import Engine, Gallery, Searcher
from cir_infer.commands.query import main
from cir_infer.console import common
from cir_infer.console.common import run_command
from cir_infer.errors import GalleryError
from tests.bundles import write_tiny_bundle


@pytest.fixture
def query(bundle: Path, gallery_path: Path, pictures: list[Path]) -> list[str]:
    return [str(bundle), str(pictures[0]), "is red"]


def test_a_table(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*query, "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["rank", "score"]
    assert len(lines) == 5


def test_json(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([*query, "and longer", "-k", "4", "--where", "colour = red", "--exclude", "sku-1", "--json"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == ["is red", "and longer"]
    assert len(answer["hits"]) == 4
    assert answer["hits"][0].keys() == {"id", "rank", "score", "terms", "metadata", "source"}
    assert all(hit["metadata"]["colour"] == "red" and hit["id"] != "sku-1" for hit in answer["hits"])


def test_flags_may_stand_anywhere(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, image, text = query
    outputs = []
    for order in (
        ["-k", "2", bundle, image, text],
        [bundle, "-k", "2", image, text],
        [bundle, image, "-k", "2", text],
    ):
        assert main(order) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1


def test_refining_an_item(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([query[0], "sku-5", "is red", "--refine", "--json", "-k", "40"]) == 0
    found = [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]
    assert len(found) == 39
    assert "sku-5" not in found
    assert main([query[0], "no-such-id", "is red", "--refine"]) == 1
    assert "no item 'no-such-id'" in capsys.readouterr().err


def test_a_contact_sheet(query: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main([*query, "--sheet", str(sheet)]) == 0
    assert str(sheet) in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((144, 144), abs=0.1)
    sheet.unlink()
    sheet.symlink_to(sheet.name)  # leads to itself: there is nothing that it could spoil
    assert main([*query, "--sheet", str(sheet)]) == 0
    assert sheet.stat().st_size > 0
    own = tmp_path / "own.png"
    Image.open(query[1]).save(own)
    picture = own.read_bytes()
    assert main([query[0], str(own), *query[2:], "--sheet", str(own)]) == 2
    assert "is read for what would take its place" in capsys.readouterr().err
    assert own.read_bytes() == picture
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for place in ("no/sheet.png", "folder.png", "pipe.png", "x" * 300 + "/sheet.png"):
        assert main([*query, "--sheet", str(tmp_path / place)]) == 2
        assert "expected a file in a folder that is there" in capsys.readouterr().err
    for name in ("sheet.txt", "sheet"):
        assert main([*query, "--sheet", str(tmp_path / name)]) == 2
        assert "name it with .png" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({0: "nothing.cir"}, 1, "does not exist"),
        ({1: "nothing.png"}, 1, "nothing.png does not exist"),
        ({2: " "}, 1, "empty"),
        ({3: "-k", 4: "0"}, 2, "k is 0"),
        ({3: "--where", 4: "colour ="}, 2, "where:"),
        ({3: "--gallery", 4: "nothing.gallery"}, 1, "nothing.gallery"),
        ({3: "--device", 4: "abacus"}, 2, "abacus"),
        ({3: "--no-such-flag"}, 2, "--no-such-flag"),
        ({3: "-k", 4: "many"}, 2, "many"),
    ],
)
def test_failures_are_one_line(
    query: list[str], capsys: pytest.CaptureFixture[str], change: dict[int, str], code: int, told: str
) -> None:
    words = {**dict(enumerate(query)), **change}
    try:
        found = main(list(words.values()))
    except SystemExit as usage:  # argparse leaves by itself
        found = int(usage.code or 0)
    output = capsys.readouterr()
    assert found == code
    assert told in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    if "usage:" not in output.err:
        assert len(output.err.strip().splitlines()) == 1


def run(*words: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from cir_infer.commands.query import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_as_a_process(query: list[str]) -> None:
    answer = run(*query, "--json", "-k", "1")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["hits"][0]["rank"] == 1
    assert answer.stderr == ""
    assert "example:" in run("--help").stdout
    assert run().returncode == 2
    assert run("--version").stdout.startswith("cir-query 0.")


def test_auto_says_what_it_took_when_asked(query: list[str]) -> None:
    answer = run(*query, "--verbose")
    assert answer.returncode == 0
    assert "device auto" in answer.stderr


def test_an_interrupt_and_a_closed_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @run_command
    def interrupted(arguments: object = None) -> int:
        raise KeyboardInterrupt

    assert interrupted() == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")


def test_output_into_a_pipe_that_closes(query: list[str]) -> None:
    program = "import sys; from cir_infer.commands.query import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-c", program, *query], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert process.returncode == 141  # as a shell says of SIGPIPE
    assert process.stderr == ""


def test_a_message_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    @run_command
    def failing(arguments: object = None) -> int:
        raise GalleryError("first\n  second")

    assert failing() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    common.print_json({"a": np.float32(0.5), "b": np.arange(2), "c": Path("x"), "d": "é"})
    assert json.loads(capsys.readouterr().out) == {"a": 0.5, "b": [0, 1], "c": "x", "d": "é"}
    with pytest.raises(ValueError, match="JSON"):
        common.print_json({"a": float("nan")})


def test_the_reference_is_named_and_left_out(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*query, "-k", "40"]) == 0
    output = capsys.readouterr()
    assert "sku-0" in output.out and "'sku-0' is the reference itself" in output.err
    assert main([*query, "-k", "40", "--exclude-reference"]) == 0
    output = capsys.readouterr()
    assert "sku-0 " not in output.out and output.err == ""
    assert main([*query, "-k", "40", "--exclude-reference", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["reference_id"] == "sku-0" and len(answer["hits"]) == 39


def test_unknown_words_are_told(query: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert main([*query[:2], "is mauvish", "-k", "2"]) == 0
    assert "unknown words count as one and the same: 'mauvish'" in caplog.text


def test_unknown_words_in_json(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*query[:2], "is mauvish", "-k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unknown_words"] == ["mauvish"]


def test_threads_and_orientation(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*query, "--threads", "1", "--no-exif-orientation"]) == 0
    capsys.readouterr()
    assert main([*query, "--threads", "0"]) == 2
    assert "threads" in capsys.readouterr().err
    assert main([*query, "--exif-orientation"]) == 1
    said = capsys.readouterr().err
    assert "photos were read as their pixels lie, and the bundle is opened for photos turned upright" in said
    assert "pass exif_orientation=False (--no-exif-orientation)" in said


def test_names_that_a_terminal_would_obey(
    bundle: Path, tmp_path: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with Gallery.create(tmp_path / "g", Engine(bundle, device="cpu")) as gallery:
        gallery.add(pictures[:2], ids=["two\nlines", "red\x1b[31m"], metadata=[{"a\x1b": "\x07"}, None])
    arguments = [str(bundle), str(pictures[0]), "is red", "--gallery", str(tmp_path / "g")]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 4
    assert not {"\x1b", "\x07"} & set(output.out + output.err)
    assert main([*arguments, "--json"]) == 0
    ids = [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]
    assert sorted(ids) == ["red\x1b[31m", "two\nlines"]


def test_what_stands_in_another_s_place_is_said(
    query: list[str], pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, image, text = query
    for order in ([image, bundle, text], [image, text, bundle]):
        assert main(order) == 2
        assert "the bundle (.cir) comes first" in capsys.readouterr().err
    assert main([bundle, text, image]) == 2
    assert "expected BUNDLE IMAGE TEXT" in capsys.readouterr().err
    assert main([bundle, "no.png", "is red " * 100]) == 1  # longer than any file's name
    assert "202 tokens" in capsys.readouterr().err


def test_words_without_quotes_are_said_to_be_captions(
    query: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*query[:2], "is", "red"]) == 0
    assert "2 captions, 'is', 'red'; a text of several words stands in quotes" in capsys.readouterr().err
    assert main([*query[:2], "is", "red", "and", "longer", "too"]) == 1
    said = capsys.readouterr().err
    assert "5 captions, 'is', 'red', 'and', 'longer', ...; a text of several words" in said
    assert main([*query, "is longer"]) == 0
    assert "quotes" not in capsys.readouterr().err


def test_a_filter_that_leaves_nothing_is_answered_with_what_there_is(
    query: list[str], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*query, "--where", "prize < 3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "no hits\n"
    assert "no item matches --where; the items have the fields 'colour', " in captured.err
    plain = tmp_path / "plain.gallery"
    with Gallery.create(plain, Engine(query[0], "cpu")) as gallery:
        gallery.add(pictures[:3], ids=["a", "b", "c"])
    assert main([*query, "--where", "price < 3", "--gallery", str(plain)]) == 0
    assert "the items have no metadata" in capsys.readouterr().err


def test_what_torch_saved_is_no_bundle_yet(
    query: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.pt"
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("model/data.pkl", b"")
    assert main([str(model), *query[1:]]) == 1
    assert "`cir-export model.pt -o model.cir` makes one of it" in capsys.readouterr().err


def test_a_sheet_that_cannot_be_written_costs_neither_the_answer_nor_the_last_sheet(
    query: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"of before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", read_only)
        patched.setattr(Path, "replace", read_only)
        assert main([*query, "-k", "3", "--sheet", str(sheet)]) == 1
    assert "sheet.png cannot be written: Read-only file system" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", full)
    assert main([*query, "-k", "3", "--sheet", str(sheet)]) == 1
    captured = capsys.readouterr()
    assert "sheet.png cannot be written: No space left on device" in captured.err
    assert captured.out.startswith("rank")
    assert sheet.read_bytes() == b"of before" and list(tmp_path.iterdir()) == [sheet]


@pytest.mark.parametrize(
    ("system", "asked", "text", "left_out"),
    [
        ("image-only", ["IMAGE"], None, None),
        ("image-only", ["IMAGE", "is red"], None, "this model reads no text; 'is red' is left out"),
        ("text-only", ["is red"], "is red", None),
        ("text-only", ["is red", "longer"], ["is red", "longer"], None),
        ("text-only", ["IMAGE", "is red"], "is red", "this model reads no image; "),
    ],
)
def test_a_system_that_reads_one_alone_is_asked_with_that(
    tmp_path: Path,
    pictures: list[Path],
    capsys: pytest.CaptureFixture[str],
    system: str,
    asked: list[str],
    text: str | list[str] | None,
    left_out: str | None,
) -> None:
    bundle = write_tiny_bundle(tmp_path / "a.cir", system)
    with Engine(bundle, device="cpu") as engine:
        Gallery.create(tmp_path / "a.gallery", engine).add(pictures[:4], ids=list("abcd"))
    given = [str(pictures[0]) if word == "IMAGE" else word for word in asked]
    sheet = tmp_path / "sheet.png"
    assert main([str(bundle), *given, "--json", "--explain", "--sheet", str(sheet)]) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["text"] == text and len(answer["hits"]) == 4 and sheet.stat().st_size > 1000
    assert answer["reference"] == (str(pictures[0]) if system == "image-only" else None)
    if left_out is not None:
        assert left_out in output.err and output.err.rstrip().endswith(" is left out")
    else:
        assert "left out" not in output.err
    plain = [bundle, tmp_path / "a.gallery"]
    with Searcher(*plain, device="cpu") as searcher:
        expected = searcher.query(pictures[0] if system == "image-only" else None, text)
    assert [hit["id"] for hit in answer["hits"]] == expected.ids


def test_a_system_that_reads_both_needs_both(query: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(query[:2])
    assert stopped.value.code == 2 and "BUNDLE, IMAGE and TEXT are needed" in capsys.readouterr().err
