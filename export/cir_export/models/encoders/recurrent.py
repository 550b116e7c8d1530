"""GRU and LSTM layers over sequences of different lengths.

The one recurrent layer of all text encoders, so that export has one thing to replace by one ONNX node.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["Recurrent"]


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
