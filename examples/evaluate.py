"""Recall of a bundle on annotations of your own: how often the target is among the first K.

    python examples/evaluate.py artemis.cir photos/ queries.csv

The CSV has columns `reference`, `text` and `target`; images are paths below the folder. Every image of the
folder is in the gallery, and a query's reference is left out of its own answer, as FashionIQ's authors do.
`cir-bench accuracy` does this for the published data sets, under their authors' protocols.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from cir_eval.recall import recall_at
from cir_infer import Engine, Gallery, Searcher

KS = (1, 5, 10)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle")
parser.add_argument("photos", type=Path)
parser.add_argument("queries", type=Path)
parser.add_argument("--gallery", default="evaluated.gallery")
args = parser.parse_args()

with args.queries.open(newline="", encoding="utf-8") as file:
    queries = list(csv.DictReader(file))
engine = Engine(args.bundle)
images = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
gallery = Gallery.create(args.gallery, engine, dtype="float32")
gallery.add(images, ids=[str(path.relative_to(args.photos)) for path in images])

searcher = Searcher(engine, gallery)
ranks = []
for query in queries:
    # A reference that the gallery holds is read there, so no image is encoded twice.
    hits = searcher.query(
        searcher.item(query["reference"]), query["text"], k=max(KS), exclude=[query["reference"]]
    )
    found = [hit.rank for hit in hits if hit.id == query["target"]]
    ranks.append(found[0] if found else max(KS) + 1)
for k, recall in recall_at(np.array(ranks), KS).items():
    print(f"R@{k} {100 * recall:.1f}")
