"""Vectors that another model has made, in a gallery: exact search with filters, and no model here.

    python examples/vectors.py Qwen3-VL-Embedding-2B rows.npy items.jsonl queries.npy "price < 50"

rows.npy holds one vector an item (N, D), items.jsonl one object a line: an `id`, the rest is metadata. The
name of the model is kept in the gallery, which refuses to be opened under another.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from cir_infer import Gallery, VectorSearcher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="any name; that of the model with its size is a good one")
parser.add_argument("rows", type=Path)
parser.add_argument("items", type=Path)
parser.add_argument("queries", type=Path)
parser.add_argument("where", nargs="?")
parser.add_argument("--gallery", default="vectors.gallery")
parser.add_argument("--metric", choices=("cosine", "dot"), default="cosine")
args = parser.parse_args()

rows = np.load(args.rows, mmap_mode="r")
items = [json.loads(line) for line in args.items.read_text("utf-8").splitlines()]
exists = Path(args.gallery).exists()
with (
    Gallery.open(args.gallery)
    if exists
    else Gallery.create(args.gallery, dimension=rows.shape[1], fingerprint=args.model)
) as gallery:
    gallery.check_fingerprint(args.model)
    ids = [item.pop("id") for item in items]
    gallery.add_vectors(ids=ids, vectors=rows, metadata=items, existing="replace")

with VectorSearcher(args.gallery, fingerprint=args.model) as searcher:
    answers = searcher.search_vectors(np.load(args.queries), k=10, where=args.where, metric=args.metric)
for number, hits in enumerate(answers):
    print(f"query {number}")
    for hit in hits:
        print(f"{hit.rank:2} {hit.id}  {hit.score:.3f}  {hit.metadata}")
