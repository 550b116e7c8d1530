"""Photos on their side: turned as asked, and in an existing gallery as its own photos were."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cir_infer import Engine, Gallery, Searcher
from cir_infer.commands.index import main
from tests.bundles import write_tiny_bundle


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    coarse.resize((40, 24), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95, exif=exif)
    return path


def index(*arguments: object) -> int:
    return main([*map(str, arguments), "--workers", "0", "--device", "cpu"])


def test_photos_are_turned_as_asked_and_then_as_the_gallery_has_them(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    first, second = photo(tmp_path / "one" / "a.jpg", 1), photo(tmp_path / "two" / "b.jpg", 2)
    gallery = tmp_path / "g"
    assert index(bundle, first.parent, "--gallery", gallery, "--exif-orientation") == 0
    assert index(bundle, second.parent, "--gallery", gallery) == 0
    upright = []
    for path in (first, second):
        with Image.open(path) as opened:
            stream = io.BytesIO()
            ImageOps.exif_transpose(opened).save(stream, "PNG")
            upright.append(stream)
    expected = Engine(bundle, device="cpu").encode_images(upright)
    with Gallery.open(gallery) as opened_gallery:
        snapshot = opened_gallery.snapshot()
        found = np.stack([snapshot.vector(snapshot.row(id) or 0) for id in ("a.jpg", "b.jpg")])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    with Searcher(bundle, gallery, device="cpu") as searcher:
        assert searcher.query(second, "is red").reference_id == "b.jpg"


def test_another_orientation_is_refused_in_an_existing_gallery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    folder = photo(tmp_path / "one" / "a.jpg", 1).parent
    assert index(bundle, folder, "--gallery", tmp_path / "g", "--exif-orientation") == 0
    capsys.readouterr()
    assert index(bundle, folder, "--gallery", tmp_path / "g", "--no-exif-orientation") == 1
    said = capsys.readouterr().err
    assert "photos were turned upright as their EXIF tag says" in said and "(--exif-orientation)" in said


THREAD = """
import sys, threading
from cir_infer.commands.index import main
def work():
    threading.main_thread().join()
    print(main(sys.argv[1:]), flush=True)
threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_indexing_in_a_thread_that_outlives_the_main_thread(tmp_path: Path, workers: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    for number in range(3):
        photo(tmp_path / "photos" / f"{number}.jpg", number)
    arguments = [str(bundle), str(tmp_path / "photos"), "--workers", workers, "--device", "cpu"]
    command = [sys.executable, "-c", THREAD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    with Gallery.open(bundle.with_suffix(".gallery")) as gallery:
        assert len(gallery) == 3
