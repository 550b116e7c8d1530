"""Attribute as operator (Nagarajan and Grauman, ECCV 2018; a baseline of Vo et al., CVPR 2019).

The text becomes a linear operator on the image's embedding:

    q = M(m) r        M(m) = I + sum_k c_k B_k        c = W m

The original learns one matrix an attribute, the identity at first. Free text has no list of attributes, so
its operator is a combination of K learned ones, with coefficients from the text; W is zero at first, so
training starts from the identity as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import CosineModel, EncoderSettings
from cir_infer.errors import UsageError

__all__ = ["AttributeAsOperator", "AttributeAsOperatorSettings"]


@dataclass(frozen=True)
class AttributeAsOperatorSettings(EncoderSettings):
    """Configuration of attribute as operator.

    Attributes:
        operators: K.
    """

    operators: int = 16


class AttributeAsOperator(CosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "attribute-as-operator"
    settings_type: ClassVar[type[EncoderSettings]] = AttributeAsOperatorSettings

    def __init__(self, settings: AttributeAsOperatorSettings) -> None:
        super().__init__(settings)
        if settings.operators < 1:
            raise UsageError("model.operators: 0; expected at least 1")
        dim = settings.embedding_dim
        self.coefficients = nn.Linear(dim, settings.operators)
        nn.init.zeros_(self.coefficients.weight)
        nn.init.zeros_(self.coefficients.bias)
        self.operators = nn.Parameter(torch.randn(settings.operators, dim, dim) / dim**0.5)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        # Operators first, then their combination: no (n, D, D) matrix is built.
        images = torch.einsum("kij,nj->nki", self.operators, reference)
        return reference + torch.einsum("nk,nki->ni", self.coefficients(text), images)
