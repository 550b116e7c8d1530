"""Draws the scenes and queries of both splits from a seed, and writes them to disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_eval.datasets.dice import Dice
from cir_eval.datasets.generated import Query, query_to_json, write_lines
from cir_eval.datasets.scenes import layout, renderer
from cir_eval.datasets.scenes.modifications import KINDS, Edit, describe, draw_edit
from cir_eval.datasets.scenes.renderer import render_batch
from cir_eval.datasets.scenes.rendering import VIEWS
from cir_eval.datasets.scenes.scene import CELLS, COLOURS, HELD_OUT, SHAPES, SIZES, Object, Scene
from cir_infer.errors import DatasetError, DeviceError, UsageError
from cir_infer.inputs.opening import why
from cir_infer.processes.pool import ChildPool

__all__ = ["Plan", "draw_splits", "generate"]

OBJECTS = (2, 5)
"""Fewest and most objects of a reference."""

_QUERIES_PER_REFERENCE = 2
"""Of validation and test: few, so that many references are tried."""

_EDITS = 4
"""Edits of a family; it has 2 ** _EDITS scenes."""


@dataclass(frozen=True)
class Plan:
    """What to generate.

    Attributes:
        train_families: families of the training split, see `_draw_families`.
        validation_queries: queries of the validation split; its gallery is as small as they allow.
        test_queries: queries of the test split.
        gallery: scenes of the test split, i.e. rows of its gallery.
        hard_negatives: for each query outside training, scenes one attribute away from its target.
        seed: everything is drawn from it.
        image_size: width and height of the pictures in pixels.
        views: the views to render.
    """

    train_families: int = 1500
    validation_queries: int = 400
    test_queries: int = 1000
    gallery: int = 5000
    hard_negatives: int = 3
    seed: int = 0
    image_size: int = 128
    views: tuple[str, ...] = VIEWS

    def __post_init__(self) -> None:
        if min(self.train_families, self.validation_queries, self.test_queries, self.hard_negatives) < 0:
            raise UsageError("a number of families, queries or hard negatives is negative")
        if not 32 <= self.image_size <= 1024:
            raise UsageError(f"an image size of {self.image_size} pixels; expected 32 to 1024")
        if not self.views or any(v not in VIEWS for v in self.views):
            raise UsageError(f"views {self.views}; expected some of {VIEWS}")
        least = self.least_gallery(self.test_queries)
        if self.gallery < least:
            raise UsageError(
                f"a gallery of {self.gallery} scenes cannot hold {self.test_queries} queries with their "
                f"references, targets and {self.hard_negatives} hard negatives; ask for at least {least}, "
                "or for fewer queries"
            )

    def least_gallery(self, queries: int) -> int:
        """Scenes that so many queries may need: a reference, a target and hard negatives each."""
        return queries * (2 + self.hard_negatives)


class _Pool:
    """Different scenes of one split and their ids."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self._index: dict[Scene, int] = {}

    def __contains__(self, scene: Scene) -> bool:
        return scene in self._index

    def add(self, scene: Scene) -> int:
        """The scene's number, new or known."""
        if scene not in self._index:
            self._index[scene] = len(self.scenes)
            self.scenes.append(scene)
        return self._index[scene]


@dataclass(frozen=True)
class Drawn:
    """Scenes with their ids, and the queries over them."""

    ids: list[str]
    scenes: list[Scene]
    queries: list[Query]


@dataclass(frozen=True)
class _DrawnQuery:
    """As `Query`, with the scenes' numbers in place of ids."""

    reference: int
    text: str
    target: int
    kind: str
    family: int | None = None
    hard_negatives: list[int] = field(default_factory=list)


def draw_splits(plan: Plan) -> dict[str, Drawn]:
    """All splits of a plan, by name.

    No scene of training or validation queries holds a held-out composition; every target of a test
    query does, so it cannot occur in training.
    """
    return {
        "train": _draw_families(plan),
        "validation": _draw_queries(
            plan, "validation", plan.validation_queries, plan.least_gallery(plan.validation_queries), 0.0
        ),
        "test": _draw_queries(plan, "test", plan.test_queries, plan.gallery, 0.5),
    }


def _draw_families(plan: Plan) -> Drawn:
    """The training split: families of scenes that are one edit apart.

    A family is a scene under every subset of a few edits that commute. A query goes from each scene to
    each one with one edit more, so its target's other neighbours, one edit away, are in the family: within
    a batch they are hard negatives of the same kind as those of the test gallery.
    """
    dice, pool, drawn = Dice("train", plan.seed), _Pool(), list[_DrawnQuery]()
    families = 0
    while families < plan.train_families:
        edits, scenes = _draw_family(dice)
        if any(scene.held_out or scene in pool for scene in scenes):
            continue
        rows = [pool.add(scene) for scene in scenes]
        for subset, scene in enumerate(scenes):
            for bit, edit in enumerate(edits):
                target = subset | 1 << bit
                if target != subset:
                    text = describe(scene, edit, dice)
                    drawn.append(_DrawnQuery(rows[subset], text, rows[target], edit.kind, families))
        families += 1
    return _named("train", pool.scenes, drawn, list(range(len(pool.scenes))))


def _draw_family(dice: Dice) -> tuple[list[Edit], list[Scene]]:
    """Edits, and the scenes under each subset of them; bit i of a scene's number stands for edit i."""
    base = _draw_scene(dice, held_out=0.0)
    edits: list[Edit] = []
    while len(edits) < _EDITS:
        kind = dice.choice(KINDS)
        if kind == "remove" and len(base.occupied) - sum(e.kind == "remove" for e in edits) < 2:
            continue
        if kind == "place" and not base.empty:
            continue
        edit = draw_edit(base, kind, dice)
        if not any(edit.touches & other.touches for other in edits):
            edits.append(edit)
    scenes = [base]
    for edit in edits:
        scenes += [edit.apply(scene) for scene in scenes]
    return edits, scenes


def _draw_queries(plan: Plan, name: str, queries: int, gallery: int, held_out: float) -> Drawn:
    """A split with a gallery: queries, hard negatives for each, and other scenes up to the gallery's size."""

    def allowed(scene: Scene) -> bool:
        return held_out > 0 or not scene.held_out

    def accepted(target: Scene) -> bool:
        return target not in pool and target.held_out == (held_out > 0)

    dice, pool, drawn = Dice(name, plan.seed), _Pool(), list[_DrawnQuery]()
    while len(drawn) < queries:
        reference = _draw_scene(dice, held_out)
        if reference in pool:
            continue
        kinds = dice.shuffled([k for k in KINDS if k != "remove" or len(reference.occupied) > 1])
        for kind in kinds[: min(_QUERIES_PER_REFERENCE, queries - len(drawn))]:
            edit = draw_edit(reference, kind, dice)
            if accepted(edit.apply(reference)):
                text = describe(reference, edit, dice)
                drawn.append(_DrawnQuery(pool.add(reference), text, pool.add(edit.apply(reference)), kind))
    for query in drawn:
        target, reference = pool.scenes[query.target], pool.scenes[query.reference]
        found: list[Scene] = []
        while len(found) < plan.hard_negatives:
            negative = draw_edit(target, dice.choice(_SINGLE_ATTRIBUTES), dice).apply(target)
            if negative != reference and negative not in found and allowed(negative):
                found.append(negative)
        query.hard_negatives.extend(map(pool.add, found))
    while len(pool.scenes) < gallery:
        pool.add(_draw_scene(dice, held_out))
    # In the order of drawing, ids would tell which scenes belong together.
    return _named(name, pool.scenes, drawn, dice.shuffled(range(len(pool.scenes))))


_SINGLE_ATTRIBUTES = ("colour", "size", "shape", "place")


def _named(split: str, scenes: Sequence[Scene], drawn: Iterable[_DrawnQuery], order: list[int]) -> Drawn:
    """Scenes in the given order with ids that count up, and the queries that name them."""
    ids = [f"{split}-{i:06d}" for i in range(len(order))]
    id_of = dict(zip(order, ids, strict=True))
    queries = [
        Query(
            id_of[q.reference],
            q.text,
            id_of[q.target],
            q.kind,
            q.family,
            tuple(id_of[n] for n in q.hard_negatives),
        )
        for q in drawn
    ]
    return Drawn(ids, [scenes[i] for i in order], queries)


def _draw_scene(dice: Dice, held_out: float) -> Scene:
    """A random scene; a composition is held out with the given probability, at least once if it is not 0."""
    fewest, most = OBJECTS
    cells = dice.sample(range(CELLS), fewest + dice.below(most - fewest + 1))
    scene = Scene((None,) * CELLS)
    for i, cell in enumerate(cells):
        pairs = _HELD_OUT if held_out and (i == 0 or dice.chance(held_out)) else _SEEN
        shape, colour = dice.choice(pairs)
        scene = scene.put(cell, Object(shape, colour, dice.choice(SIZES)))
    return scene


_HELD_OUT = tuple(sorted(HELD_OUT))
_SEEN = tuple((s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT)


def generate(
    root: Path,
    plan: Plan,
    jobs: int,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda done, _: done,
) -> dict[str, Any]:
    """Write the data set.

    Args:
        root: a folder that does not exist or is empty.
        plan: what to generate. Files depend on nothing else, in particular not on `jobs`.
        jobs: processes that render.
        progress: wraps the iterator over finished batches of pictures; the second argument is their number.

    Returns:
        What was written to the description file.

    Raises:
        DatasetError: the folder is not empty or cannot be written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root} exists and is not an empty folder; name another one or remove it")
    try:
        return _write(root, plan, jobs, progress)
    except OSError as error:
        raise DatasetError(f"cannot write the data set to {root}: {why(error)}") from error
    except DeviceError as error:
        raise DatasetError(f"cannot render the data set: {error}") from error


def _write(
    root: Path, plan: Plan, jobs: int, progress: Callable[[Iterable[int], int], Iterable[int]]
) -> dict[str, Any]:
    splits = draw_splits(plan)
    batches = []
    for name, split in splits.items():
        for view in plan.views:
            layout.image_folder(root, name, view).mkdir(parents=True)
        write_lines(
            layout.scenes(root, name),
            ({"id": i, "cells": s.to_json()} for i, s in zip(split.ids, split.scenes, strict=True)),
        )
        write_lines(layout.queries(root, name), (query_to_json(q) for q in split.queries))
        for start in range(0, len(split.ids), _BATCH):
            part = slice(start, start + _BATCH)
            batches.append(
                {
                    "root": str(root.absolute()),
                    "split": name,
                    "views": list(plan.views),
                    "size": plan.image_size,
                    "ids": list(split.ids[part]),
                    "scenes": [scene.to_json() for scene in split.scenes[part]],
                }
            )
    if jobs == 1:
        for _ in progress(map(render_batch, batches), len(batches)):
            pass
    else:
        with ChildPool(renderer.__name__, min(jobs, len(batches))) as pool:
            for _ in progress(pool.map(batches), len(batches)):
                pass
    description = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "seed": plan.seed,
        "image_size": plan.image_size,
        "views": list(plan.views),
        "splits": {n: {"scenes": len(s.ids), "queries": len(s.queries)} for n, s in splits.items()},
        "hard_negatives": plan.hard_negatives,
        "held_out": [list(pair) for pair in _HELD_OUT],
    }
    layout.description(root).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return description


_BATCH = 64
