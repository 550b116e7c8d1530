"""GRU and LSTM layers over sequences of different lengths, and an LSTM over a few steps.

The one recurrent layer of all text encoders, so that export has one thing to replace by one ONNX node.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["Recurrent", "ShortLSTM"]


class Recurrent(nn.Module):
    """One layer of `torch.nn.GRU` or `torch.nn.LSTM`, batch first, that stops at each sequence's length.

    Attributes:
        layer: the PyTorch layer, under whose name the weights are stored.
    """

    def __init__(self, kind: str, inputs: int, hidden: int, bidirectional: bool = False) -> None:
        super().__init__()
        build = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        self.layer = build(inputs, hidden, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the layer.

        Args:
            x: float (n, T, inputs).
            lengths: int (n,), 1..T.

        Returns:
            outputs float (n, T, directions * hidden), zero beyond a sequence's length, and the last
            hidden state of each direction, float (n, directions * hidden), forward first.
        """
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, state = self.layer(packed)
        last = state[0] if isinstance(state, tuple) else state
        outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
        return outputs, last.transpose(0, 1).flatten(1)


class ShortLSTM(nn.Module):
    """An LSTM over a few steps, always as many, written out: an exported graph has no loop.

    TensorRT's compiler fails on a loop of two steps in float16 (seen with TensorRT for RTX 1.7.1).

    Attributes:
        layer: the PyTorch layer, under whose name the weights are stored.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(inputs, hidden)

    def forward(self, steps: Sequence[Tensor]) -> Tensor:
        """From the steps, float (n, inputs) each and at least one, to the last hidden state (n, hidden)."""
        weights = dict(self.layer.named_parameters())
        bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
        hidden = cell = None
        for x in steps:
            gates = functional.linear(x, weights["weight_ih_l0"], bias)
            if hidden is not None:
                gates = gates + functional.linear(hidden, weights["weight_hh_l0"])
            take, keep, new, show = gates.chunk(4, 1)
            added = torch.sigmoid(take) * torch.tanh(new)
            cell = added if cell is None else torch.sigmoid(keep) * cell + added
            hidden = torch.sigmoid(show) * torch.tanh(cell)
        assert hidden is not None
        return hidden
