"""PyTorch on the same question: from a prepared image and a text to the first k row numbers on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cir_bench.torch_scoring import two_product_scores

if TYPE_CHECKING:
    from cir_export.model_file import TrainedModel

__all__ = ["torch_answer"]


def torch_answer(
    trained: TrainedModel,
    prepare: Callable[[Any], npt.NDArray[Any]],
    image: Any,
    text: str,
    rows: npt.NDArray[np.float32],
    k: int,
    device: str,
    half: bool,
    compiled: bool,
) -> Callable[[], npt.NDArray[np.int64]]:
    """A call that answers one query in PyTorch.

    Args:
        trained: the model that the bundle was exported from.
        prepare: the bundle's preprocessing, image to array.
        image: decoded.
        text: the modifier.
        rows: float32 (N, D), the gallery; kept on the device with its squares.
        k: hits.
        device: "cuda", or "cpu".
        half: float16 where autocast allows it, and float16 rows; else float32 without TF32.
        compiled: the encoder, the compose step and scoring through torch.compile; on "cuda" with its CUDA
            graphs ("reduce-overhead").
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = half
    place = torch.device(device)
    kind = torch.float16 if half else torch.float32
    model = trained.model.to(place).eval()
    stored = torch.from_numpy(rows).to(place, kind)
    squares = stored * stored
    mode = "reduce-overhead" if device == "cuda" else "default"
    wrap: Callable[[Any], Any] = (
        (lambda function: torch.compile(function, mode=mode)) if compiled else (lambda function: function)
    )
    encode, compose, score = wrap(model.encode_reference), wrap(model.compose), wrap(two_product_scores)

    def answer() -> npt.NDArray[np.int64]:
        if compiled:
            # One step for all three: each would take its call for a new one and free what the last has given.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=half):
            pixels = torch.from_numpy(prepare(image)[None].copy()).to(place)
            encoding = trained.tokenizer.encode(text)
            tokens = torch.tensor([encoding.ids], device=place)
            embedded = model.encode_text(tokens, torch.tensor([len(encoding.ids)]))
            terms = compose(encode(pixels), embedded)
            weights = None if terms.weights is None else terms.weights.to(kind)
            scores = score(terms.numerators.to(kind), weights, stored, squares)[0]
            found: npt.NDArray[np.int64] = scores.float().topk(min(k, len(stored))).indices.cpu().numpy()
            return found

    return answer
