"""Int8 text encoders: with ranges of texts of their own, and only where they pass."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cir_export.commands.lowering import lowered_json, shown_lowering
from cir_export.precision import Lowering, PrecisionError, calibration_images, convert_bundle, samples_for
from cir_export.precision.blame import LayerError, costliest
from cir_export.precision.calibration import calibration_texts
from cir_export.precision.fidelity import cosines
from cir_export.samples import draw_texts
from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import ExportError
from cir_infer.extras import is_installed
from tests.bundles import HIDDEN, SPECIALS, WORDS, GraphBuilder
from tests.export.precision.bundles import convolutional, photographs, wordy

TEXTS = ["is red", "the same dress in black with a belt", "unheard"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordy(tmp_path_factory.mktemp("source") / "wordy.cir")


def converted(source: Path, target: Path, photos: Path, **how: Any) -> Any:
    bundle = Bundle(source)
    calibration = calibration_images(bundle, photos)
    lowering = Lowering("int8", **how)
    return convert_bundle(source, target, lowering, samples_for(bundle, photos, None), calibration)


def operators(path: Path, graph: str) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(Bundle(path).read(f"{graph}.onnx")).graph.node}


def test_a_text_encoder_becomes_int8_too(source: Path, photos: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "low.cir", photos)
    said = report.manifest.parity["precision"]
    assert said["graphs"] == ["image", "text"] and said["float32_text_because"] is None
    assert said["calibration"]["texts"] == len(calibration_texts(Bundle(source))) > 40
    assert "QuantizeLinear" in operators(report.path, "text") & operators(report.path, "image")
    assert 0.99 < report.fidelity.text_cosine_worst < 1
    with Engine(source, device="cpu") as exact:
        expected = exact.encode_texts(TEXTS)
    for device in ("cpu", *(("openvino",) if is_installed("openvino") else ())):
        with Engine(report.path, device=device) as engine:
            found = engine.encode_texts(TEXTS)
            one_by_one = np.concatenate([engine.encode_texts([text]) for text in TEXTS])
        assert ((expected * found).sum(1) > 0.99).all()
        np.testing.assert_allclose(one_by_one[-1], found[-1], atol=0.03)


def test_rows_mean_the_same_with_and_without(source: Path, photos: Path, tmp_path: Path) -> None:
    """A gallery need not be made again, whatever becomes of texts."""
    plain = converted(convolutional(tmp_path / "plain.cir"), tmp_path / "plain-low.cir", photos)
    assert plain.manifest.fingerprint == converted(source, tmp_path / "low.cir", photos).manifest.fingerprint


def test_for_tensorrt_it_is_left_alone(source: Path, photos: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "low.cir", photos, form="tensorrt")
    assert report.manifest.parity["precision"]["graphs"] == ["image"]
    assert Bundle(report.path).read("text.onnx") == Bundle(source).read("text.onnx")


def test_layers_of_it_are_kept_by_name(source: Path, photos: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "low.cir", photos, keep_float32=("t.second",))
    assert report.kept == ("t.second",)
    graph = onnx.load_from_string(Bundle(report.path).read("text.onnx")).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 1


def test_of_a_text_encoder_what_hurts_most_stays_float32(photos: Path, tmp_path: Path) -> None:
    source = wordy(tmp_path / "odd.cir", outlier=3e4)
    report = converted(source, tmp_path / "low.cir", photos)
    said = report.manifest.parity["precision"]
    assert said["graphs"] == ["image", "text"] and said["float32_layers"] == ["t.second"]
    assert "worst cosine of a text's embedding is 0.00000" in report.text_kept[0]
    assert said["float32_text_because"] == [*report.text_kept]
    assert report.fidelity.text_cosine_worst > 0.995
    told = shown_lowering(report)
    assert "in float32: t.second" in told
    assert f"those of these layers that read texts could not be int8: {report.text_kept[0]}" in told


def test_where_all_of_it_loses_too_much_texts_stay_float32(photos: Path, tmp_path: Path) -> None:
    source = wordy(tmp_path / "odd.cir", outlier=3e4, everywhere=True)
    report = converted(source, tmp_path / "low.cir", photos)
    assert lowered_json(report)["parity"]["precision"]["graphs"] == ["image"]
    assert "is asked" in report.text_kept[0] and not report.kept
    assert Bundle(report.path).read("text.onnx") == Bundle(source).read("text.onnx")
    assert "QuantizeLinear" in operators(report.path, "image")
    assert f"the text encoder could not be int8: {report.text_kept[0]}" in shown_lowering(report)


def test_the_costliest_layers_are_those_without_which_the_rest_is_cheap() -> None:
    errors = [LayerError("text", name, cosine) for name, cosine in (("a", 0.5), ("b", 0.998), ("c", 0.9995))]
    errors.append(LayerError("text", "d", -np.inf))
    assert costliest(errors, 0.003) == ["a", "d"]
    assert costliest(errors, 0.001) == ["b", "a", "d"]
    assert costliest(errors, 0.0001) == ["c", "b", "a", "d"]
    assert costliest(errors[1:3], 0.003) == []


def test_where_it_has_no_ranges_texts_stay_float32_too(photos: Path, tmp_path: Path) -> None:
    source = wordy(tmp_path / "hot.cir", peak=3e38)
    report = converted(source, tmp_path / "low.cir", photos, keep_float32=("t.second",))
    (why,) = report.text_kept
    assert "NaN or infinite" in why and Bundle(report.path).read("text.onnx") == Bundle(source).read(
        "text.onnx"
    )


def test_what_images_lose_is_not_blamed_on_texts(photos: Path, tmp_path: Path) -> None:
    broken, target = convolutional(tmp_path / "broken.cir", outlier=1e5), tmp_path / "low.cir"
    both = Bundle(wordy(tmp_path / "both.cir"))
    members = {**both.contents(both.manifest.members), "image.onnx": Bundle(broken).read("image.onnx")}
    write_bundle(both.path, both.manifest, members)
    with pytest.raises(PrecisionError, match=r"--keep-float32 m\."):
        converted(Path(both.path), target, photos)
    assert not target.exists()


def knowing(path: Path, words: list[str], vectors: np.ndarray, text: ModelProto, alone: bool = False) -> None:
    """Gives a bundle another vocabulary and text graph, whose `embed` become the vectors of its words.

    Nothing stands around words `alone`.
    """
    bundle = Bundle(path)
    tokenizer = json.loads(bundle.tokenizer())
    tokenizer["normalizer"] = None
    if alone:
        tokenizer["post_processor"] = None
    tokenizer["model"]["vocab"] = {word: number for number, word in enumerate([*SPECIALS, *words])}
    (held,) = (tensor for tensor in text.graph.initializer if tensor.name == "embed")
    held.CopyFrom(numpy_helper.from_array(vectors.astype(np.float32), "embed"))
    changed = {"tokenizer.json": json.dumps(tokenizer).encode(), "text.onnx": text.SerializeToString()}
    write_bundle(path, bundle.manifest, {**bundle.contents(bundle.manifest.members), **changed})


def test_texts_are_of_words_that_the_model_knows_in_whatever_script(photos: Path, tmp_path: Path) -> None:
    """All were the unknown word, whose ranges are its own, and what int8 made of every other passed."""
    words = ["".join(chr(0x4E00 + ord(letter)) for letter in word) for word in WORDS]
    path = wordy(tmp_path / "han.cir")
    vectors = np.random.default_rng(1).normal(size=(len(SPECIALS) + len(words), HIDDEN))
    vectors[SPECIALS.index("<unk>")] *= 0.01
    knowing(path, words, vectors, onnx.load_from_string(Bundle(path).read("text.onnx")))
    report = converted(path, tmp_path / "low.cir", photos)
    assert "QuantizeLinear" in operators(report.path, "text")
    said = [" ".join(pair) for pair in zip(words, reversed(words), strict=True)]
    with Engine(path, device="cpu") as exact, Engine(report.path, device="cpu") as lowered:
        assert cosines(exact.encode_texts(said), lowered.encode_texts(said)).min() > 0.995


def test_queries_of_one_word_are_calibrated_and_judged_with(photos: Path, tmp_path: Path) -> None:
    """In longer ones what each word adds is averaged away: of ranges of sentences one word in seven left."""
    g, random = GraphBuilder(), np.random.default_rng(3)
    g.constant("tenfold", 10)
    g.add("Cast", ["lengths"], "count", to=TensorProto.FLOAT)
    g.constant("second_axis", [1], np.int64)
    g.add("Unsqueeze", ["count", "second_axis"], "counts")
    g.add("Div", ["sum", "counts"], "mean")
    g.add("Mul", ["mean", "tenfold"], "scaled")
    g.add("MatMul", ["scaled", g.constant("t.one.weight", random.normal(size=(HIDDEN, HIDDEN)))], "mixed")
    g.l2("mixed", "text")
    inputs = {"sum": ("f32", ["n", HIDDEN]), "lengths": ("i32", ["n"])}
    more = onnx.load_from_string(g.model(inputs, {"text": ("f32", ["n", HIDDEN])})).graph
    path = convolutional(tmp_path / "means.cir")
    text = onnx.load_from_string(Bundle(path).read("text.onnx"))
    end = next(n for n, node in enumerate(text.graph.node) if "sum" in node.input)
    del text.graph.node[end:]
    text.graph.node.extend(more.node)
    known = {tensor.name for tensor in text.graph.initializer}
    text.graph.initializer.extend(tensor for tensor in more.initializer if tensor.name not in known)
    words = ["".join(letters) for letters in product("abcde", "fghij", "klmno", "pqrst")]
    vectors = random.normal(size=(len(SPECIALS) + len(words), HIDDEN))
    knowing(path, words, vectors, text, alone=True)
    report = converted(path, tmp_path / "low.cir", photos)
    assert "QuantizeLinear" in operators(report.path, "text")
    with Engine(path, device="cpu") as exact, Engine(report.path, device="cpu") as lowered:
        found = cosines(exact.encode_texts(words), lowered.encode_texts(words))
    assert np.quantile(found, 0.02) > 0.995


@pytest.mark.parametrize("kind", ["bytes", "suffix", "prefix", "pieces"])
def test_parts_of_words_are_read_from_every_kind_of_vocabulary(kind: str) -> None:
    texts = ["the quick brown fox", "красное платье", "更长的红色连衣裙", "लाल पोशाक लंबी"] * 5
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    elif kind == "suffix":
        tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="</w>", show_progress=False)
    elif kind == "prefix":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    _, drawn = draw_texts({"max_tokens": 512, "captions": " "}, tokenizer)
    letters = set("".join(map(str, drawn)))
    assert all(letters & set(text) - {" "} for text in texts)
    assert not letters & set("#</▁ĠÃ�")


def test_no_text_is_calibrated_and_judged_with(source: Path, photos: Path) -> None:
    bundle = Bundle(source)
    judged = samples_for(bundle, photos, None).texts
    assert not {str(text) for text in judged} & {str(text) for text in calibration_texts(bundle)}


def test_images_without_ranges_are_refused_whatever_texts_do(photos: Path, tmp_path: Path) -> None:
    source = convolutional(tmp_path / "plain.cir")
    bundle = Bundle(source)
    calibration = replace(calibration_images(bundle, photos), images=())
    with pytest.raises(ExportError, match="no images or texts"):
        convert_bundle(
            source,
            tmp_path / "low.cir",
            Lowering("int8"),
            samples_for(bundle, photos, None),
            calibration,
        )
