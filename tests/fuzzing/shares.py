"""How a run is shared among the targets: the cheap ones get more."""

SHARES = {
    "expressions": 40,
    "arguments": 30,
    "queries": 40,
    "scorers": 20,
    "images": 30,
    "metadata": 20,
    "tokenizers": 20,
    "graphs": 20,
    "pickles": 20,
    "archives": 15,
    "bundles": 15,
    "tables": 20,
    "shards": 10,
    "trees": 3,
    "checkpoints": 10,
    "datasets": 10,
    "galleries": 3,
    "imports": 3,
    "models": 4,
}
