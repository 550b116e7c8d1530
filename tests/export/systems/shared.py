"""The golden cases that are too large for the repository, and a small export."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel
from cir_export.verification import Samples, draw_samples
from cir_infer import Engine
from cir_infer.bundle import Bundle
from cir_infer.runtime.compose_parts import parts_of
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.samples import sample_feeds
from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.reference import term_scores

SHARED = Path(__file__).parents[4] / "shared" / "golden"
GOLDEN = Path(__file__).parents[2] / "golden"


def shared(*parts: str) -> Path:
    """A path among the large golden cases; the test is skipped where they are not."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the golden case {'/'.join(parts)}, which is too large for the repository")
    return path


def seeded_checkpoint(case: Path, out: Path) -> Path:
    """The full-size checkpoint that a case keeps as a seed."""
    build = runpy.run_path(str(case.parents[1] / "seeded_checkpoint.py"))["build"]
    torch.save(build(case), out)
    return out


def exported(trained: TrainedModel, path: Path, texts: int = 6) -> Engine:
    """The model as a bundle, verified on a few samples and opened."""
    drawn = draw_samples(trained.image, trained.text, trained.tokenizer)
    export_bundle(trained, path, Samples(drawn.images[:4], drawn.texts[:texts], drawn.source))
    return Engine(path, device="cpu", threads=1)


def composes_in_parts(engine: Engine) -> bool:
    """Whether an engine's compose graph can begin with the text alone; then it gives the same, to the bit."""
    model, load = Bundle(engine.path).graph("compose"), partial(OnnxBackend("cpu", 1).load, "image")
    whole = load(model)
    parts = parts_of(model, whole, load, worth=1)
    for rows in (1, 2, 7):
        feeds = sample_feeds(whole.inputs, rows, 8, seed=rows)
        found = {} if parts is None else parts.finish(feeds, parts.begin(feeds["text"]))
        for name, value in found.items():
            np.testing.assert_array_equal(value, whole.run(feeds)[name], name)
    return parts is not None


def scores(terms: QueryTerms, rows: np.ndarray) -> np.ndarray:
    """Float64 scores (Q, N)."""
    return term_scores(terms, rows.astype(np.float64)).sum(1)


def assert_same_ranking(found: np.ndarray, expected: np.ndarray) -> None:
    """Rankings agree at every place, but for scores that are equal up to rounding."""
    order = np.argsort(-expected, 1, kind="stable"), np.argsort(-found, 1, kind="stable")
    values = [np.take_along_axis(expected, o, 1) for o in order]
    assert ((order[0] == order[1]) | (np.abs(values[0] - values[1]) < 2e-6)).all()
