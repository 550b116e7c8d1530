"""Operators of PyTorch through the real export: PyTorch's numbers, or a refusal that names the module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from cir_export.graphs.bags import with_plain_bags
from cir_export.graphs.export import Graph, _export
from cir_export.graphs.opset import lower_opset
from cir_infer.errors import ExportError

Operation = Callable[[Tensor], Tensor]


class Image(nn.Module):
    """An operation on images (n, 3, 16, 12), averaged to (n, 5)."""

    def __init__(self, operation: nn.Module | Operation) -> None:
        super().__init__()
        self.operation = operation
        with torch.no_grad():
            size = operation(torch.rand(2, 3, 16, 12)).flatten(1).shape[1]
        self.head = nn.Linear(size, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.operation(image).flatten(1))


class Beside(nn.Module):
    """Several modules with one input: a graph for each would take as long as all of them in one."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.several = nn.ModuleList(modules)

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(given) for module in self.several)


def exported(
    module: nn.Module, name: str, sample: Tensor, outputs: Sequence[str] = ("embedding",)
) -> onnx.ModelProto:
    return _export(Graph("image", module, {name: sample}, {name: {0: "n"}}, tuple(outputs)), {}, None)


def answers(
    modules: Iterable[nn.Module], name: str, sample: Tensor, given: Tensor
) -> tuple[onnx.ModelProto, list[np.ndarray], tuple[Tensor, ...]]:
    """Modules in one graph: what it gives, and PyTorch."""
    module = Beside(modules).eval()
    model = exported(module, name, sample, [f"of_{number}" for number in range(len(module.several))])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        return model, session.run(None, {name: given.numpy()}), module(given)


def resize(**options) -> Operation:
    return lambda x: functional.interpolate(x, **options)


OPERATIONS: dict[str, nn.Module | Operation] = {
    "nearest": resize(scale_factor=2),
    "nearest to a size": resize(size=(9, 20)),
    "bilinear": resize(size=(9, 20), mode="bilinear"),
    "bilinear by an odd factor": resize(scale_factor=1.5, mode="bilinear"),
    "aligned": resize(size=(9, 20), mode="bilinear", align_corners=True),
    "bicubic": resize(size=(9, 20), mode="bicubic"),
    "antialiased": resize(size=(9, 5), mode="bilinear", antialias=True),
    "antialiased, wider": resize(size=(20, 5), mode="bicubic", antialias=True),
    "antialiased, aligned": resize(size=(9, 5), mode="bilinear", antialias=True, align_corners=True),
    "Upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
    "Mish": nn.Mish(),
    "fold": lambda x: functional.fold(functional.unfold(x, 4, stride=4), (16, 12), 4, stride=4),
    "fold with overlap and padding": lambda x: functional.fold(
        functional.unfold(x, (3, 2), padding=1, stride=2), (16, 12), (3, 2), padding=1, stride=2
    ),
    "fold with dilation": lambda x: functional.fold(
        functional.unfold(x, 2, dilation=2, stride=3), (16, 12), 2, dilation=2, stride=3
    ),
    "GroupNorm": nn.GroupNorm(3, 3),
    "uneven split": lambda x: torch.cat(x.chunk(5, 3)[::-1], 3),
    "padding": lambda x: functional.pad(x, (1, 2, 2, 1), mode="reflect"),
    "norms over all axes": lambda x: torch.cat(
        [x.amax((2, 3)), x.flatten(2).norm(dim=2), x.logsumexp((2, 3))], 1
    ),
    "transposed convolution": nn.ConvTranspose2d(3, 4, 3, 2, 1, 1),
}


@pytest.fixture(scope="module")
def operations() -> dict[str, tuple[np.ndarray, Tensor]]:
    """What ONNX Runtime and PyTorch make of an image, by the operation's name."""
    torch.manual_seed(0)
    images = map(Image, OPERATIONS.values())
    model, found, expected = answers(images, "image", torch.rand(3, 3, 16, 12), torch.rand(5, 3, 16, 12))
    assert all(not node.domain for node in model.graph.node)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    return dict(zip(OPERATIONS, zip(found, expected, strict=True), strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_pytorchs_numbers(
    operations: dict[str, tuple[np.ndarray, Tensor]], name: str
) -> None:
    found, expected = operations[name]
    assert found.shape == (5, 5)
    np.testing.assert_allclose(found, expected, atol=2e-6)


class Words(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)


def test_a_bag_of_embeddings_needs_no_loop() -> None:
    torch.manual_seed(0)
    kinds = itertools.product(("sum", "mean", "max"), (None, 0))
    bags = [Words(nn.EmbeddingBag(9, 5, mode=mode, padding_idx=padding)).eval() for mode, padding in kinds]
    tokens = torch.tensor([[1, 2, 3, 0], [8, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.int32)
    with torch.no_grad():
        for bag in bags:
            expected = bag(tokens)
            with_plain_bags(bag)
            np.testing.assert_allclose(bag(tokens), expected, atol=1e-6)
    _, found, same = answers(bags, "tokens", tokens, tokens[:2])
    for one, other in zip(found, same, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.bfloat16() * 2).float()


class Bits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ((x * 255).to(torch.int32) & 15).float()


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


REFUSED: dict[str, tuple[nn.Module | Operation, str]] = {
    "two of them": (
        nn.Sequential(Half(), Bits()),
        r"cannot hold bfloat16 .* in operation\.0 \(Half\); .*BitwiseAnd in operation\.1 \(Bits\); write it",
    ),
    "no ONNX form": (
        nn.AdaptiveMaxPool2d(5),
        r"no ONNX form of adaptive_max_pool2d in operation \(AdaptiveMaxPool2d\)",
    ),
    "a branch": (Branch(), r"data-dependent .*\(test_operators\.py, line \d+\); the code branches"),
    "a loop over rows": (lambda x: torch.stack([row * 2 for row in x]), r"constant \(3\); .*tensor\.shape"),
    "NumPy": (lambda x: torch.from_numpy(x.numpy() * 2), r"numpy\(\).*leaves PyTorch"),
    "control flow": (
        lambda x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,)),
        r"cannot hold control flow \(If\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_cause_and_what_to_do(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    operation, said = REFUSED[name]
    with pytest.raises(ExportError, match=said) as raised:
        exported(Image(operation).eval(), "image", torch.rand(3, 3, 16, 12))
    message = str(raised.value)
    assert "\x1b" not in message and "TORCH_LOGS" not in message and len(message) < 700
    out, err = capfd.readouterr()
    assert "def forward" not in out + err  # PyTorch prints the program that it failed on


def graph_of(node: onnx.NodeProto, *constants: onnx.TensorProto) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, None, None])
    graph = helper.make_graph([node], "g", [image], [out], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def scales() -> onnx.TensorProto:
    return helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])


def test_attributes_that_opset_17_does_not_know_go_where_they_say_nothing() -> None:
    neutral = {"keep_aspect_ratio_policy": "stretch", "antialias": 0}
    model = graph_of(helper.make_node("Resize", ["image", "", "scales"], ["out"], **neutral), scales())
    lower_opset(model)
    assert [attribute.name for attribute in model.graph.node[0].attribute] == []
    other = graph_of(
        helper.make_node("Resize", ["image", "", "scales"], ["out"], axes=[0, 1, 2, 3], **neutral), scales()
    )
    with pytest.raises(ExportError, match=r"Resize with axes = \[0, 1, 2, 3\]"):
        lower_opset(other)
    policy = graph_of(
        helper.make_node("Resize", ["image", "", "scales"], ["out"], keep_aspect_ratio_policy="not_larger"),
        scales(),
    )
    with pytest.raises(ExportError, match="Resize with keep_aspect_ratio_policy = not_larger"):
        lower_opset(policy)
    pooled = helper.make_node(
        "LpPool", ["image"], ["out"], kernel_shape=[2, 2], ceil_mode=1, dilations=[1, 1]
    )
    with pytest.raises(ExportError, match="LpPool with ceil_mode = 1"):
        lower_opset(graph_of(pooled))
