"""The data set of emoji: what code points say, what is held out, what is asked, and what lies on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cir_bench.commands import main
from cir_eval.datasets.emoji import layout, packages
from cir_eval.datasets.emoji.alike import alike, look_of
from cir_eval.datasets.emoji.building import build
from cir_eval.datasets.emoji.drawing import Plan, draw_queries
from cir_eval.datasets.emoji.emoji import Emoji, emoji_of
from cir_eval.datasets.emoji.held_out import held_out
from cir_eval.datasets.emoji.people import ALONE, GENDERED, HAIR, IRREGULAR, JOINED, ROLES
from cir_eval.datasets.emoji.pictures import SIZE, on_white
from cir_eval.datasets.emoji.reader import EmojiDataset
from cir_eval.datasets.emoji.things import (
    ANIMALS,
    ARROWS,
    COLOURED,
    EXPRESSIONS,
    FACES,
    HANDS,
    SHAPES,
    SIGNS,
    TONES,
)
from cir_eval.protocols import protocol
from cir_infer.errors import DatasetError, UsageError
from cir_infer.processes.locked_files import alone_in
from tests.datasets.emoji_packages import names, style_of

PLAN = Plan(train_families=30, validation_queries=20, test_queries=40)


def every_id() -> list[str]:
    """Code points of most emoji that can be asked about, as the packages have them."""
    ids = [code for table in (COLOURED, FACES, ANIMALS, ARROWS) for code in table]
    ids += [f"{0x1F550 + number:X}" for number in range(24)]
    figures = [("1F9D1",), ("1F468",), ("1F469",)]
    toned = [*((one,) for one in (*IRREGULAR, *ALONE, *HANDS)), *((one,) for one in GENDERED)]
    toned += [(one, sign) for one in GENDERED for sign in ("2642", "2640")]
    toned += [(*figure, thing) for figure in figures for thing in (*JOINED, *HAIR)]
    toned += [("1F6B6", "27A1"), ("1F6B6", "2640", "27A1"), ("1F46B",), ("1F46C",), ("1F91D",)]
    for first, *rest in toned:
        ids += [
            "-".join([first, *([tone] if tone else []), *(f"200D-{one}" for one in rest)]) for tone in TONES
        ]
    ids += [f"1FAF1-{a}-200D-1FAF2-{b}" for a, b in product(list(TONES)[1:], repeat=2) if a != b]
    return sorted({one.lower() for one in ids})


@pytest.fixture(scope="module")
def gallery() -> list[Emoji]:
    return emoji_of(every_id())


@pytest.fixture(scope="module")
def drawn(gallery: list[Emoji]) -> dict[str, list]:
    return draw_queries(gallery, Plan(train_families=400, validation_queries=300, test_queries=800))


@pytest.fixture(scope="module")
def few() -> list[Emoji]:
    return emoji_of(sorted(name.replace("-fe0f", "") for name in names()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two styles, the second of which lacks the banana."""
    tarballs = tmp_path_factory.mktemp("packages")
    styles = [style_of("noto", tarballs), style_of("twemoji", tarballs, skipped="1f34c")]
    root = tmp_path_factory.mktemp("data") / "emoji"
    build(root, styles, PLAN, tarballs)
    return root


@pytest.mark.parametrize(
    ("id_", "topic", "values"),
    [
        ("1f469-1f3fd-200d-1f692", "person", ("firefighter", "woman", "medium", "", "")),
        ("1f468-200d-1f9b0", "person", ("adult", "man", "", "red", "")),
        ("1f6b6-1f3ff-200d-2640-200d-27a1", "person", ("walking", "woman", "dark", "", "right")),
        ("1f9d4-1f3fb-200d-2642", "person", ("adult", "man", "light", "bearded", "")),
        ("1f476-1f3fb", "person", ("baby", "", "light", "", "")),
        ("1f448-1f3fe", "hand", ("pointing", "medium-dark", "left")),
        ("1f469-1f3fb-200d-1f91d-200d-1f468-1f3fc", "couple", ("holding hands", "woman and man", "light", "medium-light")),  # noqa: E501
        ("1f46b-1f3fb", "couple", ("holding hands", "woman and man", "light", "light")),
        ("1faf1-1f3fb-200d-1faf2-1f3ff", "handshake", ("light", "dark")),
        ("1f49a", "shape", ("heart", "green")),
        ("1f63f", "face", ("cat", "crying")),
        ("1f567", "clock", ("1",)),  # half past twelve
        ("2196", "arrow", ("up left",)),
        ("1f3fb", "", ()),
        ("1f34c", "", ()),
        ("1f468-200d-1f469-200d-1f466", "", ()),
    ],
)  # fmt: skip
def test_code_points_say_what_an_emoji_shows(id_: str, topic: str, values: tuple[str, ...]) -> None:
    assert emoji_of([id_]) == [Emoji(id_, topic, values)]
    assert Emoji.from_json(json.loads(json.dumps(Emoji(id_, topic, values).to_json()))).values == values


def test_an_emoji_is_yellow_where_it_comes_in_other_tones() -> None:
    plain, toned, zombie = emoji_of(["1f44d", "1f44d-1f3fb", "1f9df"])
    assert (plain["tone"], toned["tone"], zombie["tone"]) == ("yellow", "light", "")


def test_there_are_words_for_every_value() -> None:
    assert {
        *JOINED.values(),
        *GENDERED.values(),
        *ALONE.values(),
        *(one[0] for one in IRREGULAR.values()),
    } == set(ROLES)
    assert {sign for sign, _ in HANDS.values()} == set(SIGNS)
    assert {shape for shape, _ in COLOURED.values()} == set(SHAPES)
    assert {look for _, look in FACES.values()} == set(EXPRESSIONS)


def test_no_training_query_holds_what_is_kept_for_others(
    gallery: list[Emoji], drawn: dict[str, list]
) -> None:
    kept = {one.id: held_out(one) for one in gallery if one.topic}
    assert {kept[id_] for query in drawn["train"] for id_ in (query.reference, query.target)} == {""}
    for split in ("validation", "test"):
        assert {kept[query.target] for query in drawn[split]} == {split}
        assert all(query.reference != query.target for query in drawn[split])
    seen = {id_ for query in drawn["validation"] for id_ in (query.reference, *query.hard_negatives)}
    assert "test" not in {kept[id_] for id_ in seen}


def test_every_value_of_a_held_out_composition_is_seen_in_others(
    gallery: list[Emoji], drawn: dict[str, list]
) -> None:
    by_id = {one.id: one for one in gallery}
    seen = [by_id[id_] for query in drawn["train"] for id_ in (query.reference, query.target)]
    assert {one["tone"] for one in seen if one.topic == "person"} >= set(TONES.values())
    for target in {
        by_id[query.target] for query in drawn["test"] if by_id[query.target].topic in ("shape", "face")
    }:
        others = [one for one in seen if one.topic == target.topic]
        assert {target.values[0]} <= {one.values[0] for one in others}
        assert {target.values[1]} <= {one.values[1] for one in others}


def test_a_reference_and_a_sentence_have_one_answer(drawn: dict[str, list]) -> None:
    answers: dict[tuple[str, str], str] = {}
    for query in (query for queries in drawn.values() for query in queries):
        assert answers.setdefault((query.reference, query.text), query.target) == query.target, query


def test_hard_negatives_are_one_change_from_the_target(gallery: list[Emoji], drawn: dict[str, list]) -> None:
    by_id = {one.id: one for one in gallery}
    for query in drawn["test"]:
        assert {query.reference, query.target}.isdisjoint(query.hard_negatives)
        for id_ in query.hard_negatives:
            changed = by_id[query.target].differences(by_id[id_])
            assert len(changed) == 1 or changed == ("left", "right")


def test_the_seed_decides_the_queries(few: list[Emoji]) -> None:
    assert draw_queries(few, PLAN) == draw_queries(few, PLAN)
    assert draw_queries(few, PLAN) != draw_queries(few, replace(PLAN, seed=1))


def test_pictures_that_nobody_can_tell_apart_are_one_group() -> None:
    white = Image.new("RGB", (SIZE, SIZE), "white")
    pictures = {"a": white, "b": Image.new("RGB", (SIZE, SIZE), "blue"), "c": white.copy()}
    pictures["c"].putpixel((40, 40), (0, 0, 0))  # a dot
    pictures["d"] = Image.new("RGB", (SIZE, SIZE), (252, 252, 252))
    looks = {name: look_of(picture) for name, picture in pictures.items()}
    assert alike(looks) == []
    pictures["c"] = white.copy()
    pictures["c"].putpixel((40, 40), (200, 200, 200))
    assert alike({name: look_of(picture) for name, picture in pictures.items()}) == [["a", "c"]]


def test_what_a_style_draws_alike_is_correct_in_its_galleries_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    described = json.loads(layout.description(folder).read_text("utf-8"))
    queries = EmojiDataset.open(folder).split("test").queries
    first, other = queries[0], next(q for q in queries if q.target != queries[0].target and q.hard_negatives)
    described["styles"]["twemoji"]["alike"] = [
        [first.reference, first.target],
        [other.target, other.hard_negatives[0]],
    ]
    layout.description(tmp_path / "data").write_text(json.dumps(described), "utf-8")
    parts = {part.name: part for part in protocol("emoji").load(tmp_path / "data", "test")}
    noto, twemoji = ({query.key: query for query in parts[name].queries} for name in ("noto", "twemoji"))
    assert "0" in noto and "0" not in twemoji  # its change cannot be seen
    key = str(queries.index(other))
    assert [parts["noto"].ids[row] for row in noto[key].correct] == [other.target]
    assert {parts["noto"].ids[row] for row in twemoji[key].correct} == {other.target, other.hard_negatives[0]}
    assert parts["twemoji to noto"].queries == parts["noto"].queries
    assert parts["noto to twemoji"].queries == parts["twemoji"].queries


def test_pictures_lie_on_white_beside_their_licences(folder: Path) -> None:
    data = EmojiDataset.open(folder)
    assert data.styles == {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0"}
    assert not any(path.exists() for path in (layout.draft(folder), layout.tarballs(folder)))
    test = data.split("test")
    assert len(test.emoji) == len(names()) - 1  # what one style lacks is in no gallery
    for style in data.styles:
        assert "Licence: " + data.styles[style] in layout.notice(folder, style).read_text("utf-8")
        assert len(list((folder / style).glob("*.png"))) == len(test.emoji)
        pixels = np.asarray(Image.open(test.images(style)[0]))
        assert pixels.shape == (SIZE, SIZE, 3)
        assert (pixels[0] == 255).all()
        assert (pixels[SIZE // 2, SIZE // 2] != 255).any()


def test_a_gallery_holds_nothing_that_is_kept_for_a_later_split(folder: Path) -> None:
    data = EmojiDataset.open(folder)
    sizes = [len(data.split(split).emoji) for split in layout.SPLITS]
    assert sizes[0] < sizes[1] < sizes[2]
    assert not any(one.topic and held_out(one) for one in data.split("train").emoji)


def test_a_part_of_the_protocol_is_a_style_or_a_pair_of_them(folder: Path) -> None:
    parts = {part.name: part for part in protocol("emoji").load(folder, "test")}
    assert list(parts) == ["noto", "twemoji", "twemoji to noto", "noto to twemoji"]
    across = parts["noto to twemoji"]
    assert across.images is parts["twemoji"].images
    assert across.reference_images is parts["noto"].images
    assert across.queries == parts["twemoji"].queries
    assert all(query.correct.size == 1 and query.kind for query in across.queries)


def test_an_interrupted_build_goes_on_and_a_whole_one_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(DatasetError, match=r"is missing; fetch it from https://registry\.npmjs\.org/"):
        build(root, [packages.STYLES["noto"]], PLAN, tmp_path)
    layout.notice(root, "twemoji").parent.mkdir()  # which that attempt asked for too
    build(root, [style_of("noto", tmp_path)], PLAN, tmp_path)
    assert not (root / "twemoji").exists()
    assert EmojiDataset.open(root).split("test").queries
    with pytest.raises(DatasetError, match="not an empty folder"):
        build(root, [style_of("noto", tmp_path)], PLAN, tmp_path)


def test_what_is_no_data_set_is_said_to_be_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="build it: cir-bench emoji"):
        EmojiDataset.open(tmp_path)
    layout.description(tmp_path).write_text(
        '{"format": "cir-emoji", "version": 2, "seed": 0, "styles": {"a": {"licence": "b", "alike": []}}}'
    )
    with pytest.raises(DatasetError, match="version 2; this release reads cir-emoji version 1"):
        EmojiDataset.open(tmp_path)
    layout.description(tmp_path).write_text(layout.description(folder).read_text("utf-8"), "utf-8")
    for line, words in (
        ('{"id": "../../x"}', "is no file's name"),
        ('{"id": "1f49a", "topic": "weather"}', "topic 'weather'; expected one of"),
        ('{"topic": "shape"}', "line 1, is damaged"),
        ("[]", "line 1, is damaged"),
    ):
        layout.emoji(tmp_path).write_text(line + "\n", encoding="utf-8")
        with pytest.raises(DatasetError, match=words):
            EmojiDataset.open(tmp_path).split("test")
    layout.emoji(tmp_path).write_text('{"id": "1f34c"}\n', encoding="utf-8")
    layout.queries(tmp_path, "test").write_text(layout.queries(folder, "test").read_text("utf-8"), "utf-8")
    with pytest.raises(DatasetError, match="does not hold; generate the data set again"):
        EmojiDataset.open(tmp_path).split("test")
    with pytest.raises(DatasetError, match="has no split 'dev'"):
        EmojiDataset.open(tmp_path).split("dev")


def test_a_description_whose_styles_lead_elsewhere_describes_none(folder: Path, tmp_path: Path) -> None:
    whole = json.loads(layout.description(folder).read_text("utf-8"))
    style = {"licence": "a", "alike": []}
    for wrong in ({"../..": style}, {"": style}, {}, [], {"noto": {"licence": "a"}}, {"noto": 7}):
        layout.description(tmp_path).write_text(json.dumps({**whole, "styles": wrong}))
        with pytest.raises(DatasetError, match="does not describe a data set of emoji"):
            EmojiDataset.open(tmp_path)


def test_where_nothing_can_be_asked_for_nothing_is_drawn() -> None:
    drawn = draw_queries(emoji_of(["1f49a", "1f600", "270b-1f3fb"]), Plan(train_families=2))
    assert drawn == {"train": [], "validation": [], "test": []}


def test_a_picture_that_is_none_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="noto's 1f34c cannot be read"):
        on_white(b"no picture", ".png", "noto's 1f34c")
    Image.new("RGB", (SIZE + 1, 4)).save(tmp_path / "wide.png")
    with pytest.raises(DatasetError, match="73 x 4 pixels; expected at most 72"):
        on_white((tmp_path / "wide.png").read_bytes(), ".png", "it")


def test_a_drawing_is_drawn_onto_white() -> None:
    pytest.importorskip("resvg_py")
    path = '<path fill="#f00" d="M20 20h30v30h-30z"/>'
    square = f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{path}</svg>'
    pixels = np.asarray(on_white(square.encode(), ".svg", "it"))
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels[35, 35].tolist() == [255, 0, 0]
    assert pixels[0, 0].tolist() == [255, 255, 255]
    with pytest.raises(DatasetError, match="it cannot be read as a picture"):
        on_white(b"<svg", ".svg", "it")


def test_the_command_builds_and_says_the_licences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packages.STYLES, "noto", style_of("noto", tmp_path))
    asked = [
        "emoji",
        str(tmp_path / "out"),
        "--styles",
        "noto",
        "--from",
        str(tmp_path),
        "--train-families",
        "3",
    ]
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["styles"]["noto"]["licence"] == "Apache-2.0"
    assert main(asked) == 1
    error = capsys.readouterr().err
    assert "not an empty folder" in error and error.count("\n") == 1
    assert main(["emoji", str(tmp_path / "other"), "--train-families", "-1"]) == 2


def test_styles_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="each once"):
        build(tmp_path / "data", [packages.STYLES["noto"]] * 2, PLAN, tmp_path)


def test_a_data_set_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    """It was taken for an interrupted attempt, and the pictures that were just written were removed."""
    root, style = tmp_path / "data", style_of("noto", tmp_path)
    root.mkdir()
    layout.draft(root).touch()
    with (
        alone_in(root, DatasetError, "works"),
        pytest.raises(DatasetError, match="another process makes this"),
    ):
        build(root, [style], PLAN, tmp_path)
    assert [path.name for path in root.iterdir()] == [layout.draft(root).name]


def test_what_another_process_finishes_meanwhile_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft was looked at before the lock was there: what was finished passed for interrupted."""
    root, style = tmp_path / "data", style_of("noto", tmp_path)
    root.mkdir()
    layout.draft(root).touch()

    @contextmanager
    def after_the_other(*asked: Any) -> Iterator[None]:
        with alone_in(*asked):
            layout.draft(root).replace(layout.description(root))
            yield

    monkeypatch.setattr("cir_eval.datasets.emoji.building.alone_in", after_the_other)
    with pytest.raises(DatasetError, match="not an empty folder"):
        build(root, [style], PLAN, tmp_path)
    assert [path.name for path in root.iterdir()] == [layout.description(root).name]


def test_one_who_is_refused_leaves_nothing_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with alone_in(root, DatasetError, "works"), pytest.raises(DatasetError, match="another process"):
        build(root, [style_of("noto", tmp_path)], PLAN, tmp_path)
    assert not any(root.iterdir())
