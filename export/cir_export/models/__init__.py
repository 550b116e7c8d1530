"""Retrieval models in PyTorch, one system a file, over shared encoders."""

from cir_export.models.base import RetrievalModel, Terms, pairwise_scores, unit
from cir_export.models.registry import MODELS, build_model

__all__ = ["MODELS", "RetrievalModel", "Terms", "build_model", "pairwise_scores", "unit"]
