"""Generated composed-retrieval scenes in the manner of CSS (Vo et al., CVPR 2019): see docs/scenes.md."""

from cir_eval.datasets.generated import Query
from cir_eval.datasets.scenes.reader import ScenesDataset, Split

__all__ = ["Query", "ScenesDataset", "Split"]
