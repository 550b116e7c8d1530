"""Draws the scenes and queries of both splits from a seed, and writes them to disk."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_bench.datasets.scenes import layout
from cir_bench.datasets.scenes.dice import Dice
from cir_bench.datasets.scenes.modifications import KINDS, draw_modification
from cir_bench.datasets.scenes.reader import Query
from cir_bench.datasets.scenes.rendering import VIEWS, render
from cir_bench.datasets.scenes.scene import CELLS, COLOURS, HELD_OUT, SHAPES, SIZES, Object, Scene
from cir_infer.errors import DatasetError, UsageError

__all__ = ["Plan", "draw_splits", "generate"]

OBJECTS = (2, 5)
"""Fewest and most objects of a reference."""


@dataclass(frozen=True)
class Plan:
    """What to generate.

    Attributes:
        train_queries: queries of the training split.
        validation_queries: queries of the validation split; its gallery is as small as they allow.
        test_queries: queries of the test split.
        gallery: scenes of the test split, i.e. rows of its gallery.
        hard_negatives: for each query outside training, scenes one attribute away from its target.
        queries_per_reference: queries that share a reference.
        seed: everything is drawn from it.
        image_size: width and height of the pictures in pixels.
        views: the views to render.
    """

    train_queries: int = 20000
    validation_queries: int = 400
    test_queries: int = 1000
    gallery: int = 5000
    hard_negatives: int = 3
    queries_per_reference: int = 4
    seed: int = 0
    image_size: int = 128
    views: tuple[str, ...] = VIEWS

    def __post_init__(self) -> None:
        if min(self.train_queries, self.validation_queries, self.test_queries, self.hard_negatives) < 0:
            raise UsageError("a number of queries or hard negatives is negative")
        if self.queries_per_reference < 1:
            raise UsageError(f"{self.queries_per_reference} queries a reference; expected 1 or more")
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
    hard_negatives: list[int] = field(default_factory=list)


def draw_splits(plan: Plan) -> dict[str, Drawn]:
    """All splits of a plan, by name.

    No scene of training or validation queries holds a held-out composition; every target of a test
    query does, so it cannot occur in training.
    """
    return {
        "train": _draw_split(plan, "train", plan.train_queries, 0, 0.0),
        "validation": _draw_split(
            plan, "validation", plan.validation_queries, plan.least_gallery(plan.validation_queries), 0.0
        ),
        "test": _draw_split(plan, "test", plan.test_queries, plan.gallery, 0.5),
    }


def _draw_split(plan: Plan, name: str, queries: int, gallery: int, held_out: float) -> Drawn:
    """One split; one with a gallery has hard negatives and is filled up to the gallery's size."""

    def allowed(obj: Object) -> bool:
        return held_out > 0 or not obj.held_out

    def accepted(target: Scene) -> bool:
        return held_out == 0 or target.held_out

    dice, pool, drawn = Dice(name, plan.seed), _Pool(), list[_DrawnQuery]()
    while len(drawn) < queries:
        reference = _draw_scene(dice, held_out)
        if reference not in pool:
            wanted = min(plan.queries_per_reference, queries - len(drawn))
            drawn += _draw_queries(reference, wanted, pool, dice, allowed, accepted)
    if gallery:
        for query in drawn:
            target, reference = pool.scenes[query.target], pool.scenes[query.reference]
            for negative in _hard_negatives(target, reference, plan.hard_negatives, dice, allowed):
                query.hard_negatives.append(pool.add(negative))
    while len(pool.scenes) < gallery:
        pool.add(_draw_scene(dice, held_out))
    # In the order of drawing, ids would tell which scenes belong together; training may know.
    order = dice.shuffled(range(len(pool.scenes))) if gallery else list(range(len(pool.scenes)))
    return _named(name, pool.scenes, drawn, order)


def _named(split: str, scenes: Sequence[Scene], drawn: Iterable[_DrawnQuery], order: list[int]) -> Drawn:
    """Scenes in the given order with ids that count up, and the queries that name them."""
    ids = [f"{split}-{i:06d}" for i in range(len(order))]
    id_of = dict(zip(order, ids, strict=True))
    queries = [
        Query(id_of[q.reference], q.text, id_of[q.target], q.kind, tuple(id_of[n] for n in q.hard_negatives))
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


def _draw_queries(
    reference: Scene,
    wanted: int,
    pool: _Pool,
    dice: Dice,
    allowed: Callable[[Object], bool],
    accepted: Callable[[Scene], bool],
) -> list[_DrawnQuery]:
    """Queries that share a reference, of different kinds as far as possible, with different targets."""
    found: list[_DrawnQuery] = []
    for kind in (dice.shuffled(KINDS) * wanted)[: 8 * wanted]:
        if len(found) == wanted:
            break
        if kind == "remove" and len(reference.occupied) < 2:
            continue
        try:
            modification = draw_modification(reference, kind, dice, allowed)
        except ValueError:
            continue
        if accepted(modification.target) and modification.target not in pool:
            row = pool.add(reference)
            found.append(_DrawnQuery(row, modification.text, pool.add(modification.target), kind))
    return found


def _hard_negatives(
    target: Scene, reference: Scene, wanted: int, dice: Dice, allowed: Callable[[Object], bool]
) -> list[Scene]:
    """Scenes one attribute away from the target, none of them the reference."""
    found: list[Scene] = []
    while len(found) < wanted:
        neighbour = _one_attribute_away(target, dice)
        if neighbour != reference and neighbour not in found and all(map(allowed, neighbour.objects)):
            found.append(neighbour)
    return found


def _one_attribute_away(scene: Scene, dice: Dice) -> Scene:
    """The scene with one object's colour, size, shape or place changed."""
    cell = dice.choice(scene.occupied)
    attribute = dice.choice(("colour", "size", "shape", "place"))
    if attribute == "place":
        return scene.moved(cell, dice.choice(scene.empty))
    values = {"colour": COLOURS, "size": SIZES, "shape": SHAPES}[attribute]
    obj = scene.at(cell)
    others = [v for v in values if v != getattr(obj, attribute)]
    return scene.put(cell, obj.changed(attribute, dice.choice(others)))


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
        raise DatasetError(f"cannot write the data set to {root}: {error}") from error


def _write(
    root: Path, plan: Plan, jobs: int, progress: Callable[[Iterable[int], int], Iterable[int]]
) -> dict[str, Any]:
    splits = draw_splits(plan)
    batches = []
    for name, split in splits.items():
        for view in plan.views:
            layout.image_folder(root, name, view).mkdir(parents=True)
        _write_lines(
            layout.scenes(root, name),
            ({"id": i, "cells": s.to_json()} for i, s in zip(split.ids, split.scenes, strict=True)),
        )
        _write_lines(layout.queries(root, name), (_query_to_json(q) for q in split.queries))
        for start in range(0, len(split.ids), _BATCH):
            part = slice(start, start + _BATCH)
            batches.append((root, name, plan.views, plan.image_size, split.ids[part], split.scenes[part]))
    if jobs == 1:
        for _ in progress(map(_render_batch, batches), len(batches)):
            pass
    else:
        # Fresh processes rather than forked ones: the caller may have threads.
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for _ in progress(pool.map(_render_batch, batches), len(batches)):
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


def _render_batch(
    batch: tuple[Path, str, tuple[str, ...], int, Sequence[str], Sequence[Scene]],
) -> int:
    """Render and write one batch of scenes; how many pictures that were."""
    from PIL import Image

    root, split, views, size, ids, scenes = batch
    for id_, scene in zip(ids, scenes, strict=True):
        for view in views:
            picture = Image.fromarray(render(scene, view, size))
            picture.save(layout.image(root, split, view, id_), compress_level=3)
    return len(ids) * len(views)


def _query_to_json(query: Query) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "reference": query.reference,
        "text": query.text,
        "target": query.target,
        "kind": query.kind,
    }
    if query.hard_negatives:
        entry["hard_negatives"] = list(query.hard_negatives)
    return entry


def _write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            file.write(json.dumps(entry) + "\n")
