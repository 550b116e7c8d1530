"""The exact score as a formula query of Qdrant, beside cir-infer's own answer.

    pip install qdrant-client
    python examples/in_qdrant.py artemis.cir artemis.gallery photo.jpg "is red"

A query is a few terms, each a numerator n and weights w over the row t: sum of (n.t) / sqrt(w.t^2). Each
product is a prefetch, over t or over its squares as a second vector. It is exact, in float32, while every
prefetch brings every item (`limit`); with less it is a first stage, whose candidates are to be scored again.
This runs Qdrant's local mode.
"""

import sys
import time

from qdrant_client import QdrantClient
from qdrant_client.models import (
    Distance,
    DivExpression,
    DivParams,
    FormulaQuery,
    PointStruct,
    Prefetch,
    SqrtExpression,
    SumExpression,
    VectorParams,
)

from cir_infer import Searcher

bundle, gallery, image, text = sys.argv[1:]
searcher = Searcher(bundle, gallery)
engine, snapshot = searcher.engine, searcher.gallery.snapshot()
live = snapshot.live_rows()
rows, ids = snapshot.rows.take(live), snapshot.ids(live)

client = QdrantClient(":memory:")
dot = VectorParams(size=rows.shape[1], distance=Distance.DOT)
client.create_collection("items", vectors_config={"t": dot, "squares": dot})
client.upsert(
    "items",
    [
        PointStruct(id=n, vector={"t": row.tolist(), "squares": (row * row).tolist()}, payload={"id": ids[n]})
        for n, row in enumerate(rows)
    ],
)

reference = engine.encode_references([image]) if engine.needs_reference else None
terms = engine.compose(reference, engine.encode_texts([text]) if engine.needs_text else None)
prefetches, parts = [], []
for j in range(len(terms.names)):
    part = f"$score[{len(prefetches)}]"
    prefetches.append(Prefetch(query=terms.numerators[0, j].tolist(), using="t", limit=len(rows)))
    if terms.weights is not None:
        norm = SqrtExpression(sqrt=f"$score[{len(prefetches)}]")
        prefetches.append(Prefetch(query=terms.weights[0, j].tolist(), using="squares", limit=len(rows)))
        part = DivExpression(div=DivParams(left=part, right=norm, by_zero_default=0.0))
    parts.append(part)

begun = time.perf_counter()
found = client.query_points(
    "items", prefetch=prefetches, query=FormulaQuery(formula=SumExpression(sum=parts)), limit=10
).points
theirs = time.perf_counter() - begun
searcher.scorer.topk(terms, 10)
begun = time.perf_counter()
searcher.scorer.topk(terms, 10)
ours = time.perf_counter() - begun
for point, hit in zip(found, searcher.query(image, text), strict=True):
    print(f"{point.payload['id']:24} {point.score:.6f}   {hit.id:24} {hit.score:.6f}")
print(f"{theirs / ours:.0f} times as long in Qdrant's local mode, over {len(rows):,} rows of {rows.shape[1]}")
