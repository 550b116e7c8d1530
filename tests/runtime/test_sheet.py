"""The contact sheet: one is drawn for every answer, with the pictures in it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_infer import Hit, Hits
from cir_infer.bundle.manifest import PixelInput, Resize, ToRgb
from cir_infer.drawing.sheet import contact_sheet
from cir_infer.errors import UsageError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.serving.thumbnails import Thumbnails

TERMS = {"implicit_similarity": 0.9, "explicit_matching": -0.1}


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (30, 20)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def share(sheet: Image.Image, colour: tuple[int, int, int]) -> float:
    pixels = np.asarray(sheet, np.int16)
    return float((np.abs(pixels - colour).max(axis=2) <= 2).mean())


def test_every_picture_is_on_it(tmp_path: Path) -> None:
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10)]
    files = [picture(tmp_path / f"{i}.png", colour) for i, colour in enumerate(colours)]
    hits = Hits(Hit(str(i), i + 1, 0.8, TERMS, {}, file) for i, file in enumerate(files[1:]))
    sheet = contact_sheet(files[0], "is red", hits)
    assert sheet.mode == "RGB"
    assert share(sheet, colours[0]) > share(sheet, colours[1]) > 0.02
    assert share(sheet, colours[1]) == pytest.approx(share(sheet, colours[3]), rel=0.05)
    framed = contact_sheet(files[0], "is red", hits, correct=["1"])
    assert share(framed, (0x2E, 0x7D, 0x4F)) > share(sheet, (0x2E, 0x7D, 0x4F))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 23, 150])
def test_any_number_of_hits(count: int) -> None:
    hits = Hits(Hit(f"id {i}", i + 1, 0.5, TERMS) for i in range(count))
    sheet = contact_sheet(np.zeros((4, 4, 3), np.uint8), "is red", hits)
    assert sheet.width > 500
    assert sheet.height < 13_000


@pytest.mark.parametrize(
    "text", ["", None, ["one", "two"], "深い赤 Красный", "a" * 100_000, "word " * 10_000, "🙂", "a\nb"]
)
def test_any_text(text: str | list[str] | None) -> None:
    assert contact_sheet(b"not an image", text, Hits([])).width > 500


def test_missing_broken_and_odd_pictures(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"junk")
    Image.new("RGBA", (4, 300), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("P", (300, 4)).save(tmp_path / "flat.png")
    sources = [None, "/nowhere.png", *(str(path) for path in sorted(tmp_path.iterdir()))]
    hits = Hits(
        Hit("x" * 300, i + 1, 0.5, {"similarity": 0.5}, {}, source) for i, source in enumerate(sources)
    )
    sheet = contact_sheet(hits[0], "is red", hits)
    assert share(sheet, (255, 0, 0)) > 0, "encoders take what lies below transparency"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_picture_is_drawn_as_it_is_encoded(tmp_path: Path, mode: str) -> None:
    """A white logo on nothing was drawn white on the card, and a black one on black."""
    if mode == "P":
        image = Image.new("P", (40, 40), 3)
        image.putpalette([*(0,) * 9, 10, 160, 60])
        image.save(tmp_path / "clear.png", transparency=3)
    else:
        below = (10, 160, 60, 0) if mode == "RGBA" else (90, 0)
        Image.new(mode, (40, 40), below).save(tmp_path / "clear.png")
    spec = PixelInput(40, 40, (ToRgb(), Resize((40, 40), "bilinear")))
    seen = tuple(int(value) for value in preprocess(tmp_path / "clear.png", spec)[0, 0])
    hit = Hit("clear", 1, 0.5, TERMS, {}, str(tmp_path / "clear.png"))
    assert share(contact_sheet(b"", "is red", Hits([hit])), seen) > 0.05
    drawn = Thumbnails(10**6).picture(hit.source or "", 128, "").jpeg
    with Image.open(io.BytesIO(drawn or b"")) as thumbnail:
        assert np.abs(np.asarray(thumbnail, np.int16) - seen).max() < 4


def test_features_have_no_picture() -> None:
    assert contact_sheet(np.zeros(12, np.float32), "is red", Hits([])).width > 500


def test_words_nobody_knows_and_the_held_reference_are_on_it() -> None:
    hits = [Hit("a", 1, 0.5, TERMS), Hit("b", 2, 0.4, TERMS)]
    image = np.zeros((4, 4, 3), np.uint8)
    plain = np.asarray(contact_sheet(image, "is red", Hits(hits)))
    for told in (Hits(hits, ["mauvish", "paisley"]), Hits(hits, reference_id="a"), Hits(hits, ["x" * 5000])):
        sheet = np.asarray(contact_sheet(image, "is red", told))
        assert sheet.shape != plain.shape or (sheet != plain).any()


@pytest.mark.parametrize("odd", ["two\nlines", "\x1b[31m\x00", "\udce9", "x" * 100_000, "", "\n", "\u202e"])
def test_names_of_any_letters_are_drawn(odd: str) -> None:
    hits = Hits([Hit(odd, 1, 0.5, {odd: 0.5, "b": 0.1}, {}, odd)], [odd], odd)
    assert contact_sheet(odd, odd, hits, correct=[odd]).width > 500


def test_what_is_drawn_is_looked_at(tmp_path: Path) -> None:
    assert contact_sheet(None, None, [Hit("a", 1, 0.5, TERMS)]).width > 500  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="correct is one id"):
        contact_sheet(None, None, Hits([]), correct="a")
    with pytest.raises(UsageError, match="list of Hits"):
        contact_sheet(None, None, 5)  # type: ignore[arg-type]


def test_a_reference_in_an_open_file_is_drawn(tmp_path: Path) -> None:
    path = Path(picture(tmp_path / "a.png", (200, 10, 10)))
    buffer = io.BytesIO(path.read_bytes())
    buffer.seek(10)
    for reference in (path, buffer, path.read_bytes()):
        assert share(contact_sheet(reference, "is red", Hits([])), (200, 10, 10)) > 0.02
