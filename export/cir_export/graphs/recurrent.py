"""Recurrent layers as the one ONNX node that they are.

Neither of PyTorch's exporters can write a packed sequence, and their unpacked alternatives freeze the
length of a bidirectional layer without saying so. ONNX' own GRU and LSTM take the lengths as an input.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cir_export.models import RetrievalModel
from cir_export.models.encoders.recurrent import Recurrent

__all__ = ["OnnxRecurrent", "with_onnx_recurrent"]

_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""Where PyTorch's gates (r z n; i f g o) stand in ONNX' order (z r h; i o f c)."""


class OnnxRecurrent(nn.Module):
    """Stands in for a `Recurrent` during export; outside of an exported graph it computes nothing."""

    weight: Tensor
    recurrence: Tensor
    bias: Tensor

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.op = "GRU" if isinstance(layer, nn.GRU) else "LSTM"
        self.hidden = layer.hidden_size
        self.directions = 2 if layer.bidirectional else 1
        suffixes = ("", "_reverse")[: self.directions]
        weights = [[self._ordered(layer, kind, s) for s in suffixes] for kind in ("weight_ih", "weight_hh")]
        biases = [
            torch.cat([self._ordered(layer, "bias_ih", s), self._ordered(layer, "bias_hh", s)])
            for s in suffixes
        ]
        self.register_buffer("weight", torch.stack(weights[0]))
        self.register_buffer("recurrence", torch.stack(weights[1]))
        self.register_buffer("bias", torch.stack(biases))

    def _ordered(self, layer: nn.GRU | nn.LSTM, kind: str, suffix: str) -> Tensor:
        tensor: Tensor = getattr(layer, f"{kind}_l0{suffix}").detach()
        gates = tensor.chunk(len(_GATES[self.op]))
        return torch.cat([gates[gate] for gate in _GATES[self.op]])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `Recurrent.forward`."""
        state = (self.directions, x.shape[0], self.hidden)
        shapes = [(x.shape[1], *state), state, state][: 2 if self.op == "GRU" else 3]
        attributes: dict[str, Any] = {
            "hidden_size": self.hidden,
            "direction": "bidirectional" if self.directions == 2 else "forward",
        }
        if self.op == "GRU":
            attributes["linear_before_reset"] = 1  # PyTorch's form of the candidate gate
        outputs, last, *_ = torch.onnx.ops.symbolic_multi_out(
            self.op,
            (x.transpose(0, 1), self.weight, self.recurrence, self.bias, lengths.to(torch.int32)),
            attributes,
            dtypes=[torch.float32] * len(shapes),
            shapes=shapes,
        )
        return outputs.permute(2, 0, 1, 3).flatten(2), last.transpose(0, 1).flatten(1)


def with_onnx_recurrent(model: RetrievalModel) -> RetrievalModel:
    """A copy of the model whose recurrent layers are ready for export; it shares the other weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    exportable = copy.deepcopy(model, shared)
    for name, module in list(exportable.named_modules()):
        if isinstance(module, Recurrent):
            parent, _, child = name.rpartition(".")
            setattr(exportable.get_submodule(parent), child, OnnxRecurrent(module.layer))
    return exportable
