"""The generated data set: its invariants on any seed, its determinism, its files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_eval.datasets.dice import Dice
from cir_eval.datasets.scenes import ScenesDataset, layout
from cir_eval.datasets.scenes.generation import Plan, draw_splits, generate
from cir_eval.datasets.scenes.modifications import KINDS, describe, draw_edit
from cir_eval.datasets.scenes.rendering import VIEWS, render
from cir_eval.datasets.scenes.scene import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Object,
    Scene,
    differences,
)
from cir_infer.errors import DatasetError, UsageError
from tests.datasets.interpreter import carry_out

objects = st.builds(Object, st.sampled_from(SHAPES), st.sampled_from(COLOURS), st.sampled_from(SIZES))
scenes = (
    st.lists(st.none() | objects, min_size=9, max_size=9)
    .map(lambda cells: Scene(tuple(cells)))
    .filter(lambda s: 1 <= len(s.occupied) <= 8)
)

SMALL = Plan(
    train_families=2,
    validation_queries=4,
    test_queries=6,
    gallery=40,
    hard_negatives=3,
    image_size=48,
)


@settings(max_examples=400)
@given(scenes, st.sampled_from(KINDS), st.integers(0, 10**6))
def test_a_sentence_and_its_reference_determine_the_target(scene, kind, seed):
    dice = Dice(seed)
    edit = draw_edit(scene, kind, dice)
    assert carry_out(scene, describe(scene, edit, dice)) == edit.apply(scene)
    assert differences(scene, edit.apply(scene)) == 1


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_invariants_of_every_seed(seed):
    splits = draw_splits(
        Plan(train_families=6, validation_queries=24, test_queries=60, gallery=320, seed=seed)
    )
    for name, count in (("train", 6 * 32), ("validation", 24), ("test", 60)):
        split = splits[name]
        scene = dict(zip(split.ids, split.scenes, strict=True))
        assert len(split.queries) == count
        assert len(set(split.scenes)) == len(split.scenes) == len(scene)
        for query in split.queries:
            assert carry_out(scene[query.reference], query.text) == scene[query.target]
            assert scene[query.target] != scene[query.reference]
            assert query.kind in KINDS
            assert len(query.hard_negatives) == (0 if name == "train" else 3)
            assert (query.family is not None) == (name == "train")
            for negative in query.hard_negatives:
                assert negative not in (query.reference, query.target)
                assert differences(scene[negative], scene[query.target]) == 1
        if name != "test":
            assert not any(s.held_out for s in split.scenes)
    test = splits["test"]
    held_out = {i for i, s in zip(test.ids, test.scenes, strict=True) if s.held_out}
    assert all(q.target in held_out for q in test.queries)
    assert len(test.scenes) == 320


def test_a_family_holds_every_subset_of_its_edits_and_every_step_between_them():
    split = draw_splits(SMALL)["train"]
    scene = dict(zip(split.ids, split.scenes, strict=True))
    for family in range(2):
        queries = [q for q in split.queries if q.family == family]
        members = {scene[i] for q in queries for i in (q.reference, q.target)}
        assert len(members) == 16
        assert len({(q.reference, q.target) for q in queries}) == len(queries) == 32
        # Every target but the last has a further query from it: a scene one edit away from it.
        assert len({q.reference for q in queries}) == 15


def test_every_shape_and_colour_is_held_out_once_but_seen_in_others():
    assert {s for s, _ in HELD_OUT} == set(SHAPES)
    assert {c for _, c in HELD_OUT} == set(COLOURS)
    seen = [o for s in draw_splits(Plan(train_families=20))["train"].scenes for o in s.objects]
    assert {o.shape for o in seen} == set(SHAPES)
    assert {o.colour for o in seen} == set(COLOURS)


def test_differences_count_attributes():
    cube, ball = Object("cube", "red", "large"), Object("sphere", "blue", "small")
    scene = Scene((cube, None, ball, None, None, None, None, None, None))
    assert differences(scene, scene) == 0
    assert differences(scene, scene.moved(0, 8)) == 1
    assert differences(scene, scene.put(0, None)) == 1
    assert differences(scene, scene.put(0, Object("cone", "green", "large"))) == 2
    assert differences(scene, scene.moved(0, 8).put(4, ball)) == 2


_REFERENCE_SCENE = Scene(
    (
        Object("cube", "red", "large"),
        None,
        Object("sphere", "orange", "small"),
        Object("cylinder", "yellow", "large"),
        Object("cone", "green", "small"),
        None,
        Object("ring", "cyan", "large"),
        Object("star", "blue", "large"),
        Object("sphere", "purple", "large"),
    )
)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("flat", "82f976df9ec39e2a"),
        ("shaded", "97f0dd0332726060"),
    ],
)
def test_pixels_are_the_same_on_every_machine(view, expected):
    picture = render(_REFERENCE_SCENE, view, 128)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    assert hashlib.sha256(picture.tobytes()).hexdigest()[:16] == expected


def test_no_object_changes_by_how_it_is_computed():
    digest = hashlib.sha256()
    for shape in SHAPES:
        for size in SIZES:
            scene = Scene((None,) * 4 + (Object(shape, "cyan", size),) + (None,) * 4)
            digest.update(render(scene, "shaded", 72).tobytes())
    assert digest.hexdigest()[:16] == "f1e1c52fd3bd1398"


@pytest.mark.parametrize("view", VIEWS)
def test_every_attribute_is_visible(view):
    base = Object("cube", "red", "large")
    pictures = {}
    for shape in SHAPES:
        for colour in COLOURS:
            for size in SIZES:
                scene = Scene((None,) * 4 + (Object(shape, colour, size),) + (None,) * 4)
                pictures[shape, colour, size] = render(scene, view, 72).astype(int)
    for key, picture in pictures.items():
        for other_key, other in pictures.items():
            if key < other_key:
                assert (np.abs(picture - other).max(axis=-1) > 20).sum() >= 8, (key, other_key)
    assert len(pictures) == 96
    empty = render(Scene((None,) * 9), view, 72).astype(int)
    assert np.abs(render(Scene((base,) + (None,) * 8), view, 72).astype(int) - empty)[:24, :24].max() > 50


def _pixels(root):
    return {
        str(path.relative_to(root)): np.asarray(Image.open(path)).tobytes() for path in root.rglob("*.png")
    }


def test_files_do_not_depend_on_the_number_of_processes(tmp_path):
    generate(tmp_path / "one", SMALL, jobs=1)
    generate(tmp_path / "two", SMALL, jobs=2)
    assert _pixels(tmp_path / "one") == _pixels(tmp_path / "two")
    for name in layout.SPLITS:
        for path in (layout.scenes, layout.queries):
            assert path(tmp_path / "one", name).read_text() == path(tmp_path / "two", name).read_text()


def test_the_reader_gives_back_what_was_generated(tmp_path):
    description = generate(tmp_path / "data", SMALL, jobs=1)
    dataset = ScenesDataset.open(tmp_path / "data")
    assert (dataset.seed, dataset.image_size, dataset.views) == (0, 48, VIEWS)
    drawn = draw_splits(SMALL)
    for name in layout.SPLITS:
        split = dataset.split(name)
        assert list(split.ids) == drawn[name].ids
        assert list(split.scenes) == drawn[name].scenes
        assert list(split.queries) == drawn[name].queries
        assert description["splits"][name] == {"scenes": len(split.ids), "queries": len(split.queries)}
        for view in VIEWS:
            picture = np.asarray(Image.open(split.image_path(split.ids[0], view)))
            np.testing.assert_array_equal(picture, render(split.scenes[0], view, 48))


def test_damage_is_named(tmp_path):
    root = tmp_path / "data"
    generate(root, SMALL, jobs=1)
    with pytest.raises(DatasetError, match="not an empty folder"):
        generate(root, SMALL, jobs=1)
    with pytest.raises(DatasetError, match="no split 'dev'"):
        ScenesDataset.open(root).split("dev")

    queries = layout.queries(root, "test")
    whole = queries.read_text()
    queries.write_text(whole.replace("test-0000", "test-9999"))
    with pytest.raises(DatasetError, match="does not hold"):
        ScenesDataset.open(root).split("test")
    queries.write_text(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"queries\.jsonl, line \d+, is damaged"):
        ScenesDataset.open(root).split("test")
    for line, words in (
        ('{"id": "train-000000", "cells": ["huge red cube"]}', ""),
        ('{"id": "../../secret", "cells": []}', ": '../../secret' is no file's name"),
        ("[]", ""),
        ("7", ""),
    ):
        layout.scenes(root, "train").write_text(f"{line}\n")
        with pytest.raises(DatasetError, match=rf"scenes\.jsonl, line 1, is damaged{words}"):
            ScenesDataset.open(root).split("train")

    description = json.loads(layout.description(root).read_text())
    layout.description(root).write_text(json.dumps({**description, "version": 2}))
    with pytest.raises(DatasetError, match="version 2"):
        ScenesDataset.open(root)
    for wrong in ({"views": ["../.."]}, {"views": 7}, {"seed": 1e999}, {"image_size": "9" * 10_000}, []):
        said = [] if wrong == [] else {**description, **wrong}
        layout.description(root).write_text(json.dumps(said))
        with pytest.raises(DatasetError, match="does not describe") as raised:
            ScenesDataset.open(root)
        assert len(str(raised.value)) < 500 + len(str(root))
    layout.description(root).unlink()
    with pytest.raises(DatasetError, match="generate one: cir-bench scenes"):
        ScenesDataset.open(root)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gallery": 10},
        {"test_queries": -1},
        {"image_size": 8},
        {"views": ("xray",)},
        {"train_families": -1},
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(wrong):
    with pytest.raises(UsageError):
        Plan(**{"test_queries": 6, **wrong})
