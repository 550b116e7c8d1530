"""Metadata beside the images, and answers among the items that match a condition.

    python examples/filter.py artemis.cir photos/ catalogue.csv dress.jpg "is cream in color" "price < 50"

The CSV has a column `image` with paths below the folder; its other columns become metadata.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from cir_infer import Engine, Gallery, Searcher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle")
parser.add_argument("photos", type=Path)
parser.add_argument("catalogue", type=Path)
parser.add_argument("reference")
parser.add_argument("text")
parser.add_argument("where", help='"price < 50", "brand in (acme, other) and not sale = true", ...')
parser.add_argument("--gallery", default="catalogue.gallery")
args = parser.parse_args()


def value(cell: str) -> Any:
    """Numbers as numbers, so that they can be compared."""
    try:
        return float(cell)
    except ValueError:
        return cell


with args.catalogue.open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
engine = Engine(args.bundle)
exists = Path(args.gallery).exists()
gallery = Gallery.open(args.gallery, engine) if exists else Gallery.create(args.gallery, engine)
gallery.add(
    [args.photos / row["image"] for row in rows],
    ids=[row["image"] for row in rows],
    metadata=[{name: value(cell) for name, cell in row.items() if name != "image"} for row in rows],
    existing="replace",
)
hits = Searcher(engine, gallery).query(args.reference, args.text, k=10, where=args.where)
for hit in hits:
    print(f"{hit.rank:2} {hit.id}  {hit.score:.3f}  {hit.metadata}")
