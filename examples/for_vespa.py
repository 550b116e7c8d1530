"""A Vespa schema whose rank profile is the exact score, and the body of a query. No Vespa has run them.

    python examples/for_vespa.py artemis.cir items.sd photo.jpg "is red" > query.json

A query is a few terms, each a numerator n and weights w over the row t: sum of (n.t) / sqrt(w.t^2). As a
first phase, over all documents that match, it is exact; a second phase sees the best of another rank alone.
Rows of `Gallery.export` are the field `t`.
"""

import json
import sys
from pathlib import Path

from cir_infer import Engine

bundle, schema, image, text = sys.argv[1:]
engine = Engine(bundle)
reference = engine.encode_references([image]) if engine.needs_reference else None
terms = engine.compose(reference, engine.encode_texts([text]) if engine.needs_text else None)

kind = f"tensor<float>(d[{engine.dimension}])"
inputs, functions, values = [], [], {}
for j, name in enumerate(terms.names):
    values[f"input.query(n{j})"] = terms.numerators[0, j].tolist()
    inputs.append(f"query(n{j}) {kind}")
    expression = f"reduce(query(n{j}) * attribute(t), sum, d)"
    if terms.weights is not None:
        values[f"input.query(w{j})"] = terms.weights[0, j].tolist()
        inputs.append(f"query(w{j}) {kind}")
        norm = f"reduce(query(w{j}) * attribute(t) * attribute(t), sum, d)"
        expression = f"if({norm} > 0, {expression} / sqrt({norm}), 0)"
    functions.append(f"        function {name}() {{\n            expression: {expression}\n        }}\n")

lines = "\n".join(f"            {line}" for line in inputs)
Path(schema).write_text(
    f"""schema items {{
    document items {{
        field id type string {{ indexing: attribute | summary }}
        field t type {kind} {{ indexing: attribute }}
    }}
    rank-profile cir {{
        inputs {{
{lines}
        }}
{"".join(functions)}        first-phase {{
            expression: {" + ".join(terms.names)}
        }}
        match-features: {" ".join(terms.names)}
    }}
}}
""",
    encoding="utf-8",
)
query = {"yql": "select id from items where true", "ranking": "cir", "hits": 10}
print(json.dumps({**query, **values}))
