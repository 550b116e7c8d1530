"""The golden checkpoints, loaded and exported once for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cir_export.checkpoints import load_trained
from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel
from cir_export.verification import Samples, draw_samples
from cir_infer.engine import Engine
from tests.export.once import Once

GOLDEN = Path(__file__).parents[1] / "golden" / "artemis"


@dataclass(frozen=True)
class Case:
    """A golden case of one model version, exported and opened."""

    trained: TrainedModel
    engine: Engine
    answers: dict[str, Any]
    captions: list[list[str]]


def with_version(case: str, version: str, folder: Path) -> Path:
    """A copy of a case's checkpoint whose options say another version; all of them share their weights."""
    content = torch.load(GOLDEN / case / "ckpt.pth", weights_only=False)
    content["args"].model_version = version
    torch.save(content, folder / "ckpt.pth")
    return folder / "ckpt.pth"


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory, exported_once: Once) -> Callable[..., Case]:
    """golden(case, version): the case's checkpoint, its options saying another of the versions if given."""

    @cache
    def load(case: str, version: str) -> Case:
        folder = GOLDEN / case
        scratch = tmp_path_factory.mktemp(f"{case}_{version}")
        trained = load_trained(with_version(case, version, scratch), folder / "cirr_vocab.pkl")
        drawn = draw_samples(trained.image, trained.text, trained.tokenizer)
        samples = Samples(drawn.images[:12], drawn.texts[:8], drawn.source)
        with exported_once():
            export_bundle(trained, scratch / "model.cir", samples)
        with np.load(folder / "golden.npz") as answers:
            return Case(
                trained,
                Engine(scratch / "model.cir", device="cpu", threads=1),
                dict(answers),
                json.loads((folder / "queries.json").read_text())["captions"],
            )

    return lambda case, version="ARTEMIS": load(case, version)
