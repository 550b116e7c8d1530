"""Search a folder of photos: a reference image plus a text that says what to change.

python examples/search.py artemis.cir photos/ dress.jpg "is cream in color"
"""

import argparse
from pathlib import Path

from cir_infer import Engine, Gallery, Searcher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle")
parser.add_argument("photos", type=Path)
parser.add_argument("reference")
parser.add_argument("text")
args = parser.parse_args()
place = Path(args.bundle).with_suffix(".gallery")  # where the commands look for it, too

engine = Engine(args.bundle)  # the model, on the best device that is here
if place.exists():
    print(f"{place} is there already: what it holds is asked, whatever lies in {args.photos}\n")
else:
    images = sorted(
        path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    with Gallery.create(place, engine) as gallery:
        gallery.add(images, ids=[str(path.relative_to(args.photos)) for path in images])

searcher = Searcher(engine, Gallery.open(place))
hits = searcher.query(args.reference, args.text, k=10)
print(hits)  # rank, id, score and its terms
