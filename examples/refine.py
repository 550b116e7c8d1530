"""A conversation: each answer is refined by the next text, in some milliseconds, as no image is encoded.

python examples/refine.py artemis.cir artemis.gallery dress.jpg "is cream" "with longer sleeves" "in silk"
"""

import argparse
import time

from cir_infer import Searcher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle")
parser.add_argument("gallery")
parser.add_argument("reference")
parser.add_argument("texts", nargs="+")
args = parser.parse_args()

searcher = Searcher(args.bundle, args.gallery)
subject, seen = args.reference, []
for text in args.texts:
    start = time.perf_counter()
    hits = searcher.query(subject, text, k=3, exclude=seen)
    print(f"{text}: {hits[0].id} ({hits[0].score:.3f}), {1e3 * (time.perf_counter() - start):.1f} ms")
    subject = hits[0]  # a hit is a reference of its own
    seen.append(hits[0].id)  # and is not shown again
