"""A model repository for NVIDIA Triton, made of a bundle."""

from cir_export.triton.repository import write_repository

__all__ = ["write_repository"]
