"""Why a hit has its score: which parts of both pictures, and which words.

python examples/explain.py artemis.cir artemis.gallery dress.jpg "is cream in color" why.png
"""

import argparse

from cir_infer import Searcher
from cir_infer.drawing.sheet import contact_sheet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle")
parser.add_argument("gallery")
parser.add_argument("reference")
parser.add_argument("text")
parser.add_argument("sheet", help="the picture to write, e.g. why.png")
args = parser.parse_args()

searcher = Searcher(args.bundle, args.gallery)
hits = searcher.query(args.reference, args.text, k=6)
why = hits.explain(0)
for name, heat in why.terms.items():
    row, column = divmod(int(heat.map.argmax()), heat.map.shape[1])
    print(f"{name} {heat.value:.3f}: the cell {row}, {column} brings {heat.map.max():+.3f} ({heat.method})")
for word in why.words:
    print(f"  {word.text} {sum(word.worth.values()):+.3f}")

# The same for all of them, drawn over the pictures.
contact_sheet(args.reference, args.text, hits, explain=True).save(args.sheet, dpi=(144, 144))
