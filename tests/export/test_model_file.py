from __future__ import annotations

import argparse
import resource
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cir_export.checkpoints import load_trained
from cir_export.container import read_container
from cir_export.model_file import TrainedModel, load_model, save_model
from cir_export.models import build_model
from cir_export.preprocessing import plain_resize, word_text
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts
from cir_infer.errors import CheckpointError
from tests.export.tiny import batch, config
from tests.export.token_batches import token_batch


@pytest.fixture
def trained() -> TrainedModel:
    torch.manual_seed(0)
    vocabulary = vocabulary_from_texts(["a red dress", "with longer sleeves"])
    text = {"encoder": "bigru", "vocabulary_size": len(vocabulary), "word_dim": 10}
    model = build_model(config(text=text)).eval()
    # Statistics as training leaves them, so that a lost buffer shows.
    model.image_encoder.trunk.stages[0].bn1.running_mean.fill_(0.25)
    provenance = {"data": "scenes", "recall": {"1": 0.7}}
    return TrainedModel(model, build_tokenizer(vocabulary), plain_resize(24), word_text(), provenance)


def rewrite(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True) | changes
    torch.save({key: value for key, value in content.items() if value is not None}, path)


def test_a_model_survives_its_file(trained: TrainedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", trained)
    found = load_trained(tmp_path / "model.pt")
    assert (found.image, found.text, found.provenance) == (trained.image, trained.text, trained.provenance)
    assert not found.model.training
    images, _, _ = batch()
    tokens, lengths = token_batch(found.tokenizer, ["a red dress"] * 5)
    assert tokens.tolist() == token_batch(trained.tokenizer, ["a red dress"] * 5)[0].tolist()
    with torch.no_grad():
        expected = trained.model(images, tokens, lengths, images)
        torch.testing.assert_close(found.model(images, tokens, lengths, images), expected, rtol=0, atol=0)


def test_float16_halves_the_file_and_loads_as_float32(trained: TrainedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "full.pt", trained)
    save_model(tmp_path / "half.pt", trained, "float16")
    sizes = [
        sum(w.numel() * w.element_size() for w in torch.load(tmp_path / name)["weights"].values())
        for name in ("full.pt", "half.pt")
    ]
    assert sizes[1] < 0.55 * sizes[0]
    found = load_model(tmp_path / "half.pt").model
    for name, value in found.state_dict().items():
        exact = trained.model.state_dict()[name]
        assert value.dtype == exact.dtype
        torch.testing.assert_close(value, exact, rtol=1e-3, atol=1e-4)


def test_a_weight_beyond_float16_is_refused_and_nothing_is_written(
    trained: TrainedModel, tmp_path: Path
) -> None:
    with torch.no_grad():
        trained.model.transform.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"transform\.bias"):
        save_model(tmp_path / "model.pt", trained, "float16")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_said_to_be_one(trained: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_model(tmp_path / "missing" / "model.pt", trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"tokenizer": None}, "'tokenizer' is missing"),
        ({"tokenizer": "{}"}, "tokenizer cannot be read"),
        ({"weights": {}}, "weight logit_scale is missing"),
        ({"config": {"system": "unheard-of"}}, "unheard-of"),
        ({"image": [1]}, "'image'"),
        ({"image": {}}, "image.kind is missing"),
        ({"image": {"kind": "features", "size": b"12"}}, "not plain JSON"),
        ({"text": {"pad_id": -1, "unk_id": 4, "max_tokens": 9, "captions": "pair"}}, "pad_id"),
    ],
)
def test_a_damaged_model_file_says_what_is_wrong(
    trained: TrainedModel, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_model(tmp_path / "model.pt", trained)
    rewrite(tmp_path / "model.pt", **change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "model.pt")


def test_weights_that_do_not_fit_are_named(trained: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for name, value, message in (
        (
            "transform.weight",
            torch.zeros(24, 23),
            r"has shape \(24, 23\); expected \(24, 24\)",
        ),
        ("stray", torch.zeros(1), "weight stray does not belong"),
        ("transform.weight", torch.full((24, 24), torch.nan), r"transform\.weight holds NaN"),
    ):
        save_model(path, trained)
        weights = torch.load(path, weights_only=True)["weights"]
        rewrite(path, weights=weights | {name: value})
        with pytest.raises(CheckpointError, match=message):
            load_model(path)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What is written beyond it is an error, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 100, 4000])
def test_a_full_disk_leaves_the_old_model(trained: TrainedModel, tmp_path: Path, size: int) -> None:
    save_model(tmp_path / "model.pt", trained)
    before = (tmp_path / "model.pt").read_bytes()
    with files_of_at_most(size), pytest.raises(CheckpointError, match="cannot be written: File too large"):
        save_model(tmp_path / "model.pt", trained)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == before


def test_a_weight_that_was_damaged_is_not_taken(trained: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(path, trained)
    with zipfile.ZipFile(path) as archive:
        largest = max(
            (info for info in archive.infolist() if "/data/" in info.filename),
            key=lambda info: info.file_size,
        )
    data = bytearray(path.read_bytes())
    data[largest.header_offset + len(largest.filename) + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"was not loaded: its .* is damaged"):
        load_model(path)


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(1000)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_container(tmp_path / "plain.pt")["a"].sum() == 1000


def test_layers_that_no_weights_can_fill_take_no_time(trained: TrainedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", trained)
    for system, name in (("mrn", "blocks"), ("film", "blocks")):
        rewrite(tmp_path / "model.pt", config={**trained.model.config, "system": system, name: 10**9})
        with pytest.raises(CheckpointError, match="more layers than it has weights"):
            load_model(tmp_path / "model.pt")


def test_other_files_are_not_model_files(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not a model file"):
        load_model(path)
    torch.save(argparse.Namespace(a=1), path)
    with pytest.raises(CheckpointError, match="Namespace"):
        load_trained(path)
