"""One epoch of every system trains with each query exactly once, reference and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cir_eval.datasets.scenes.generation import Plan, generate
from cir_export.models import MODELS, build_model
from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.data import TrainingQueries
from cir_export.training.loading import load_data
from cir_export.training.step import batch_loss
from cir_export.training.systems import model_for_system, with_vocabulary

MODEL = {
    "system": "artemis",
    "embedding_dim": 16,
    "image": {"trunk": "small", "size": 24, "channels": [4, 6, 8], "pooling": "grid"},
    "text": {"encoder": "bigru", "word_dim": 8},
    "clip": {
        "embed_dim": 16, "image_size": 32, "vision_layers": [1, 1, 1, 1], "vision_width": 4,
        "vision_heads": 8, "patch_size": 0, "context_length": 64, "text_width": 16,
        "text_heads": 2, "text_layers": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five families, so that two a batch do not fill whole batches, in which queries share targets."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    plan = Plan(train_families=5, validation_queries=2, test_queries=2, gallery=20, image_size=32)
    generate(root, plan, jobs=1)
    return root


def queries_of(scenes: Path, table: dict[str, Any]) -> tuple[TrainingQueries, int]:
    settings = TrainingSettings(epochs=1, families_per_batch=2)
    loaded = load_data(TrainingConfig(DataSettings(str(scenes)), table, settings))
    return loaded.train, loaded.tokenizer.get_vocab_size()


@pytest.mark.parametrize("system", sorted(name for name, model in MODELS.items() if not model.from_towers))
def test_an_epoch_trains_with_every_query_once(system: str, scenes: Path) -> None:
    torch.manual_seed(0)
    table = {key: value for key, value in MODEL.items() if key != "clip" or system.startswith("clip")}
    table = model_for_system(table, system)
    queries, vocabulary = queries_of(scenes, table)
    model = build_model(with_vocabulary(table, vocabulary)).train()
    with torch.no_grad():  # a start at which an operator is the identity would hide the text
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
    encoded: list[Tensor] = []
    encode_text = model.encode_text

    def noted(tokens: Tensor, lengths: Tensor) -> Tensor:
        text = encode_text(tokens, lengths)
        text.requires_grad_() if not text.requires_grad else text.retain_grad()
        encoded.append(text)
        return text

    model.encode_text = noted  # type: ignore[method-assign]
    seen: list[int] = []
    for numbers, batch in zip(queries.numbers(epoch=0), queries.batches(epoch=0), strict=True):
        seen += numbers.tolist()
        assert len(batch.lengths) == len(numbers)
        model.zero_grad()
        batch_loss(model, batch, TrainingSettings(epochs=1)).backward()
        if "text" not in model.composes:
            continue
        gradient = encoded[-1].grad
        assert gradient is not None and len(gradient) == len(batch.lengths)
        # Whatever a query's place in its batch, and whether another shares its target: it is learned from.
        assert bool((gradient.flatten(1).abs().amax(1) > 0).all())
    assert sorted(seen) == list(range(len(queries.split)))
    targets = [queries.split.triplet(number, 0).target for number in seen]
    assert len(set(targets)) < len(targets)  # else nothing is proved
