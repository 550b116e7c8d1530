"""Whatever a program holds of this SDK is pickled and copied, or says what to do instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher, VectorSearcher
from cir_infer.bundle import Bundle
from cir_infer.errors import CirError
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.cuda.scorer import CudaScorer
from cir_infer.scoring.grouped import GroupedScorer
from cir_infer.scoring.linearised import LinearisedScorer
from cir_infer.shards.shard import LocalShard
from tests.bundles import write_tiny_bundle
from tests.emulation.emulated import EmulatedDevice

AGAIN = {
    "Bundle",
    "Engine",
    "Gallery",
    "Searcher",
    "VectorSearcher",
    "LocalShard",
    "Rows",
    "QueryTerms",
    "Hits",
    "ReferenceScorer",
}
STAY = {
    "Snapshot",
    "Reencoding",
    "CpuScorer",
    "Int8Scorer",
    "CudaScorer",
    "GroupedScorer",
    "LinearisedScorer",
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("held")
    path = write_tiny_bundle(folder / "b.cir")
    engine = Engine(path, device="cpu", threads=1)
    gallery = Gallery.create(folder / "g", engine)
    draw = np.random.default_rng(0)
    gallery.add([draw.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(4)], ids=list("abcd"))
    searcher = Searcher(engine, gallery)
    vectors = draw.standard_normal((40, 16), dtype=np.float32)
    rows, tokens = Rows.of(vectors), Rows.of(vectors.reshape(10, 4, 16))
    numerators = draw.standard_normal((2, 1, 16), dtype=np.float32)
    cpu = make_scorer(rows, "cpu")
    found = [
        Bundle(path),
        engine,
        gallery,
        searcher,
        VectorSearcher(folder / "g"),
        LocalShard(searcher),
        gallery.snapshot(),
        gallery.reencoding(engine, "int8"),
        searcher.query(np.zeros((32, 32, 3), np.uint8), "is red", k=2),
        rows,
        QueryTerms(numerators, None, ("a",)),
        make_scorer(rows, "reference"),
        cpu,
        make_scorer(rows, "cpu-int8"),
        CudaScorer(rows, device=EmulatedDevice()),
        GroupedScorer(tokens, lambda vectors: CudaScorer(vectors, device=EmulatedDevice())),
        LinearisedScorer(cpu, rows, lambda queries, k: np.zeros((len(queries), k), np.int64)),
    ]
    return {type(one).__name__: one for one in found}


def test_the_lists_name_what_is_held(held: dict[str, Any]) -> None:
    assert set(held) == AGAIN | STAY


@pytest.mark.parametrize(
    "again",
    [lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deep"],
)
@pytest.mark.parametrize("name", sorted(AGAIN | STAY))
def test_it_is_made_again_or_says_what_to_do(
    held: dict[str, Any], name: str, again: Callable[[Any], Any]
) -> None:
    one = held[name]
    if name in AGAIN:
        assert type(again(one)) is type(one)
    else:
        with pytest.raises(CirError, match=r"cannot be copied or pickled; \w+"):
            again(one)
