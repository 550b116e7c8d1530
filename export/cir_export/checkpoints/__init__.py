"""Trained models in every container that this package knows, recognised by content."""

from cir_export.checkpoints.recognition import load_trained

__all__ = ["load_trained"]
