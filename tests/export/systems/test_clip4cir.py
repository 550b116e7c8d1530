"""CLIP4Cir: the Combiner, CLIP's towers, tokens and preprocessing, against their authors' answers."""

from __future__ import annotations

import ast
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cir_eval.metrics import judge, metrics_of, ranking_of
from cir_eval.protocols import protocol
from cir_export.checkpoints import load_trained
from cir_export.checkpoints.clip import clip_config, round_to_float16
from cir_export.checkpoints.files import read_checkpoint_file
from cir_export.clip_tokenization import build_clip_tokenizer
from cir_export.models.configuration import parse
from cir_export.models.encoders.clip import Clip, ClipSettings
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.errors import CheckpointError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import ReferenceScorer
from tests.export.systems.shared import (
    GOLDEN,
    assert_same_ranking,
    composes_in_parts,
    exported,
    scores,
    shared,
)

COMBINER = GOLDEN / "clip4cir" / "combiner_small"
SIZES = {
    "embed_dim": 64, "image_size": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 8, "vision_heads": 4,
    "patch_size": 0, "context_length": 77, "vocabulary_size": 49408, "text_width": 64, "text_heads": 1,
    "text_layers": 1,
}  # fmt: skip
VIT = {**SIZES, "vision_layers": (2,), "vision_width": 64, "vision_heads": 1, "patch_size": 16}


def clip(**changes: Any) -> Clip:
    torch.manual_seed(2)
    return Clip(ClipSettings(**{**SIZES, **changes})).eval()


def weights_of(model: Clip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_tokens_are_those_of_clip() -> None:
    tokenizer = build_clip_tokenizer()
    for case in json.loads((GOLDEN / "clip4cir" / "tokenizer.json").read_text()):
        ids = tokenizer.encode(case["text"]).ids
        assert ids + [0] * (77 - len(ids)) == case["ids"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("it\u2019s \u201cRED\u201d", 'it\'s "red"'),
        ("\uff32\uff25\uff24 \ufb01t", "red fit"),
        ("black &amp; white &amp;amp; grey", "black & white & grey"),
        ("cafe\u0301  \t\n bar", "caf\u00e9 bar"),
        ("a\x07b", "ab"),
    ],
)
def test_texts_are_cleaned_as_ftfy_does(text: str, same: str) -> None:
    tokenizer = build_clip_tokenizer()
    assert tokenizer.encode(text).ids == tokenizer.encode(same).ids


def test_a_text_cannot_type_a_special_token() -> None:
    ids = build_clip_tokenizer().encode("red <|endoftext|> blue").ids
    assert ids.count(49407) == 1
    assert ids[-1] == 49407


@torch.no_grad()
def test_the_combiner_gives_the_authors_answers(tmp_path: Path) -> None:
    torch.save({"CLIP": weights_of(clip())}, tmp_path / "clip.pt")
    model = load_trained([COMBINER / "combiner.pt", tmp_path / "clip.pt"]).model
    with np.load(COMBINER / "golden.npz") as answers:
        image, text = torch.tensor(answers["image_features"]), torch.tensor(answers["text_features"])
        terms = model.compose(image, text)
        np.testing.assert_allclose(terms.numerators[:, 0], answers["combined"], atol=1e-6)
        as_terms = QueryTerms(terms.numerators.numpy(), np.ones_like(terms.numerators), ("similarity",))
        found = scores(as_terms, answers["gallery_features"])
        np.testing.assert_allclose(100 * found, answers["logits_x100"], atol=1e-4)
        stage_1 = load_trained(tmp_path / "clip.pt").model.compose(image, text).numerators[:, 0]
        np.testing.assert_allclose(stage_1, answers["elementwise_sum"], atol=1e-6)


def test_a_fine_tuned_clip_gives_the_authors_answers(tmp_path: Path) -> None:
    case = shared("clip4cir", "tiny_clip")
    files = [case / "saved_models" / "tuned_clip_best.pt", COMBINER / "combiner.pt"]
    engine = exported(load_trained(files), tmp_path / "clip4cir.cir")
    assert composes_in_parts(engine)
    images = shared("data", "fashionIQ", "img")
    with np.load(case / "golden_fiq_dress.npz") as answers:
        row = {str(name): index for index, name in enumerate(answers["names"])}
        rows = engine.encode_images([images / f"{name}.jpg" for name in row])
        np.testing.assert_allclose(rows, answers["index_features_raw"], atol=1e-5)
        text = engine.encode_texts([str(caption) for caption in answers["captions"]])
        np.testing.assert_allclose(text, answers["text_features_raw"], atol=1e-5)
        terms = engine.compose(rows[[row[str(name)] for name in answers["refs"]]], text)
        np.testing.assert_allclose(terms.numerators[:, 0], answers["predicted"], atol=1e-5)
        found = scores(terms, rows)
        np.testing.assert_allclose(1 - found, answers["distances"], atol=1e-4)
        assert_same_ranking(found, 1 - answers["distances"])


@torch.no_grad()
@pytest.mark.parametrize("padding", ["targetpad", "squarepad"])
@pytest.mark.parametrize("system", ["combiner", "sum"])
def test_official_metrics_on_fashioniq(tmp_path: Path, padding: str, system: str) -> None:
    case = shared("clip4cir", "tiny_clip")
    (tmp_path / "training_hyperparameters.json").write_text(
        json.dumps({"clip_model_name": "RN50x4", "transform": padding, "target_ratio": 1.25})
    )
    files = [case / "saved_models" / "tuned_clip_best.pt", tmp_path / "training_hyperparameters.json"]
    trained = load_trained(files + ([COMBINER / "combiner.pt"] if system == "combiner" else []))
    model, spec = trained.model, _pixels(trained.image)
    plan = protocol("fashioniq/clip4cir")
    official = json.loads((case / "official_metrics.json").read_text())
    for part in plan.load(shared("data", "fashionIQ"), "val"):
        rows = model.encode_gallery(torch.stack([torch.tensor(preprocess(i, spec)) for i in part.images]))
        outcomes = []
        for query in part.queries:
            first, second = query.texts
            sentence = f"{first.strip('.?, ').capitalize()} and {second.strip('.?, ')}"
            tokens = torch.tensor([trained.tokenizer.encode(sentence).ids])
            text = model.encode_text(tokens, torch.tensor([tokens.shape[1]]))
            terms = model.compose(rows[query.reference][None], text)
            as_terms = QueryTerms(terms.numerators.numpy(), np.ones_like(terms.numerators), ("similarity",))
            ranked = ReferenceScorer(Rows.of(rows.numpy())).topk(as_terms, len(rows)).rows[0]
            outcomes.append(judge(plan, query, ranking_of(plan, query, ranked)))
        metrics = metrics_of(outcomes)
        expected = official[f"fiq/{padding}/{system}/{part.name}"]
        assert [metrics["R@10"], metrics["R@50"]] == pytest.approx(expected, abs=1e-4)


def _pixels(image: dict[str, Any]) -> Any:
    manifest = {
        "format": "cir-bundle", "version": 1, "system": "s", "created_by": "c", "embedding_dim": 1,
        "terms": ["t"], "weighted": False, "precision": "float32", "image": image, "text": None,
        "graphs": {"image": "image.onnx", "compose": "compose.onnx"}, "parity": {}, "provenance": {},
        "members": {name: {"bytes": 1, "sha256": "0" * 64} for name in ("image.onnx", "compose.onnx")},
    }  # fmt: skip
    return read_manifest(json.dumps(manifest)).image


def test_rn50x4_is_recognised_by_its_shapes() -> None:
    lines = (GOLDEN / "clip4cir" / "clip_rn50x4_keys.txt").read_text().splitlines()
    shapes = {name: ast.literal_eval(shape) for name, shape in (line.split("\t")[:2] for line in lines)}
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = clip_config(weights, True, None, "RN50x4.pt")
    assert {key: config[key] for key in SIZES} == {
        "embed_dim": 640, "image_size": 288, "vision_layers": (4, 6, 10, 6), "vision_width": 80,
        "vision_heads": 40, "patch_size": 0, "context_length": 77, "vocabulary_size": 49408,
        "text_width": 640, "text_heads": 10, "text_layers": 12,
    }  # fmt: skip
    with torch.device("meta"):
        model = Clip(parse(ClipSettings, config, "clip"))
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert own == {name: shape for name, shape in shapes.items() if name != "logit_scale"}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # CLIP is published as TorchScript
@pytest.mark.parametrize("sizes", [SIZES, VIT], ids=["resnet", "vit"])
def test_every_layout_gives_the_same_model(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = clip(**sizes)
    weights = weights_of(model)
    tower = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    nested = {f"text.{name}" if name.startswith(tower) else name: value for name, value in weights.items()}
    torch.save({"epoch": 3, "CLIP": weights}, tmp_path / "tuned_clip_best.pt")
    torch.save({**weights, "input_resolution": torch.tensor(64)}, tmp_path / "openai_state_dict.pt")
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    torch.save({"state_dict": {f"module.{n}": v for n, v in nested.items()}}, tmp_path / "epoch_1.pt")
    save_file({n: v.contiguous() for n, v in nested.items()}, tmp_path / "open_clip_model.safetensors")
    traced = torch.jit.trace_module(model, {"encode_image": torch.zeros(1, 64, 64, 3, dtype=torch.uint8)})
    torch.jit.save(traced, tmp_path / "RN50.pt")
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {}}))
    expected = load_trained(tmp_path / "tuned_clip_best.pt").model
    assert expected.config["clip"]["patch_size"] == sizes["patch_size"]
    for name in ("openai_state_dict.pt", "RN50.pt"):
        _assert_same(load_trained(tmp_path / name).model, expected)
    for name in ("open_clip_pytorch_model.bin", "epoch_1.pt", "open_clip_model.safetensors"):
        with pytest.raises(CheckpointError, match=r"open_clip_config\.json"):
            load_trained(tmp_path / name)
        _assert_same(load_trained([config, tmp_path / name]).model, expected)
    config.write_text(json.dumps({"model_cfg": {}}))
    gelu = load_trained([tmp_path / "epoch_1.pt", config]).model
    assert gelu.config["clip"]["activation"] == "gelu"


def _assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert found.config == expected.config
    for (name, a), (_, b) in zip(found.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@torch.no_grad()
def test_a_vit_is_pytorchs_own_attention_over_patches() -> None:
    model = clip(**VIT)
    visual = model.visual
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    mean, std = torch.tensor(model.settings.mean), torch.tensor(model.settings.std)
    pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    patches = torch.nn.functional.unfold(pixels, 16, stride=16).transpose(1, 2)
    x = patches @ visual.conv1.weight.flatten(1).T
    x = torch.cat([visual.class_embedding.repeat(2, 1, 1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        attention = torch.nn.MultiheadAttention(64, 1, batch_first=True)
        attention.load_state_dict(block.attn.state_dict())
        y = block.ln_1(x)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
    expected = visual.ln_post(x[:, 0]) @ visual.proj
    torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=1e-4)


def test_rounding_touches_what_clip_holds_in_float16() -> None:
    weights = weights_of(clip())
    rounded = round_to_float16(weights)
    changed = {name for name, value in weights.items() if not torch.equal(value, rounded[name])}
    for name in ("visual.conv1.weight", "visual.attnpool.q_proj.weight", "text_projection"):
        assert name in changed
        assert torch.equal(rounded[name], weights[name].half().float())
    assert "transformer.resblocks.0.attn.in_proj_weight" in changed
    kept = ("bn", "ln_", "positional_embedding", "token_embedding", "downsample.1.")
    assert not any(part in name for name in changed for part in kept)


def test_preprocessing_is_that_of_the_authors() -> None:
    golden = shared("clip4cir", "preprocess.npz")
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]
    pads = {
        "targetpad288": {"op": "target_pad", "ratio": 1.25},
        "squarepad224": {"op": "pad_square", "fill": 0, "rounding": "clip4cir"},
    }
    with np.load(golden) as answers:
        for key, pad in pads.items():
            size = int(key[-3:])
            steps = [pad, {"op": "resize", "size": size, "interpolation": "bicubic"}]
            steps += [{"op": "center_crop", "size": size}, {"op": "to_rgb"}]
            image = {
                "kind": "pixels",
                "height": size,
                "width": size,
                "exif_orientation": False,
                "steps": steps,
            }
            for name, expected in zip(answers["names"], answers[key], strict=True):
                pixels = preprocess(shared("data", "fashionIQ", "img") / f"{name}.jpg", _pixels(image))
                found = (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std
                np.testing.assert_allclose(found, expected, atol=1e-5)


def test_files_that_do_not_make_a_model(tmp_path: Path) -> None:
    torch.save({"CLIP": weights_of(clip())}, tmp_path / "clip.pt")
    narrow = {**SIZES, "embed_dim": 32}
    torch.save({"CLIP": weights_of(clip(**narrow))}, tmp_path / "narrow.pt")
    torch.save({"CLIP": weights_of(clip(vocabulary_size=90))}, tmp_path / "words.pt")
    torch.save({"Combiner": {}}, tmp_path / "empty.pt")
    torch.save({"weights": {}}, tmp_path / "foreign.pt")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"clip_model_name": "RN50", "transform": "mirror"}))
    combiner = COMBINER / "combiner.pt"
    for files, said in (
        ([combiner], "holds no CLIP"),
        ([combiner, tmp_path / "narrow.pt"], "64 values and the CLIP of .* gives 32"),
        ([tmp_path / "clip.pt", tmp_path / "narrow.pt"], "same part"),
        ([tmp_path / "clip.pt", tmp_path / "foreign.pt"], "does not belong"),
        ([tmp_path / "clip.pt", tmp_path / "empty.pt"], "text_projection_layer"),
        ([tmp_path / "clip.pt", settings], "transform 'mirror'"),
        ([tmp_path / "words.pt"], "reads 90 tokens"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_trained(files)
    with pytest.raises(CheckpointError, match="no vocabulary of its own"):
        load_trained(tmp_path / "clip.pt", GOLDEN / "artemis" / "cirr_feat_bigru_small" / "cirr_vocab.pkl")


def _archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/code/__torch__.py", "import os\nos.system('false')\n")
        archive.writestr("m/data.pkl", pickled)
    return path


def test_a_torchscript_archive_cannot_run_code(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    evil = b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    path = _archive(tmp_path / "evil.pt", evil)
    with pytest.raises(CheckpointError, match=r"refers to (os|posix)\.system.*Nothing of it was executed"):
        read_checkpoint_file(path)
    assert not proof.exists()
    for module, name in ((b"torch", b"load"), (b"builtins", b"eval"), (b"torch._utils", b"_rebuild_tensor")):
        with pytest.raises(CheckpointError, match="refers to"):
            read_checkpoint_file(_archive(tmp_path / "evil.pt", b"c" + module + b"\n" + name + b"\n."))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # CLIP is published as TorchScript
def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    traced = torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    torch.jit.save(traced, tmp_path / "ok.pt")
    content = (tmp_path / "ok.pt").read_bytes()
    assert set(read_checkpoint_file(tmp_path / "ok.pt")["torchscript"]) == {"weight", "bias"}
    for cut in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "cut.pt").write_bytes(content[:cut])
        with pytest.raises(CheckpointError):
            read_checkpoint_file(tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint_file(_archive(tmp_path / "zip.pt", b"N.", zipfile.ZIP_DEFLATED))
    (tmp_path / "bad.json").write_text('{"model_cfg": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_checkpoint_file(tmp_path / "bad.json")
    (tmp_path / "bad.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b'{"a":1}')
    with pytest.raises(CheckpointError, match="safetensors"):
        read_checkpoint_file(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("ratio", [0.5, 101, float("inf"), float("nan"), 10**400, True, "1.25", [1.25]])
def test_a_ratio_that_no_padding_has_is_refused(tmp_path: Path, ratio: object) -> None:
    settings = tmp_path / "training_hyperparameters.json"
    content = {"clip_model_name": "RN50x4", "transform": "targetpad", "target_ratio": ratio}
    settings.write_text(json.dumps(content))
    clip = shared("clip4cir", "tiny_clip") / "saved_models" / "tuned_clip_best.pt"
    with pytest.raises(
        CheckpointError, match=r"target_ratio .*; expected targetpad with a ratio from 1 to 100"
    ):
        load_trained([clip, settings])
