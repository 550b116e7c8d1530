"""MagicLens, against the modules of its authors (tools/golden/magiclens.py)."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_export.checkpoints import load_trained
from cir_export.checkpoints.flax import read_flax
from cir_export.model_file import TrainedModel
from cir_export.preprocessing import check_inputs, text_input
from cir_infer.errors import CheckpointError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.scoring.contract import QueryTerms
from tests.export.systems.shared import GOLDEN, assert_same_ranking, exported, scores

MAGICLENS = GOLDEN / "magiclens"
IMAGES = [*sorted((GOLDEN / "encoders").glob("*.png")), MAGICLENS / "dark.png"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("magiclens") / "magic_lens_clip_base.pkl"
    path.write_bytes(gzip.decompress((MAGICLENS / "magic_lens.pkl.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> TrainedModel:
    return load_trained(checkpoint)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(MAGICLENS / "golden.npz") as file:
        return {**file, **json.loads((MAGICLENS / "tokens.json").read_text())}


@torch.no_grad()
def test_it_is_the_network_of_its_authors(trained: TrainedModel, golden: dict[str, Any]) -> None:
    model = trained.model
    assert (model.system, model.embedding_dim, model.reference_is_gallery_row) == ("magiclens", 16, False)
    read = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text)).read(golden["texts"])
    assert [row[:n] for row, n in zip(read.ids.tolist(), read.lengths, strict=True)] == golden["ids"]
    assert 0 in golden["ids"][-1]  # which nothing looks at
    noise, tokens, lengths = (torch.tensor(x) for x in (golden["noise"], read.ids, read.lengths))
    order = np.arange(len(tokens)) % len(noise)
    rows, text = model.encode_gallery(noise), model.encode_text(tokens, lengths)
    reference = model.encode_reference(noise)[order]
    np.testing.assert_allclose(reference, golden["image"], atol=1e-5)
    np.testing.assert_allclose(text, golden["text"], atol=1e-5)
    np.testing.assert_allclose(rows, golden["rows"], atol=1e-5)
    query = model.compose(reference, text).numerators
    np.testing.assert_allclose(query[:, 0], golden["query"], atol=1e-5)
    found = scores(QueryTerms(query.numpy(), None, ("similarity",)), rows.numpy())
    np.testing.assert_allclose(found, golden["scores"], atol=1e-4)
    assert_same_ranking(found, golden["scores"])


def test_pixels_are_those_of_its_authors_but_for_their_rounding_to_bytes(
    trained: TrainedModel, golden: dict[str, Any]
) -> None:
    spec = check_inputs(trained.image, trained.text)
    found = np.stack([preprocess(image, spec) for image in IMAGES]).astype(float)
    # Half a byte after each of Pillow's two filters, and where the picture was brightened.
    assert np.abs(found - 255 * golden["pixels"].astype(float)).max() < 1.5
    assert found[-1].max() > 200 > golden["pixels"][-1].max() * 150


def test_a_bundle_sees_photographs_as_its_authors_do(
    trained: TrainedModel, golden: dict[str, Any], tmp_path: Path
) -> None:
    with exported(trained, tmp_path / "magiclens.cir", texts=4) as engine:
        assert not engine.row_is_reference
        assert engine.manifest.version == 2
        rows = engine.encode_images(IMAGES)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        texts = golden["texts"]
        references = engine.encode_references([IMAGES[i % len(IMAGES)] for i in range(len(texts))])
        found = scores(engine.compose(references, engine.encode_texts(texts)), rows)
    # What differs is pixels rounded to bytes.
    np.testing.assert_allclose(rows, golden["own_rows"], atol=0.01)
    np.testing.assert_allclose(found, golden["own_scores"], atol=0.01)


def packed(table: Any) -> bytes:
    """Tables by name and float32 arrays as flax packs them; bytes as they are."""
    if isinstance(table, bytes):
        return table
    if isinstance(table, dict):
        start = b"\xde" + struct.pack(">H", len(table))
        return start + b"".join(b"\xd9" + bytes([len(n)]) + n.encode() + packed(v) for n, v in table.items())
    values = np.asarray(table, np.float32)
    shape = b"".join(b"\xcd" + struct.pack(">H", side) for side in values.shape)
    inner = b"\x93" + bytes([0x90 + values.ndim]) + shape + b"\xa7float32"
    inner += b"\xc6" + struct.pack(">I", values.nbytes) + values.tobytes()
    return b"\xc9" + struct.pack(">I", len(inner)) + b"\x01" + inner


ARRAY = packed(np.ones((2, 3)))


def changed(**parts: bytes) -> bytes:
    parts = {"clip": ARRAY, "multimodal_encoder": ARRAY, **parts}
    return packed({"params": {name: {"w": part} for name, part in parts.items()}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is of kind|cut short"),
        (b"no weights at all", "expected a table or an array"),
        (packed({"a": b"\xc0"}), "kind 0xc0; expected a table or an array"),
        (packed({"a": {}}), "is empty"),
        (packed({"a": {"b": ARRAY}}) + b"\x00", "1 bytes follow its table"),
        (packed({"a": ARRAY})[:-3], "cut short|is no array"),
        (packed({"a": ARRAY.replace(b"float32", b"object_")}), "type 'object_'; expected one of float32"),
        (packed({"a": ARRAY.replace(b"\xcd\x00\x03", b"\xcd\xff\xff")}), "not an array of shape"),
        (packed({"a": ARRAY.replace(b"\x01\x93", b"\x02\x93")}), "extension 2"),
        (b"\xdf\xff\xff\xff\xff" + b"\xa1a" + ARRAY, "cut short"),
        (b"\x81\xa1a" * 40 + ARRAY, "more than 32 deep"),
        (packed({"a": ARRAY}), "none under clip; expected MagicLens'"),
        (changed(contrastive_multimodal_pooler=ARRAY), "missing or has another shape"),
    ],
)  # fmt: skip
def test_what_is_no_magiclens_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    for protocol in (3, 4, 5):
        (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(CheckpointError, match=message):
            load_trained(tmp_path / "bad.pkl")


SOUND = pickle.dumps(packed({"params": {"a": {"b": ARRAY}, "c": ARRAY}}))


@settings(max_examples=300)
@given(at=st.integers(12, len(SOUND) - 1), byte=st.integers(0, 255), kept=st.integers(12, len(SOUND)))
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, kept: int
) -> None:
    content = bytearray(SOUND)
    content[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(content[:kept])
    try:
        found = read_flax(path)
    except CheckpointError as error:
        assert len(str(error)) < 600
    else:
        assert all(isinstance(value, torch.Tensor) for value in found.values())


class _Ends:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was executed",))


def test_a_pickle_of_more_than_bytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pkl"
    bytes_first = pickle.dumps(b"x" * 90)[:-2] + pickle.dumps(_Ends())[2:]
    for content, message in (
        (bytes_first, "more than one value|cut short|announces"),
        (pickle.dumps(_Ends()), "was not loaded|not a checkpoint"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "announces"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_trained(path)


def test_weights_that_are_left_over_or_of_another_size(checkpoint: Path, tmp_path: Path) -> None:
    content = pickle.loads(checkpoint.read_bytes())  # our own golden case
    for old, new, message in (
        (b"\xa4proj", b"\xa4prof", "proj/kernel here is missing"),
        (b"x_layers_2", b"x_layers_7", "not numbered from 0 up"),
        (b"\xacpool_attn_ln", b"\xacpool_attn_lm", "pool_attn_ln/scale here is missing"),
    ):
        assert old in content
        (tmp_path / "other.pkl").write_bytes(pickle.dumps(content.replace(old, new)))
        with pytest.raises(CheckpointError, match=message):
            load_trained(tmp_path / "other.pkl")
    with pytest.raises(CheckpointError, match="leave the vocabulary file out"):
        load_trained(checkpoint, vocabulary=tmp_path / "vocab.txt")
