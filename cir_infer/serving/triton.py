"""Queries inside NVIDIA Triton: the model of its Python backend that `cir-export BUNDLE --triton` writes.

Triton imports `triton_python_backend_utils` into the process; nothing else of it is needed here.

Inputs, each (n, 1) or, for TEXT, (n, captions): IMAGE (encoded image, bytes) or ITEM (an id of the gallery,
to be refined), TEXT, and optionally K, WHERE (an expression, or the JSON of a dictionary).
Outputs, of as many columns as the largest K of the request: IDS (n, K), SCORES (n, K), TERMS (n, K, J); where
there are fewer hits, ids are empty and the numbers 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cir_infer.errors import CirError, UsageError, shown
from cir_infer.foreign import read_json, unique_names
from cir_infer.hits import Hit, Hits
from cir_infer.searcher import Searcher
from cir_infer.serving.batching import Wanted

__all__ = ["Asked", "TritonPythonModel", "answered", "padded", "read_queries"]

_K = 10


class Asked(NamedTuple):
    """One query of a request.

    Attributes:
        reference: an image's bytes, a Hit, or None.
        text: see `Searcher.query`.
        wanted: what is wanted.
    """

    reference: Any
    text: Any
    wanted: Wanted


class TritonPythonModel:
    """See the documentation of Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open bundle and gallery, as the model's configuration says."""
        config = json.loads(args["model_config"])
        told = {name: value["string_value"] for name, value in config["parameters"].items()}
        here = Path(args["model_repository"]) / args["model_version"]
        device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
        self._most = int(told["max_k"])
        self._searcher = Searcher(here / told["bundle"], told["gallery"], device)
        self._searcher.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The answers to what Triton has put together, a response for each request."""
        import triton_python_backend_utils as pb

        read: list[list[Asked] | CirError] = []
        for request in requests:
            inputs = {
                name: tensor.as_numpy()
                for name in ("IMAGE", "ITEM", "TEXT", "K", "WHERE")
                if (tensor := pb.get_input_tensor_by_name(request, name)) is not None
            }
            try:
                read.append(read_queries(inputs, self._most))
            except CirError as error:
                read.append(error)
        flat = [query for queries in read if isinstance(queries, list) for query in queries]
        answers = iter(answered(self._searcher, flat))
        terms = len(self._searcher.engine.manifest.terms)
        responses = []
        for queries in read:
            found = [queries] if isinstance(queries, CirError) else [next(answers) for _ in queries]
            failed = next((answer for answer in found if isinstance(answer, CirError)), None)
            if failed is not None or isinstance(queries, CirError):
                responses.append(pb.InferenceResponse(error=pb.TritonError(str(failed))))
                continue
            hits = [answer for answer in found if isinstance(answer, Hits)]
            most = max(query.wanted.k for query in queries)
            outputs = [pb.Tensor(name, value) for name, value in padded(hits, most, terms).items()]
            responses.append(pb.InferenceResponse(output_tensors=outputs))
        return responses

    def finalize(self) -> None:
        """Close what was opened."""
        self._searcher.close()


def read_queries(inputs: dict[str, Any], most: int) -> list[Asked]:
    """The queries of one request.

    Args:
        inputs: arrays by name, as above.
        most: hits of a query.

    Raises:
        UsageError: they do not fit together.
    """
    count = len(next(iter(inputs.values())))
    if ("IMAGE" in inputs) and ("ITEM" in inputs):
        raise UsageError("IMAGE and ITEM were given; expected one reference")
    queries = []
    for number in range(count):
        reference: Any = None
        if "IMAGE" in inputs:
            reference = bytes(inputs["IMAGE"][number].reshape(-1)[0])
        elif "ITEM" in inputs:
            reference = Hit(_text(inputs["ITEM"][number].reshape(-1)[0]))
        captions = [_text(part) for part in inputs["TEXT"][number].reshape(-1)] if "TEXT" in inputs else None
        k = int(inputs["K"][number].reshape(-1)[0]) if "K" in inputs else _K
        if not 1 <= k <= most:
            raise UsageError(f"K is {k}; expected 1 to {most}")
        where: Any = _text(inputs["WHERE"][number].reshape(-1)[0]) if "WHERE" in inputs else ""
        if where.lstrip().startswith("{"):
            try:
                where = read_json(where, object_pairs_hook=unique_names)
            except ValueError as error:
                raise UsageError(f"WHERE is no JSON and no expression ({shown(error)})") from error
        text = captions[0] if captions is not None and len(captions) == 1 else captions
        queries.append(Asked(reference, text, Wanted(k, where or None)))
    return queries


def answered(searcher: Searcher, queries: Sequence[Asked]) -> list[Hits | CirError]:
    """The answers, in order; queries that want the same are computed together."""
    groups: dict[Any, list[int]] = {}
    for number, query in enumerate(queries):
        groups.setdefault(query.wanted.key(), []).append(number)
    answers: dict[int, Hits | CirError] = {}
    for members in groups.values():
        wanted = queries[members[0]].wanted
        images, texts = [queries[at].reference for at in members], [queries[at].text for at in members]
        size = len(members)
        try:
            found = searcher.query_batch(
                images, texts, wanted.k, wanted.where, batch_size=size, errors="return"
            )
            answers.update(zip(members, found, strict=True))
        except CirError as error:  # of what they all want
            answers.update(dict.fromkeys(members, error))
    return [answers[number] for number in range(len(queries))]


def padded(hits: Sequence[Hits], most: int, terms: int) -> dict[str, Any]:
    """Hits as arrays: IDS (n, most) of bytes, SCORES float32 (n, most), TERMS float32 (n, most, terms)."""
    ids = np.full((len(hits), most), b"", dtype=np.object_)
    scores = np.zeros((len(hits), most), np.float32)
    parts = np.zeros((len(hits), most, terms), np.float32)
    for number, answer in enumerate(hits):
        for at, hit in enumerate(answer):
            ids[number, at] = hit.id.encode()
            scores[number, at] = hit.score
            parts[number, at] = list(hit.terms.values())
    return {"IDS": ids, "SCORES": scores, "TERMS": parts}


def _text(value: Any) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise UsageError("a text is not UTF-8") from error
