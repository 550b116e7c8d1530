"""What is in a layer of the Q-Former: our names, LAVIS' and Hugging Face's."""

from __future__ import annotations

__all__ = ["LAYER", "of_hugging_face"]

LAYER = {
    **{
        f"{ours}.{part}.": f"{theirs}.self.{part}."
        for ours, theirs in (("attention", "attention"), ("cross", "crossattention"))
        for part in ("query", "key", "value")
    },
    "attention.dense.": "attention.output.dense.",
    "attention.norm.": "attention.output.LayerNorm.",
    "cross.dense.": "crossattention.output.dense.",
    "cross.norm.": "crossattention.output.LayerNorm.",
    "of_text.inner.": "intermediate.dense.",
    "of_text.outer.": "output.dense.",
    "of_text.norm.": "output.LayerNorm.",
    "of_queries.inner.": "intermediate_query.dense.",
    "of_queries.outer.": "output_query.dense.",
    "of_queries.norm.": "output_query.LayerNorm.",
}
"""LAVIS' prefix of each of ours."""


def of_hugging_face(theirs: str) -> str:
    """Hugging Face's prefix of LAVIS'."""
    return theirs.replace(".self.", ".attention.")
