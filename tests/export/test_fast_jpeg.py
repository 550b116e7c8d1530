"""`cir-export BUNDLE --fast-jpeg`: compared on the user's images, written only if close enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_export import fast_jpeg
from cir_export.commands.export import main
from cir_export.fast_jpeg import scale_jpegs
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import PixelInput, ScaledJpeg
from cir_infer.engine import Engine
from cir_infer.errors import ExportError, GalleryError, UsageError
from cir_infer.gallery import Gallery
from tests.bundles import write_tiny_bundle


def photograph(folder: Path, number: int, kind: str = "jpg", side: int = 96) -> Path:
    y, x = np.mgrid[:side, : side + number]
    light = 127 + 60 * np.sin(x / (11 + number)) + 60 * np.cos(y / (17 - number))
    pixels = np.stack([light, light[::-1], light[:, ::-1]], -1)
    path = folder / f"{number}.{kind}"
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        photograph(folder, number)
    return folder


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "exact.cir", "artemis")


def test_a_bundle_that_scales_is_written_with_its_report(
    exact: Path, photographs: Path, tmp_path: Path
) -> None:
    report = scale_jpegs(exact, tmp_path / "fast.cir", photographs)
    fast = Bundle(report.path).manifest
    assert isinstance(fast.image, PixelInput)
    assert fast.image.steps[0] == ScaledJpeg()
    assert report.parts == {8: 6}
    assert fast.parity["fast_jpeg"]["source"] == "photographs"
    assert fast.parity["fast_jpeg"]["parts"] == {"8": 6}
    assert 0.999 <= fast.parity["fast_jpeg"]["cosine_worst"] < 1
    one = photographs / "3.jpg"
    rows = [Engine(path, "cpu").encode_images([one])[0] for path in (exact, report.path)]
    assert not np.array_equal(*rows)
    assert np.dot(*rows) / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]) > 0.999


def test_its_rows_are_others_so_galleries_do_not_mix(exact: Path, photographs: Path, tmp_path: Path) -> None:
    fast = scale_jpegs(exact, tmp_path / "fast.cir", photographs).path
    Gallery.create(tmp_path / "shop.gallery", Engine(exact, "cpu")).close()
    with pytest.raises(GalleryError, match="encoded"):
        Gallery.open(tmp_path / "shop.gallery", Engine(fast, "cpu"))


def test_what_differs_too_much_is_not_written(
    exact: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_jpeg, "COSINE", 1.0)
    with pytest.raises(ExportError, match=r"changes too much.*cosine.* is asked") as raised:
        scale_jpegs(exact, tmp_path / "fast.cir", photographs)
    assert "agreement" not in str(raised.value)  # which passed
    assert not (tmp_path / "fast.cir").exists()


def test_a_broken_photograph_costs_itself(
    exact: Path, photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(photographs, tmp_path / "some")
    (tmp_path / "some" / "0.jpg").write_bytes(b"\xff\xd8 cut short")
    report = scale_jpegs(exact, tmp_path / "fast.cir", tmp_path / "some")
    assert report.fidelity.images == len(list(photographs.iterdir())) - 1
    assert "1 file of" in caplog.text and "cannot be read and is left out" in caplog.text


def test_images_that_show_nothing_are_refused(exact: Path, tmp_path: Path) -> None:
    for kind, side in (("png", 96), ("jpg", 12)):
        folder = tmp_path / kind
        folder.mkdir()
        photograph(folder, 0, kind, side)
        with pytest.raises(UsageError, match="half its size"):
            scale_jpegs(exact, tmp_path / "fast.cir", folder)


def test_bundles_that_cannot_scale_are_refused(exact: Path, photographs: Path, tmp_path: Path) -> None:
    features = write_tiny_bundle(tmp_path / "features.cir", "features")
    with pytest.raises(UsageError, match="features"):
        scale_jpegs(features, tmp_path / "fast.cir", photographs)
    fast = scale_jpegs(exact, tmp_path / "fast.cir", photographs).path
    with pytest.raises(UsageError, match="already"):
        scale_jpegs(fast, tmp_path / "faster.cir", photographs)


def test_the_command(
    exact: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "fast.cir"
    asked = [str(exact), "--fast-jpeg", "--images", str(photographs), "-o", str(target)]
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fingerprint"] == Bundle(target).manifest.fingerprint
    assert main(asked) == 0
    assert "6 at 1/8" in capsys.readouterr().out
    for wrong in (
        [str(exact), "--fast-jpeg"],
        ["model.pt", "--fast-jpeg", "--images", str(photographs)],
        [*asked[:-1], str(exact)],
        [*asked, "--precision", "float16"],
    ):
        assert main(wrong) == 2
        assert "--fast-jpeg" in capsys.readouterr().err or wrong[-1] == str(exact)
