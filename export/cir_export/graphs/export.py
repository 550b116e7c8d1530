"""Exports the graphs of a bundle: image, reference where it differs, text, compose.

docs/architecture.md says what goes in and out. Every batch and length axis is dynamic, the opset is 17,
and nothing is unrolled; all of that is asserted on what the exporter wrote.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn
from torch.export import ExportedProgram

from cir_export.continuation import number_anew, taken_apart
from cir_export.graphs.apart import apart, rename
from cir_export.graphs.bags import with_plain_bags
from cir_export.graphs.failure import export_failure
from cir_export.graphs.operators import one_table_of_operators
from cir_export.graphs.opset import OPSET, lower_opset
from cir_export.graphs.recurrent import with_onnx_recurrent
from cir_export.graphs.turned import turn_weights
from cir_export.models import RetrievalModel
from cir_export.weights import Values, WeightsFile, put_off
from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.console.progress import progress_bar
from cir_infer.errors import ExportError

__all__ = ["EXPLAIN", "Graph", "check_graph", "export_graphs", "forget_graphs"]

EXPLAIN = "explain"
_QUERY = "query"
_IN_PARTS = ("embedding", "parts", "constant")

_SAMPLES = 3
_LENGTH = "t"
"""The axis of a text's tokens."""
_OWN = "cir_export_"
_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_INPUT_TYPES = {
    torch.uint8: TensorProto.UINT8,
    torch.int32: TensorProto.INT32,
    torch.float32: TensorProto.FLOAT,
}


@dataclass(frozen=True)
class Graph:
    """A graph to export.

    Attributes:
        name: "image", "reference", "text" or "compose"; "query" for the last three in one.
        module: called with the inputs in order; gives a tensor or a tuple of tensors.
        inputs: samples by input name, with a batch of at least 2.
        axes: names of the dynamic axes by input name.
        outputs: names.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


class _Image(nn.Module):
    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode_gallery(image)


class _ImageInParts(_Image):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        found = self.model.encode_gallery_in_parts(image)
        assert found is not None
        return tuple(found)


class _Reference(_Image):
    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode_reference(image)


class _Text(nn.Module):
    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.model.encode_text(tokens, lengths)


class _Compose(nn.Module):
    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(zip(self.model.composes, inputs, strict=True))
        reference: Any = given.get("reference")  # None for a system that does not read it
        text: Any = given.get("text")
        terms = self.model.compose(reference, text)
        return tuple(part for part in terms if part is not None)


class _Query(_Text):
    def forward(self, image: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(part for part in self.model.terms_of(image, tokens, lengths) if part is not None)


def export_graphs(
    model: RetrievalModel,
    image: dict[str, Any],
    progress: bool = False,
    weights: WeightsFile | None = None,
    tokens: int | None = None,
) -> dict[str, bytes]:
    """Exports every graph of a model.

    Args:
        model: in evaluation mode; it is left as it is, but on the CPU.
        image: what its image graph takes, `image` of a bundle's manifest.
        progress: show a bar on a terminal.
        weights: where large weights go; None leaves all of them in the graphs.
        tokens: the most that a text has; None where that is not known.

    Returns:
        ONNX models by graph name; `EXPLAIN` continues the image graph, where a row is a sum over positions.

    Raises:
        ExportError: PyTorch cannot export a part of the model, or what it wrote is not what a bundle
            needs.
    """
    model = with_onnx_recurrent(model.cpu()).eval()
    with_plain_bags(model)
    graphs = _graphs(model, image)
    exported: dict[str, bytes] = {}
    made: dict[str, ModelProto] = {}
    there: set[str] = set()
    for graph in progress_bar(graphs, len(graphs), "exporting", "graph", progress):
        if graph.name in there:
            continue
        before, values = made, dict[str, Values]()
        large = None if weights is None else weights.large
        try:
            made = {graph.name: _export(graph, values, large)}
        except ExportError as error:
            if tokens is None or f"Constraints violated ({_LENGTH})" not in str(error):
                raise
            # A table of places takes no more than it has, which PyTorch wants to be told.
            values.clear()
            made = {graph.name: _export(graph, values, large, tokens)}
        if graph.outputs == _IN_PARTS:
            made["image"], made[EXPLAIN] = taken_apart(made["image"], _IN_PARTS[1:])
        if graph.name == "image":
            number_anew(list(made.values()))
        if weights is not None:
            # Now that names and order are final: they decide what is in the graph, and so its fingerprint.
            weights.take(list(made.values()), values)
        if graph.name == _QUERY:
            made = apart(made[_QUERY], before["image"]) or {}
            there = {*made, "reference"} if made else there
        exported.update({name: model.SerializeToString() for name, model in made.items()})
    return exported


class _Small(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image + 1


def forget_graphs() -> None:
    """Let go of the weights of what was exported.

    The exporter's rewriting rules keep the last graph that they saw; they are shown a small one.
    """
    sample = {"image": torch.zeros(_SAMPLES, 1)}
    _export(Graph("small", _Small(), sample, {"image": {0: "n"}}, ("embedding",)), {}, None)


def _graphs(model: RetrievalModel, image: dict[str, Any]) -> list[Graph]:
    if image["kind"] == "features":
        images = torch.rand(_SAMPLES, image["size"])
    else:
        shape = (_SAMPLES, image["height"], image["width"], 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
    tokens = torch.ones(_SAMPLES, 7, dtype=torch.int32)
    lengths = torch.tensor([7, 3, 1], dtype=torch.int32)
    batch = {0: "n"}
    terms = ("numerators", "weights") if model.weighted else ("numerators",)
    with torch.no_grad():
        composed = {
            "reference": model.encode_reference(images),
            "text": model.encode_text(tokens, lengths),
        }
        in_parts = model.encode_gallery_in_parts(images) is not None
    graphs = [
        Graph("image", _ImageInParts(model), {"image": images}, {"image": batch}, _IN_PARTS)
        if in_parts
        else Graph("image", _Image(model), {"image": images}, {"image": batch}, ("embedding",))
    ]
    if model.in_one_piece:
        inputs = {"image": images, "tokens": tokens, "lengths": lengths}
        axes = {"image": batch, "tokens": {0: "n", 1: _LENGTH}, "lengths": batch}
        graphs.append(Graph(_QUERY, _Query(model), inputs, axes, terms))
    if not model.reference_is_gallery_row:
        graphs.append(
            Graph("reference", _Reference(model), {"image": images}, {"image": batch}, ("reference",))
        )
    graphs.append(
        Graph(
            "text",
            _Text(model),
            {"tokens": tokens, "lengths": lengths},
            {"tokens": {0: "n", 1: _LENGTH}, "lengths": batch},
            ("text",),
        )
    )
    graphs.append(
        Graph(
            "compose",
            _Compose(model),
            {name: composed[name] for name in model.composes},
            dict.fromkeys(model.composes, batch),
            terms,
        )
    )
    return graphs


def _export(
    graph: Graph, aside: dict[str, Values], large: int | None, tokens: int | None = None
) -> ModelProto:
    """The graph, for texts of at most so many tokens; weights of so many bytes are put aside, not into it."""
    names = sorted({name for axes in graph.axes.values() for name in axes.values()})
    dims = {name: torch.export.Dim(name, min=1, max=tokens if name == _LENGTH else None) for name in names}
    shapes: tuple[Any, ...] = tuple(
        {axis: dims[name] for axis, name in graph.axes[key].items()} for key in graph.inputs
    )
    if isinstance(graph.module, _Compose):
        shapes = (shapes,)  # one entry for all of *inputs
    program: ExportedProgram | None = None
    try:
        with _quiet(), one_table_of_operators():
            # torch.onnx.export alone would fall back to an export with frozen axes, and say nothing.
            program = torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=shapes)
            exported = torch.onnx.export(
                program,
                dynamic_shapes=shapes,
                input_names=[f"{_OWN}{name}" for name in graph.inputs],
                output_names=[f"{_OWN}{name}" for name in graph.outputs],
                opset_version=OPSET + 1,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise export_failure(graph.name, error, program) from error
    assert exported is not None
    turn_weights(exported.model.graph)
    if large is not None:
        _put_aside(exported.model.graph.initializers.values(), aside, large)
    model = exported.model_proto
    for tensor in model.graph.initializer:
        if tensor.name in aside:
            put_off(tensor, tensor.name)
    del exported, program
    _name_ends(model)
    try:
        lower_opset(model)
    except ExportError as error:
        raise ExportError(f"the {graph.name} graph cannot be written: {error}") from error
    if graph.name != _QUERY:  # which is taken apart by what is known of shapes
        del model.graph.value_info[:]
    _strip(model)
    check_graph(model, graph)
    return model


def _put_aside(constants: Iterable[Any], aside: dict[str, Values], large: int) -> None:
    """Takes the large constants out of the exporter's graph, so that they are not copied into a message."""
    from onnx_ir import ExternalTensor

    for value in constants:
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= large and int(tensor.dtype) in NUMBERS:
            aside[value.name] = tensor
            value.const_value = ExternalTensor(
                "", None, None, tensor.dtype, shape=tensor.shape, name=value.name
            )


def check_graph(model: ModelProto, graph: Graph) -> None:
    """Asserts that a graph has the inputs, outputs, dynamic axes, opset and operators that a bundle needs.

    Raises:
        ExportError: it has not; the exporter is known to freeze axes without an error.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the {graph.name} graph has opsets {opsets}; expected {OPSET} alone")
    for node in model.graph.node:
        if node.op_type in _CONTROL_FLOW or node.domain:
            raise ExportError(
                f"the {graph.name} graph has a node {node.domain}{node.op_type}; "
                "expected no control flow and standard operators only"
            )
    for kind, values, names in (
        ("inputs", model.graph.input, tuple(graph.inputs)),
        ("outputs", model.graph.output, graph.outputs),
    ):
        if tuple(value.name for value in values) != names:
            raise ExportError(
                f"the {graph.name} graph has {kind} {[v.name for v in values]}; expected {names}"
            )
    for value in model.graph.input:
        sample, axes = graph.inputs[value.name], graph.axes[value.name]
        expected = [axes.get(axis, size) for axis, size in enumerate(sample.shape)]
        found = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if found != expected or value.type.tensor_type.elem_type != _INPUT_TYPES[sample.dtype]:
            raise ExportError(
                f"the {graph.name} graph's input {value.name} has shape {found}; expected {expected}"
            )
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.elem_type != TensorProto.FLOAT or not dims or dims[0].dim_param != "n":
            raise ExportError(f"the {graph.name} graph's output {value.name} is not float32 (n, ...)")
        if any(not dim.dim_value for dim in list(dims)[1:]):
            raise ExportError(
                f"the {graph.name} graph's output {value.name} has a second axis of unknown length"
            )


def _name_ends(model: ModelProto) -> None:
    """Gives inputs and outputs the names of a bundle.

    Values inside are named after operators, and one of them is "embedding".
    """
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    names = {end: end.removeprefix(_OWN) for end in ends}
    inside = {name for node in model.graph.node for name in node.output} - ends
    inside |= {tensor.name for tensor in model.graph.initializer}
    names |= {name: f"{name}_inside" for name in inside & set(names.values())}
    rename(model, names)


def _strip(model: ModelProto) -> None:
    """Drops the exporter's notes, among them source paths of the machine it ran on."""
    model.doc_string = ""
    model.producer_version = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for item in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        item.doc_string = ""
        del item.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes on opsets and torchvision, which a user can do nothing about, to itself.

    PyTorch 2.8 also prints how often it has rewritten the graph, amid a command's own output.
    """
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
    ]
    loggers += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("torch.fx.") and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),  # a failure also prints the program that it failed on
    ):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
