"""Training of composed-retrieval models: `cir-train` (docs/training.md)."""
