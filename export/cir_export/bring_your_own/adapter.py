"""A user's module behind the interface of every system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_infer.errors import ExportError, shown

__all__ = ["Adapter"]


class Adapter(RetrievalModel):
    """A user's module as a system.

    The query encoder is one piece, so the reference embedding is the pixels, the text embedding the tokens,
    and `compose` all of the query encoder, until an export takes it apart (`cir_export.graphs.apart`).

    Args:
        module: with `encode_gallery` and `encode_query`, and `terms` where its score is no cosine.
        name: of the system.
        term_names: of its terms.
        image: its preprocessing, checked.
        text: likewise.
    """

    reference_is_gallery_row = False
    in_one_piece = True
    weighted = True

    def __init__(
        self,
        module: nn.Module,
        name: str,
        term_names: tuple[str, ...],
        image: Mapping[str, Any],
        text: Mapping[str, Any],
    ) -> None:
        super().__init__(1)
        self.module = module
        self.system = name  # type: ignore[misc]  # one class for all modules
        self.term_names = term_names  # type: ignore[misc]
        self.pad_id, self.max_tokens = int(text["pad_id"]), int(text["max_tokens"])
        self.pixels = image["kind"] == "pixels"
        self.config = {"system": name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RetrievalModel:
        """Nothing describes a user's module but its own code."""
        raise NotImplementedError

    def encode_gallery(self, images: Tensor) -> Tensor:
        """See `RetrievalModel.encode_gallery`."""
        rows: Tensor = self.module.encode_gallery(images)  # type: ignore[operator]
        return _floats(rows, "encode_gallery")

    def encode_reference(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images.float()

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The lengths and the tokens themselves, padded to `max_tokens`: (n, 1 + max_tokens)."""
        return torch.cat([lengths.to(torch.float32)[:, None], self._padded(tokens).to(torch.float32)], 1)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """The whole query encoder, and the module's own terms or the cosine."""
        images = reference.to(torch.uint8) if self.pixels else reference
        return self._terms(images, text[:, 1:], text[:, 0])

    def terms_of(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Terms:
        """The same of images and whole numbers as they are."""
        return self._terms(images, self._padded(tokens), lengths)

    def _terms(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Terms:
        query = self.module.encode_query(images, tokens.to(torch.int64), lengths.to(torch.int64))  # type: ignore[operator]
        terms = getattr(self.module, "terms", None)
        if terms is not None:
            return _as_terms(terms(query))
        composed = unit(_floats(query, "encode_query"))[:, None]
        # With weights of ones a term is the cosine, whatever the length of the rows.
        return Terms(composed, torch.ones_like(composed))

    def _padded(self, tokens: Tensor) -> Tensor:
        """To `max_tokens`: (n, max_tokens)."""
        rest = tokens.new_full((tokens.shape[0], self.max_tokens), self.pad_id)
        return torch.cat([tokens, rest], 1)[:, : self.max_tokens]


def _as_terms(given: object) -> Terms:
    if not isinstance(given, tuple | list) or len(given) != 2:
        what = f"{len(given)} values" if isinstance(given, tuple | list) else _kind(given)
        raise ExportError(
            f"terms(query) gives {what}; expected (numerators, weights), each float (n, J, D), weights None "
            "for plain dot products"
        )
    numerators, weights = given
    return Terms(
        _floats(numerators, "the numerators of terms(query)"),
        None if weights is None else _floats(weights, "the weights of terms(query)"),
    )


def _floats(value: object, what: str) -> Tensor:
    """A method's result as float32."""
    verb = "are" if what.startswith("the ") else "gives"
    if not isinstance(value, Tensor):
        raise ExportError(f"{what} {verb} {_kind(value)}; expected a tensor of floats")
    if not value.is_floating_point():
        raise ExportError(f"{what} {verb} {value.dtype}; expected a tensor of floats")
    return value.float()


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"one tensor {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"{type(value).__name__} {shown(value)}"
