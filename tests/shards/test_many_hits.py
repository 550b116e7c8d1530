"""What a shard elsewhere is asked at a time has a bound, whatever a searcher is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from cir_infer import VectorSearcher
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import References
from cir_infer.serving import shard_routes
from cir_infer.shards import ShardedSearcher
from cir_infer.shards import searcher as searcher_of_shards
from cir_infer.shards.wire import told_question
from tests.serving.support import make_gallery, running
from tests.shards.test_shards import told


def test_hits_are_asked_for_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question of 44 KB asked for three million, for which a service took 3.8 GB."""
    bundle = make_gallery(tmp_path)
    for module in (shard_routes, searcher_of_shards):
        monkeypatch.setattr(module, "MOST_HITS", 200)
    queries = np.random.default_rng(2).standard_normal((9, 8)).astype(np.float32)
    with running(bundle, shard=True) as service:
        terms = QueryTerms(queries[:, None], None, ("a",))
        asked = json.loads(told_question(terms, 1000, None, [], References()))
        answer = service.client("POST", "/v1/shard/search", asked)
        assert (answer.status, answer.kind) == (413, "too-large") and "360 hits" in answer.json["detail"]
        with (
            ShardedSearcher(None, [f"http://127.0.0.1:{service.client.port}"]) as far,
            VectorSearcher(bundle.with_suffix(".gallery")) as near,
        ):
            before = far.counts.asked
            found = far.search_vectors(queries, k=1000)
            assert [told(hits) for hits in found] == [
                told(hits) for hits in near.search_vectors(queries, k=1000)
            ]
            assert far.counts.asked - before == 5
