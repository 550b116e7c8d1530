"""What every composed-retrieval system is to training, export and parity: four functions and a score.

A system encodes a gallery image into a row, a reference image and a text into whatever it composes,
and composes them into J terms over a row. `cir_infer.scoring.contract` holds the same algebra for the
runtime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["SQUARED_NORM_FLOOR", "InParts", "RetrievalModel", "Terms", "pairwise_scores", "unit"]

SQUARED_NORM_FLOOR = 1e-20
"""Clamp of a squared norm: a zero vector scores 0 and has a finite gradient, in float32."""

INITIAL_LOGIT_SCALE = 2.65926
"""Logarithm of gamma at the start of training: scores are multiplied by exp(2.65926) = 14.29."""


class Terms(NamedTuple):
    """n queries as J terms each, over gallery rows of D values.

    Attributes:
        numerators: float (n, J, D).
        weights: float (n, J, D), not negative, at most 1 and 1 somewhere in each term; None for systems
            whose terms are plain dot products.
    """

    numerators: Tensor
    weights: Tensor | None


class InParts(NamedTuple):
    """Gallery rows of n images, and the sums over positions that they are up to a positive factor.

        s * row = sum_x parts(x) + constant        s > 0, of each image its own

    Attributes:
        rows: float (n, D), as `encode_gallery` gives them.
        parts: float (n, h, w, D), what each position of a grid over the image brings.
        constant: float (n, D), what no position has: biases, a class token's own way.
    """

    rows: Tensor
    parts: Tensor
    constant: Tensor


def unit(x: Tensor) -> Tensor:
    """Divides the last axis by its Euclidean norm; a zero vector stays zero."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(SQUARED_NORM_FLOOR))


def pairwise_scores(terms: Terms, rows: Tensor) -> Tensor:
    """Scores of n queries over N rows, differentiable, in float32 whatever the autocast type.

    score = sum_j (n_j . t) / sqrt(w_j . t^2), or sum_j n_j . t without weights; over rows of several
    vectors each term's largest value.

    Args:
        terms: n queries.
        rows: (N, D) or (N, M, D), as `RetrievalModel.encode_gallery` gives them.

    Returns:
        float32 (n, N).
    """
    with torch.autocast(rows.device.type, enabled=False):
        # float16 would underflow: see SQUARED_NORM_FLOOR and the flat attention of trained models.
        numerators, rows, count = terms.numerators.float(), rows.float(), rows.shape[0]
        per_item = rows.shape[1:-1]
        rows = rows.flatten(0, -2)
        values = numerators @ rows.T
        if terms.weights is not None:
            squared_norms = terms.weights.float() @ (rows * rows).T
            values = values * torch.rsqrt(squared_norms.clamp_min(SQUARED_NORM_FLOOR))
        if per_item:
            values = values.view(*values.shape[:2], count, *per_item).amax(3)
        return values.sum(1)


class RetrievalModel(nn.Module, ABC):
    """Base of every system.

    Class attributes:
        system: the name in a configuration and in a bundle, e.g. "artemis".
        term_names: the J terms' names.
        weighted: whether `Terms.weights` is present; a system may set it in an instance. Weights of ones
            make a term the cosine on rows that are not of unit length.
        tokens_per_item: M, how many vectors a gallery row is; a system may set it in an instance. A term's
            value is the largest over them.
        reference_is_gallery_row: whether `encode_reference` gives the gallery row of the same image. If
            so the runtime refines a hit from the stored row, and no reference graph is exported.
        in_one_piece: whether `terms_of` is the whole query encoder, and `encode_reference` and `encode_text`
            hand on images and tokens. An export tells apart what depends on one of them alone.
        from_towers: built over the towers of a folder as it is published, so that a configuration of
            `cir-train` does not describe it.
        trains_head: of those, whether it has a head over them that `cir-train` trains, starting from their
            folder.
        prompt: what stands before every text, and the word in it that is the picture; None for neither.
        encoders_in_trunks: whether encoders of pictures and texts hold nothing beside `trunks`, so that with
            frozen trunks each picture and text has to be encoded only once.
        unused: modules that the system keeps, to share weight files with others, and never runs.
        trunk_levels: how many of its trunk's last maps the system reads; an instance may set it.
        composes: which of "reference" and "text" `compose` reads; the compose graph has these inputs.

    Attributes:
        embedding_dim: D, the length of a gallery row.
        logit_scale: the learnable logarithm of gamma, which multiplies scores in the training loss only.
        config: what `build_model` was given.
    """

    system: ClassVar[str]
    term_names: ClassVar[tuple[str, ...]]
    weighted: bool = False
    tokens_per_item: int = 1
    reference_is_gallery_row: ClassVar[bool] = True
    in_one_piece: ClassVar[bool] = False
    from_towers: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False
    prompt: ClassVar[tuple[str, str] | None] = None
    encoders_in_trunks: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ()
    trunk_levels: int = 1
    composes: ClassVar[tuple[str, ...]] = ("reference", "text")

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.config: dict[str, Any] = {}

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> RetrievalModel:
        """Builds the system with fresh weights.

        Raises:
            UsageError: a key is unknown or missing, or a value does not fit.
        """

    @abstractmethod
    def encode_gallery(self, images: Tensor) -> Tensor:
        """Gallery rows.

        Args:
            images: uint8 (n, H, W, 3) RGB, or float (n, F) for models on pre-extracted features; in training
                also what was kept of a frozen trunk, (n, K).

        Returns:
            float (n, D), or (n, M, D) where a row is M vectors; of unit length for systems that score
            with a plain cosine.
        """

    def encode_gallery_in_parts(self, images: Tensor) -> InParts | None:  # noqa: ARG002
        """Gallery rows with their sum over positions; None where a row is no such sum (docs/explanations.md).

        Args:
            images: see `encode_gallery`.
        """
        return None

    def encode_reference(self, images: Tensor) -> Tensor:
        """What `compose` takes as the reference: (n, ...). The gallery row unless a system says otherwise."""
        return self.encode_gallery(images)

    @abstractmethod
    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Text embeddings.

        Args:
            tokens: int (n, T), padded on the right.
            lengths: int (n,), at least 1 and at most T.

        Returns:
            float (n, ...). Does not depend on what stands beyond a text's length.
        """

    @abstractmethod
    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """The query's terms from `encode_reference` (n, ...) and `encode_text` (n, H)."""

    def terms_of(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Terms:
        """The query's terms from what `encode_reference` and `encode_text` take."""
        return self.compose(self.encode_reference(images), self.encode_text(tokens, lengths))

    def own_loss(
        self,
        reference: Tensor,  # noqa: ARG002
        text: Tensor,  # noqa: ARG002
        targets: Tensor,  # noqa: ARG002
        own: Tensor | None = None,  # noqa: ARG002
        excluded: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor | None:
        """A system's own loss of a batch of queries; None for batch classification.

        Args:
            reference: (B, ...) as `encode_reference` gives them.
            text: (B, H) as `encode_text` gives them.
            targets: uint8 (T, H, W, 3), the distinct targets of the batch.
            own: int64 (B,), each query's own target; None where query i has target i.
            excluded: bool (B, T), targets that are no negatives of a query: the reference is none.
        """
        return None

    def loss_of_pictures(self, rows: Tensor, text: Tensor) -> Tensor | None:  # noqa: ARG002
        """The loss of a system that learns from pictures alone; None for one that learns from queries.

        Args:
            rows: (N, D), all distinct pictures of the batch, whatever their roles.
            text: (B, ...) as `encode_text` gives them.
        """
        return None

    def further_loss(self, reference: Tensor, text: Tensor, targets: Tensor) -> Tensor | None:  # noqa: ARG002
        """What a system's authors add to the classification of the batch; None for nothing.

        Args:
            reference: (B, ...) as `encode_reference` gives them.
            text: (B, H) as `encode_text` gives them.
            targets: (B, D), the row of each query's own target.
        """
        return None

    def trunks(self) -> list[nn.Module]:
        """Pre-trained trunks, which training may keep frozen for its first epochs or train more slowly."""
        return []

    def trained_before(self) -> list[nn.Module]:
        """What stays as it is in the frozen epochs: the trunks, unless a system's authors freeze more."""
        return self.trunks()

    def scales(self) -> list[nn.Parameter]:
        """What multiplies scores or distances in the loss; it learns at the temperature's own rate."""
        return [self.logit_scale]

    def parameter_count(self) -> int:
        """Parameters of the modules that the system runs."""
        return sum(p.numel() for name, p in self.named_parameters() if name.split(".")[0] not in self.unused)

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Scores of n queries against N target images: float32 (n, N)."""
        return pairwise_scores(self.terms_of(images, tokens, lengths), self.encode_gallery(targets))
