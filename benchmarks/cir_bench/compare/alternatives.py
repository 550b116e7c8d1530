"""The alternatives: each answers the same query, from a prepared image and tokens to the first k rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cir_bench.torch_scoring import literal_scores, ranked, two_product_scores
from cir_infer.engine import Engine
from cir_infer.extras import is_installed
from cir_infer.inputs.unknown_words import UNSAID
from cir_infer.runtime.device_names import ON_GPU
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import Rows

if TYPE_CHECKING:
    import torch

    from cir_export.model_file import TrainedModel

__all__ = ["Alternative", "Ours", "Question", "RuntimeAlone", "alternatives"]

Answer = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Question:
    """A query before any encoder.

    Attributes:
        image: uint8 (1, H, W, 3), or float32 (1, F).
        text: the modifier.
        tokens: the same text as int64 (1, T).
        lengths: int64 (1,).
    """

    image: npt.NDArray[Any]
    text: str
    tokens: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Alternative:
    """One way to answer, in whole and in its parts.

    Attributes:
        name: what a report calls it.
        answer: question to the first k row numbers, on the host.
        encode: the image encoder alone.
        score: terms of the last answered question to the first k, alone; None where another alternative
            scores alike.
        precision: of its image encoder; in float32 it must rank as the definition does.
    """

    name: str
    answer: Callable[[Question], Answer]
    encode: Callable[[Question], object]
    score: Callable[[], object] | None = None
    precision: str = "float32"


def alternatives(
    engine: Engine, trained: TrainedModel, rows: npt.NDArray[np.float32], k: int, compiled: bool, threads: int
) -> list[Alternative]:
    """Ours first, then the others.

    Args:
        engine: a bundle exported from `trained`.
        trained: the model.
        rows: float32 (N, D), the gallery.
        k: hits a query.
        compiled: also torch.compile.
        threads: for PyTorch on the CPU.
    """
    import torch

    torch.set_num_threads(threads)
    device = torch.device("cuda" if engine.device in ON_GPU else "cpu")
    model = trained.model.to(device)
    found = [
        Ours(engine, rows, k).alternative(),
        RuntimeAlone("ONNX Runtime, NumPy scoring", engine, rows, k).alternative(),
        _Torch("PyTorch eager, two products", model, rows, k, device, literal=False).alternative(),
        _Torch("PyTorch eager, literal loop", model, rows, k, device, literal=True).alternative(),
    ]
    on = model, rows, k, device
    if compiled:
        found.append(_Torch("torch.compile, two products", *on, literal=False, compiled=True).alternative())
    found.append(_Torch("PyTorch bfloat16 autocast", *on, literal=False, autocast=True).alternative())
    if compiled:
        both = _Torch("torch.compile, bfloat16 autocast", *on, literal=False, compiled=True, autocast=True)
        found.append(both.alternative())
    if engine.device == "cpu" and is_installed("openvino"):
        alone = Engine(engine.path, "openvino", engine.threads)
        found.append(RuntimeAlone("OpenVINO, NumPy scoring", alone, rows, k).alternative())
    return found


class _ThroughEngine(ABC):
    """Encoders and compose graph in the SDK's engine, behind them one way to score."""

    def __init__(self, engine: Engine, k: int) -> None:
        self._engine, self._k = engine, k
        self._terms: Any = None

    def _answer(self, question: Question) -> Answer:
        engine = self._engine
        reference = self._encode(question) if engine.needs_reference else None
        text = engine.encode_texts([question.text], together=UNSAID) if engine.needs_text else None
        self._terms = engine.compose(reference, text)
        return self._score()

    def _encode(self, question: Question) -> npt.NDArray[np.float32]:
        return self._engine.encode_prepared_references(question.image)

    @abstractmethod
    def _score(self) -> Answer: ...


class Ours(_ThroughEngine):
    """The SDK: its engine and its scorer.

    Args:
        engine: on a bundle of any precision.
        rows: float32 (N, D), the gallery.
        k: hits a query.
    """

    def __init__(self, engine: Engine, rows: npt.NDArray[np.float32], k: int) -> None:
        super().__init__(engine, k)
        self._scorer = make_scorer(Rows.of(rows))

    def alternative(self) -> Alternative:
        """See `Alternative`."""
        precision = self._engine.manifest.precision
        lowered = f"cir-infer {precision}, {self._engine.device}"
        name = f"cir-infer, {self._scorer.name}" if precision == "float32" else lowered
        return Alternative(name, self._answer, self._encode, self._score, precision)

    def _score(self) -> Answer:
        rows: Answer = self._scorer.topk(self._terms, self._k).rows[0]
        return rows


class RuntimeAlone(_ThroughEngine):
    """The same graphs in a runtime, with the two products and the selection in NumPy.

    Args:
        name: what a report calls it.
        engine: on that runtime.
        rows: float32 (N, D), the gallery.
        k: hits a query.
        precision: the bundle's.
    """

    def __init__(
        self, name: str, engine: Engine, rows: npt.NDArray[np.float32], k: int, precision: str = "float32"
    ) -> None:
        super().__init__(engine, k)
        self._name, self._precision = name, precision
        self._rows, self._squares = rows, rows * rows

    def alternative(self) -> Alternative:
        """See `Alternative`."""
        return Alternative(self._name, self._answer, self._encode, self._score, self._precision)

    def _score(self) -> Answer:
        values = self._terms.numerators[0] @ self._rows.T
        if self._terms.weights is not None:
            norms = self._terms.weights[0] @ self._squares.T
            values = values / np.sqrt(np.maximum(norms, 1e-20))
        scores = values.sum(0)
        best = (
            np.argpartition(-scores, self._k - 1)[: self._k]
            if self._k < len(scores)
            else np.arange(len(scores))
        )
        return best[np.lexsort((best, -scores[best]))]


class _Torch:
    """The model in PyTorch, with one of two ways to score."""

    def __init__(
        self,
        name: str,
        model: Any,
        rows: npt.NDArray[np.float32],
        k: int,
        device: torch.device,
        literal: bool,
        compiled: bool = False,
        autocast: bool = False,
    ) -> None:
        import torch

        self._name, self._k, self._device, self._literal = name, k, device, literal
        self._model, self._autocast = model, autocast
        wrap: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
        self._encode_reference = wrap(model.encode_reference)
        self._products = wrap(two_product_scores)
        self._rows = torch.from_numpy(rows).to(device)
        self._squares = self._rows * self._rows
        self._terms: Any = None

    def alternative(self) -> Alternative:
        precision = "bfloat16" if self._autocast else "float32"
        return Alternative(self._name, self._answer, self._encode, self._score, precision)

    def _answer(self, question: Question) -> Answer:
        import torch

        with torch.inference_mode():
            text = self._model.encode_text(
                torch.from_numpy(question.tokens).to(self._device), torch.from_numpy(question.lengths)
            )
            self._terms = self._model.compose(self._reference(question), text)
        return self._score()

    def _encode(self, question: Question) -> object:
        import torch

        with torch.inference_mode():
            return self._reference(question).cpu()

    def _reference(self, question: Question) -> Any:
        import torch

        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            reference = self._encode_reference(torch.from_numpy(question.image).to(self._device))
        return reference.float()

    def _score(self) -> Answer:
        import torch

        terms = self._terms
        with torch.inference_mode():
            if self._literal:
                scores = literal_scores(
                    terms.numerators[0], None if terms.weights is None else terms.weights[0], self._rows
                )
                found = ranked(scores, self._k)
            else:
                found = self._products(terms.numerators, terms.weights, self._rows, self._squares)[0]
                found = found.topk(min(self._k, len(self._rows))).indices
            return found.cpu().numpy()
