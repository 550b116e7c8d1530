"""`cir-serve`: a searcher behind HTTP, and a page to use it. Needs the extra `serve` (docs/serving.md)."""
