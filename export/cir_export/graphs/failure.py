"""What PyTorch's exporter says when it fails, as one line: the cause, where it is, and what to do."""

from __future__ import annotations

import re
import traceback

from torch.export import ExportedProgram

from cir_export.graphs.origin import module_path
from cir_infer.errors import ExportError, came_of

__all__ = ["export_failure", "place_of", "said"]

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ADVICE = re.compile(
    "|".join(
        (
            r"For (more|extended|C\+\+) [^\n]*",
            r"If (you suspect the guard|you're using mark_dynamic)[^\n]*",
            r"consider using data-dependent friendly APIs[^\n]*",
            r"\((unhinted|Size-like symbols|Refer to the full stack trace)[^\n)]*\)\.?",
            r"Caused by: [^\n]*",
            r"(The error above occurred when calling|The following call raised|Suggested fixes:|⬆️).*",
        )
    ),
    re.DOTALL,
)
"""What PyTorch adds to an error about its own switches and reports."""

_MOST = 1200

_REMEDIES = (
    (
        r"maximum recursion depth exceeded",
        "the code calls itself, or modules call each other, too deep; use a loop",
    ),
    (
        r"Constraints violated \(t\).*<= \d+",
        "the code reads texts of so many tokens at most, as a table of places has; set max_tokens to no more",
    ),
    (
        r"specialized it to be a constant|Constraints violated|_mark_dynamic|not all values of",
        "the code fixes the number of images or the length of texts; take sizes from tensor.shape, not from "
        "len(tensor), int(...) or a loop over rows",
    ),
    (
        r"Could not guard on data-dependent|data-dependent expression|\.item\(\)|_local_scalar_dense",
        "the code branches on, or takes its sizes from, values that it computed; use torch.where, masks and "
        "sizes that are known before",
    ),
    (
        r"is not supported for tensor subclasses|Can't call numpy\(\)|FakeTensor.*numpy",
        "the code leaves PyTorch (NumPy, PIL); write it with torch's own functions",
    ),
    (
        r"not an instance of torch\.nn\.Parameter|ScriptModule|ScriptFunction|torch\.jit",
        "a module of torch.jit cannot be exported; give the plain nn.Module that it was made of",
    ),
    (
        r"_pack_padded_sequence|PackedSequence|argument 'size' failed to unpack",
        "packed sequences cannot be exported; use cir_export.models.encoders.recurrent.Recurrent",
    ),
    (
        r"No ONNX function found|No decompositions registered",
        "write it with other operators",
    ),
    (
        r"higher_order|torch\.cond|while_loop",
        "a bundle has no control flow; compute both and choose with torch.where",
    ),
)


def export_failure(graph: str, error: BaseException, program: ExportedProgram | None = None) -> ExportError:
    """The error to raise for what `torch.export` or `torch.onnx` raised.

    Args:
        graph: the graph's name.
        error: as raised; its causes are looked through.
        program: what `torch.export` gave, where it came so far; it tells the module of a node.
    """
    chain = list(came_of(error, contexts=True))
    whole = "\n".join(str(cause) for cause in chain)
    remedy = next((advice for pattern, advice in _REMEDIES if re.search(pattern, whole, re.DOTALL)), None)
    line = f"PyTorch cannot export the {graph} graph: {_cause(chain)}{_place(chain, whole, program)}"
    return ExportError(f"{line}; {remedy}" if remedy else line)


def said(error: BaseException) -> str:
    """An error's own words on one line, without colours; the middle of very long ones is left out."""
    words = " ".join(_ADVICE.sub(" ", _ANSI.sub("", str(error))).split()).rstrip(" .;:")
    if len(words) > _MOST:
        words = f"{words[: _MOST // 2]} ... {words[-_MOST // 2 :]}"
    return words or type(error).__name__


def _cause(chain: list[BaseException]) -> str:
    for cause in chain:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='(?:aten\.)?([^']+)'", str(cause))
        if missing:
            return f"it has no ONNX form of {missing[1]}"
    first = chain[0]
    if type(first).__module__.startswith("torch.onnx") and len(chain) > 1:
        first = chain[-1]  # the steps of the exporter say only that a step failed
    return said(first)


def _place(chain: list[BaseException], whole: str, program: ExportedProgram | None) -> str:
    """Module or line of the user's code, where PyTorch says one."""
    node = re.search(r"Error when translating node %(\w+)", whole)
    if node and program is not None:
        for known in program.graph.nodes:
            if known.name == node[1]:
                return module_path(known.meta.get("nn_module_stack") or {})
    return place_of(chain[0])


def place_of(error: BaseException) -> str:
    """` (my_models.py, line 12)`: the deepest line of an error's traceback that is no library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return (
        f" ({own[-1].filename.replace(chr(92), '/').rpartition('/')[2]}, line {own[-1].lineno})"
        if own
        else ""
    )


def _is_library(path: str) -> bool:
    return "site-packages" in path or "cir_export" in path or path.startswith("<") or "/lib/python" in path
