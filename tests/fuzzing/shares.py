"""How a run is shared among the targets: the cheap ones get more, the dearest come first."""

SHARES = {
    "trees": 4,
    "arguments": 12,
    "metadata": 8,
    "tables": 22,
    "checkpoints": 5,
    "shards": 10,
    "galleries": 6,
    "graphs": 8,
    "pickles": 8,
    "archives": 6,
    "models": 4,
    "queries": 12,
    "imports": 6,
    "bundles": 10,
    "tokenizers": 14,
    "datasets": 16,
    "images": 20,
    "expressions": 20,
    "scorers": 16,
}
