"""Gallery rows as sums over positions: exact for every kind of encoder, and what the bundle makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from cir_export.export import export_bundle
from cir_export.graphs import EXPLAIN, export, export_graphs
from cir_export.model_file import TrainedModel
from cir_export.models import RetrievalModel, build_model
from cir_export.models.base import InParts
from cir_export.models.encoders.image import PixelEncoder
from cir_export.precision.layers import layers_of
from cir_export.preprocessing import plain_resize
from cir_export.verification import Samples, draw_samples
from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.continuation import continued
from cir_infer.errors import BundleError, UsageError
from tests.export.systems.examples import CONFIGS, batch, example
from tests.export.test_export import trained
from tests.export.tiny import config

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "image_size": 64,
    "vision_width": 8,
    "vision_heads": 4,
    "context_length": 10,
    "vocabulary_size": 30,
    "text_width": 16,
    "text_heads": 2,
    "text_layers": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    **{
        f"{pooling}, {'unit' if unit else 'raw'}": config(
            image={"trunk": "small", "pooling": pooling, "size": 24, "channels": [4, 6, 8], "normalize": unit}
        )
        for pooling in ("grid", "gem", "mean")
        for unit in (True, False)
    },
    "attention pooling": {
        "system": "clip4cir-sum",
        "clip": {**CLIP, "vision_layers": [1, 1, 1, 1], "patch_size": 0},
    },
    "vit": {"system": "clip4cir-sum", "clip": {**CLIP, "vision_layers": [3], "patch_size": 16}},
    **{
        f"siglip, {'unit' if unit else 'raw'}": {
            "system": "sum",
            "unit": unit,
            "pair": {
                "family": "siglip",
                "image_size": 64,
                "patch_size": 16,
                "context_length": 8,
                "vocabulary_size": 30,
                **dict.fromkeys(("vision_layers", "text_layers", "vision_heads", "text_heads"), 2),
                **dict.fromkeys(("vision_width", "text_width", "vision_mlp", "text_mlp"), 16),
            },
        }
        for unit in (True, False)
    },
    "a map is the reference": config("tirg-last-convolution"),
}


def model_of(kind: str) -> RetrievalModel:
    torch.manual_seed(1)
    model = build_model(KINDS[kind]).eval()
    with torch.no_grad():
        for values in [*model.parameters(), *model.buffers()]:
            if values.ndim == 1 and values.is_floating_point():
                values.copy_(torch.rand(len(values)) + 0.5)  # biases and norms that are not trivial
    return model


def images_of(model: RetrievalModel, count: int) -> Tensor:
    side = 64 if {"clip", "pair"} & set(model.config) else 24
    random = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 256, (count, 8, 8, 3), generator=random, dtype=torch.uint8)
    return coarse.repeat_interleave(side // 8, 1).repeat_interleave(side // 8, 2)


def in_parts(model: RetrievalModel, images: Tensor) -> InParts:
    found = model.encode_gallery_in_parts(images)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_constant_add_up_to_the_row(kind: str) -> None:
    model = model_of(kind)
    images = images_of(model, 200)
    with torch.no_grad():
        rows, parts, constant = in_parts(model, images)
        assert torch.equal(rows, model.encode_gallery(images))
    total = parts.double().sum((1, 2)) + constant
    unit_rows = torch.allclose(rows.norm(dim=1), torch.ones(200), atol=1e-5)
    if unit_rows:
        total = total / total.norm(dim=1, keepdim=True)
    assert (total - rows).abs().max() <= 2e-6 * rows.abs().max()
    assert parts.abs().sum() > 0.05 * constant.abs().sum(), "the constant is not everything"


@pytest.mark.parametrize("system", CONFIGS)
def test_no_system_over_an_encoder_of_pictures_keeps_its_parts_back(system: str) -> None:
    model = example(system).eval()
    if isinstance(getattr(model, "image_encoder", None), PixelEncoder):
        with torch.no_grad():
            assert in_parts(model, batch(system, 2)[0]).parts.shape[::3] == (2, model.embedding_dim)


@pytest.mark.parametrize("pooling", ["gem", "mean", "grid"])
def test_parts_are_autograds_euler_products(pooling: str) -> None:
    """A pool is homogeneous of degree one, so parts are the map times the gradient, position by position."""
    model = model_of(f"{pooling}, raw")
    encoder: Any = model.image_encoder
    with torch.no_grad():
        last = encoder.trunk(encoder.normalize(images_of(model, 3))).clamp_min(1e-3)
    last.requires_grad_()
    rows = encoder.project(encoder.pool(last))
    expected = torch.stack(
        [
            (torch.autograd.grad(rows[:, d].sum(), last, retain_graph=True)[0] * last).sum(1)
            for d in range(rows.shape[1])
        ],
        -1,
    )
    torch.testing.assert_close(
        encoder.pool.shares(last, encoder.project.weight), expected, rtol=1e-4, atol=1e-6
    )


def layer_norm(x: np.ndarray, norm: Any) -> np.ndarray:
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps) * weight + bias


def test_parts_of_a_vit_are_what_its_class_token_took() -> None:
    """Head by head, layer by layer: attention times value times output, as seen through the last norm."""
    model = model_of("vit")
    visual: Any = model.clip.visual  # type: ignore[union-attr]
    images = images_of(model, 1)
    with torch.no_grad():
        parts = in_parts(model, images).parts[0].reshape(-1, 16).numpy()
        state = visual.ln_pre(visual._tokens(model.clip.normalize(images)))  # type: ignore[union-attr]
        taken = np.zeros((16, 8))
        for block in visual.transformer.resblocks:
            normed = layer_norm(state[0].numpy(), block.ln_1)
            weight, bias = block.attn.in_proj_weight.numpy(), block.attn.in_proj_bias.numpy()
            out = block.attn.out_proj.weight.numpy()
            for head in range(4):
                q, k, v = (slice(8 * part + 2 * head, 8 * part + 2 * head + 2) for part in range(3))
                scores = (normed[0] @ weight[q].T + bias[q]) @ (normed @ weight[k].T + bias[k]).T / 2**0.5
                attention = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                values = attention[1:, None] * (normed[1:] @ weight[v].T)
                taken += values @ out[:, 2 * head : 2 * head + 2].T
            state = block(state, None)
        last = state[0, 0].numpy()
    taken = (taken - taken.mean(1, keepdims=True)) / np.sqrt(last.var() + visual.ln_post.eps)
    expected = taken * visual.ln_post.weight.detach().numpy() @ visual.proj.detach().numpy()
    np.testing.assert_allclose(parts, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"image": {"features": 12}}, {"system": "sac"}])
def test_rows_that_are_no_such_sum_have_no_parts(change: dict[str, Any]) -> None:
    system = change.pop("system", "artemis")
    text = {"vocabulary_size": 30, "word_dim": 10, "hidden": 8} if system == "sac" else {}
    model = build_model(config(system, **change, **({"text": text} if text else {}))).eval()
    images = torch.rand(2, 12) if change else images_of(model, 2)
    assert model.encode_gallery_in_parts(images) is None


@pytest.fixture(scope="module")
def with_gem() -> TrainedModel:
    model = replace(trained(), image=plain_resize(24))
    model.model = build_model(
        {
            **model.model.config,
            "image": {"trunk": "small", "pooling": "gem", "size": 24, "channels": [4, 6, 8]},
        }
    ).eval()
    return model


@pytest.fixture(scope="module")
def bundle(with_gem: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in_parts") / "gem.cir"
    export_bundle(with_gem, path, samples(with_gem))
    return path


def samples(model: TrainedModel) -> Samples:
    drawn = draw_samples(model.image, model.text, model.tokenizer)
    return Samples(drawn.images[:6], drawn.texts[:4], drawn.source)


def test_a_bundle_holds_what_is_added_and_no_weight_twice(bundle: Path) -> None:
    opened = Bundle(bundle)
    manifest = opened.manifest
    assert manifest.version == 2 and manifest.explain is not None
    assert (manifest.explain.height, manifest.explain.width, manifest.explain.unit_rows) == (3, 3, True)
    assert "unexplained" not in manifest.parity
    assert {"rows as sums over positions", "parts of the sums"} <= {
        check["what"] for check in manifest.parity["checks"]
    }
    whole = onnx.load_from_string(opened.graph("explain").data)
    onnx.checker.check_model(whole, full_check=True)
    merged = onnx.load_from_string(opened.graph("image").data)
    merged.graph.MergeFrom(onnx.load_from_string(opened.read("explain.onnx")).graph)
    assert whole == merged, "what protocol buffers make of two pieces of one message"
    assert manifest.members["explain.onnx"].bytes < 3000
    random = np.random.default_rng(0)
    batch = random.integers(0, 256, (7, 24, 24, 3), np.uint8)
    with Engine(opened, device="cpu", threads=1) as engine:
        rows, parts, constant = engine.encode_in_parts(batch)
        assert parts.shape == (7, 3, 3, 24) and constant.shape == (7, 24)
        np.testing.assert_array_equal(rows, engine.encode_prepared(batch))
        total = parts.astype(float).sum((1, 2)) + constant
        total /= np.linalg.norm(total, axis=1, keepdims=True)
        np.testing.assert_allclose(total, rows, atol=1e-6)
        with pytest.raises(UsageError, match="batch"):
            engine.encode_in_parts(batch[:, :20])
    with pytest.raises(UsageError, match="closed"):
        engine.encode_in_parts(batch)


WIDE = 96
"""Width of a tower whose weights PyTorch's exporter calls large: they have more than 8,192 values."""


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        (config(), 24),
        (
            {
                "system": "clip4cir-sum",
                "clip": {**CLIP, "vision_layers": [2], "patch_size": 32, "vision_width": WIDE},
            },
            64,
        ),
        (
            {
                "system": "sum",
                "unit": True,
                "pair": {**KINDS["siglip, unit"]["pair"], "vision_width": WIDE, "vision_mlp": WIDE},
            },
            64,
        ),
    ],
    ids=["convolutions", "wide vit", "wide siglip"],
)
def test_the_image_graph_does_not_depend_on_what_explains_it(
    settings: dict[str, Any], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sha256 is in the fingerprint, and a gallery must stay valid."""
    torch.manual_seed(0)
    model = build_model(settings).eval()
    graphs = export._graphs
    monkeypatch.setattr(export, "_graphs", lambda *given: graphs(*given)[:1])  # the others take seconds
    with_parts = export_graphs(model, plain_resize(side))
    monkeypatch.setattr(type(model), "encode_gallery_in_parts", lambda *_: None)
    without = export_graphs(model, plain_resize(side))
    assert set(with_parts) - set(without) == {EXPLAIN}
    assert with_parts["image"] == without["image"]
    # Nor is a weight that both read turned or split each time: precisions lower products with constants.
    for content in (with_parts["image"], continued(with_parts["image"], with_parts[EXPLAIN])):
        graph = onnx.load_from_string(content).graph
        constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
        moved = [node for node in graph.node if node.op_type in ("Transpose", "Split")]
        assert moved and not constants & {node.input[0] for node in moved}


def test_parts_of_one_weight_are_layers_under_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's head has queries, keys and values in one weight, and its queries are made of a weight, too."""
    graphs = export._graphs
    monkeypatch.setattr(export, "_graphs", lambda *given: graphs(*given)[:1])  # the others take seconds
    found = export_graphs(model_of("siglip, unit"), plain_resize(64))
    model = onnx.load_from_string(found["image"])
    layers = [layer for layer in layers_of(model).values() if ".head." in layer]
    assert layers == [f"pair.visual.head.{name}" for name in ("probe", "in_proj.1", "in_proj.2")] + [
        f"pair.visual.head.{name}" for name in ("out_proj", "mlp.c_fc", "mlp.c_proj")
    ]


def test_sums_that_do_not_hold_are_left_out_with_the_reason(
    with_gem: TrainedModel, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = type(with_gem.model).encode_gallery_in_parts
    opened = Bundle(bundle)
    graphs = {name: opened.read(f"{name}.onnx") for name in ("image", "text", "compose", EXPLAIN)}
    monkeypatch.setattr("cir_export.export.export_graphs", lambda *_: graphs)  # exporting takes seconds

    def wrong(self: RetrievalModel, images: Tensor) -> InParts:
        found = right(self, images)
        assert found is not None
        return found._replace(parts=found.parts * found.parts.new_tensor(1.01))

    monkeypatch.setattr(type(with_gem.model), "encode_gallery_in_parts", wrong)
    manifest = export_bundle(with_gem, tmp_path / "wrong.cir", samples(with_gem)).manifest
    assert (
        manifest.explain is None
        and manifest.version == 1
        and set(manifest.graphs) == {"image", "text", "compose"}
    )
    assert "parts of the sums: differs by" in manifest.parity["unexplained"]
    with Engine(tmp_path / "wrong.cir", device="cpu") as engine:
        assert not engine.adds_up
        with pytest.raises(UsageError, match="no graph that explains"):
            engine.encode_in_parts(np.zeros((1, 24, 24, 3), np.uint8))


def test_a_continuation_that_does_not_fit_is_refused(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle(bundle)
    members = {name: opened.read(name) for name in opened.manifest.members}
    rest = onnx.load_from_string(members["explain.onnx"])
    unknown, twice, unnamed = (onnx.ModelProto() for _ in range(3))
    for model in (unknown, twice, unnamed):
        model.CopyFrom(rest)
    unknown.graph.node[0].input[0] = "nothing"
    twice.graph.initializer.append(onnx.load_from_string(members["image.onnx"]).graph.initializer[0])
    unnamed.graph.ClearField("output")
    for content in (b"no model", unknown, twice, unnamed, members["image.onnx"]):
        changed = content if isinstance(content, bytes) else content.SerializeToString()
        write_bundle(tmp_path / "bad.cir", opened.manifest, {**members, "explain.onnx": changed})
        with (
            Engine(tmp_path / "bad.cir", device="cpu") as engine,
            pytest.raises(BundleError, match=r"explain graph|explain|no ONNX model"),
        ):
            engine.encode_in_parts(np.zeros((1, 24, 24, 3), np.uint8))
    with pytest.raises(BundleError, match="no ONNX model"):
        continued(members["image.onnx"], b"\x3a")
