"""A model repository for NVIDIA Triton, made of a bundle."""

from cir_export.triton.repository import searched, write_repository

__all__ = ["searched", "write_repository"]
