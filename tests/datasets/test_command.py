"""`cir-bench scenes` from the command line."""

from __future__ import annotations

import json

import pytest

from cir_bench.commands import main
from cir_eval.datasets.scenes import ScenesDataset

FLAGS = ["--gallery", "20", "--test-queries", "2", "--validation-queries", "0", "--train-families", "0"]


def test_it_writes_a_gallery_alone_in_one_view(tmp_path, capsys):
    out = tmp_path / "demo"
    code = main(
        ["scenes", str(out), *FLAGS, "--views", "shaded", "--image-size", "40", "--jobs", "1", "--json"]
    )
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["splits"]["test"] == {"scenes": 20, "queries": 2}
    test = ScenesDataset.open(out).split("test")
    assert len(list(test.image_folder("shaded").glob("*.png"))) == 20
    assert not test.image_folder("flat").exists()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--gallery", "3"], 2, "ask for at least"),
        (["--jobs", "0"], 2, "--jobs 0"),
        (["--image-size", "4"], 2, "expected 32 to 1024"),
    ],
)
def test_wrong_flags_end_with_one_line(tmp_path, capsys, flags, code, words):
    assert main(["scenes", str(tmp_path / "x"), *FLAGS, *flags]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["scenes", str(tmp_path), *FLAGS]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["scene"])
    assert leaving.value.code == 2
    assert "scenes" in capsys.readouterr().err
