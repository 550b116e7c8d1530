"""What people look at: colours that say the sign twice, maps where they belong, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cir_infer import Hit, Hits
from cir_infer.commands.query import main
from cir_infer.drawing.explained import INNER, TILE
from cir_infer.drawing.heat import AGAINST, coloured, on_picture, scale_of, values_on
from cir_infer.drawing.page import MARGIN, PANEL, SCALE, TERM_COLOURS, Page, notes_on
from cir_infer.drawing.sheet import contact_sheet
from cir_infer.errors import UsageError
from cir_infer.explaining import Heat
from tests.explaining.conftest import Open

# Machado et al., 2009: what people without one kind of cone see, on linear light.
BLINDNESS = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lightness(rgb: Any) -> Any:
    """CIE L* of sRGB colours."""
    encoded = np.asarray(rgb, float) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("colour", TERM_COLOURS)
def test_equal_steps_of_a_value_are_equal_steps_to_the_eye(colour: str) -> None:
    ramp = coloured(np.linspace(0, 1, 11)[None], colour, 0.9)[0]
    steps = -np.diff(lightness(ramp))
    assert steps.min() > 0.7 * steps.mean() and steps.max() < 1.4 * steps.mean()
    assert ramp[0].max() - ramp[0].min() <= 2, "zero has no colour"


@pytest.mark.parametrize("colour", TERM_COLOURS)
def test_the_sign_shows_in_another_hue_and_without_any(colour: str) -> None:
    above, below = (coloured(np.full((40, 40), sign * 0.8), colour, 0.9) for sign in (1, -1))
    assert len(np.unique(above.reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(below.reshape(-1, 3), axis=0)) == 2, "hatched"
    lines = lightness(below.reshape(-1, 3))
    assert lines.max() - lines.min() > 4, "also in grey"
    assert np.abs(above[0, 0].astype(int) - below.reshape(-1, 3)[np.argmin(lines)]).max() > 50
    for matrix in BLINDNESS.values() if colour in TERM_COLOURS[:2] else ():  # of others the hatching tells
        seen = [
            np.clip((one[20, 20] / 255.0) ** 2.2 @ np.transpose(matrix), 0, 1) ** 0.4545
            for one in (above, below)
        ]
        assert np.abs(seen[0] - seen[1]).max() > 0.08
    assert AGAINST not in TERM_COLOURS


def test_a_map_lies_where_its_box_says() -> None:
    """A grid over the right half of a picture, and beyond its edge below."""
    grid = np.array([[1.0, -2.0], [0.0, 4.0]], np.float32)
    heat = Heat(grid, 3.0, 0.0, (50.0, 0.0, 100.0, 120.0), (100, 60), "shares")
    values = values_on(heat, 100, 60)
    assert (values[:, :50] == 0).all() and (values[:, 50:75] == 1).all() and (values[:, 75:] == -2).all()
    picture = Image.new("RGB", (100, 60), (255, 255, 255))
    drawn = np.asarray(on_picture(picture, heat, 4.0, TERM_COLOURS[0]))
    assert np.ptp(drawn[30, 20].astype(int)) <= 2 < np.ptp(drawn[30, 60].astype(int))
    assert np.asarray(on_picture(picture, heat, 0.0, TERM_COLOURS[0])).std() == 0, "no scale, no colour"
    assert scale_of([grid, -2 * grid]) == 8.0 and scale_of([]) == 0.0
    assert scale_of([np.full((2, 2), 1e-8, np.float32)]) == 0.0


@pytest.mark.parametrize("system", ["artemis", "cosine", "text-only"])
@pytest.mark.parametrize("explained", [True, False])
def test_a_sheet_says_why(opened: Open, pictures: list[Path], system: str, explained: bool) -> None:
    searcher = opened(system, explained)
    reference = pictures[1] if searcher.engine.needs_reference else None
    hits = searcher.query(reference, "is red and zzz", k=5)
    plain, why = (contact_sheet(reference, "is red and zzz", hits, explain=on) for on in (False, True))
    assert why.mode == "RGB" and why.size != plain.size
    again = contact_sheet(reference, "is red and zzz", hits, explain=True)
    assert why.tobytes() == again.tobytes()


def test_a_term_that_no_part_of_the_reference_moves_says_so(opened: Open, pictures: list[Path]) -> None:
    """Its map is without a colour, and no colour by itself may be anything."""
    hits = opened().query(pictures[1], "is red", k=2)
    why = hits.explain(0)
    assert why.unmoved == ("explicit_matching",) and why.as_dict()["unmoved"] == ["explicit_matching"]
    sheet = np.asarray(contact_sheet(pictures[1], "is red", hits, explain=True))
    word = Page(TILE, TILE)
    word.tile("no part of it\nmoves this term", 0, 0, (PANEL - INNER) // 2)
    expected = np.asarray(word.image)[20:-40, 20:-40]
    x, y = (MARGIN + (PANEL - INNER) // 2 + INNER) * SCALE, (MARGIN + 22 + PANEL + 26 + 22) * SCALE
    found = sheet[y : y + TILE * SCALE, x : x + TILE * SCALE][20:-40, 20:-40]
    np.testing.assert_array_equal(found, expected)


def test_what_limits_an_answer_is_told_with_reasons_and_without(opened: Open, pictures: list[Path]) -> None:
    hits = opened().query(pictures[1], "is red", k=2)
    drawn = {}
    for limits in ({}, {"reference_id": "sku-1"}, {"reference_id": "sku-1", "coverage": 0.9999}):
        for name in ("reference_id", "coverage"):
            setattr(hits, name, limits.get(name, {"reference_id": None, "coverage": 1.0}[name]))
        told = notes_on(hits)
        assert len(told) == len(limits)
        assert all("100%" not in note for note in told)
        for on in (False, True):
            drawn[on, len(limits)] = np.asarray(contact_sheet(pictures[1], "is red", hits, explain=on))
    for on in (False, True):
        assert len({drawn[on, count].tobytes() for count in range(3)}) == 3


def test_a_hit_without_its_picture_says_so_on_its_card(
    opened: Open, pictures: list[Path], tmp_path: Path
) -> None:
    searcher = opened()
    alone = tmp_path / "alone.png"
    alone.write_bytes(pictures[3].read_bytes())
    searcher.gallery.add([alone], ids=["alone"])
    hits = searcher.query(alone, "is red", k=3)
    reference = alone.read_bytes()
    hits = searcher.query(reference, "is red", k=3)
    alone.unlink()
    assert contact_sheet(reference, "is red", hits, explain=True).width > 1000
    with pytest.raises(UsageError, match="do not know how they were found"):
        contact_sheet(reference, "is red", Hits([Hit("a", 1, 0.5, {"similarity": 0.5})]), explain=True)
    with pytest.raises(UsageError, match="explain is 'yes'"):
        contact_sheet(reference, "is red", hits, explain="yes")  # type: ignore[arg-type]
    assert contact_sheet(reference, "is red", Hits([]), explain=True).width > 300


def test_the_command(opened: Open, pictures: list[Path], tmp_path: Path, capsys: Any) -> None:
    searcher = opened()
    asked = [searcher.engine.path, str(pictures[1]), "is red", "-k", "3", "--explain"]
    asked += ["--gallery", str(searcher.gallery.path)]
    searcher.gallery.close()
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "why 'sku-" in said and "cells for" in said and "red " in said
    assert (
        main([*asked, "--json", "--sheet", str(tmp_path / "why.png"), "--balance", "implicit_similarity=2"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert (tmp_path / "why.png").stat().st_size > 10_000
    for hit, one in zip(answer["hits"], answer["explanations"], strict=True):
        assert one["id"] == hit["id"] and one["balance"] == {"implicit_similarity": 2.0}
        for name, heat in one["terms"].items():
            assert np.shape(heat["map"]) == (8, 8)
            assert np.sum(heat["map"]) + heat["rest"] == pytest.approx(hit["terms"][name], abs=1e-4)
        assert [word["text"] for word in one["words"]] == ["is", "red"]
