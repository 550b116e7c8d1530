"""Why a hit has its score: shares of its image, of the reference, of the words (docs/explanations.md).

`Searcher.explain` and `Hits.explain` lead here.
"""

from cir_infer.explaining.explanation import Explanation, Heat, Word

__all__ = ["Explanation", "Heat", "Word"]
