"""What a system costs beyond the encoders, counted on a model of full size whose weights take no memory.

As the authors count: a query-target pair is two images and a text of 20 tokens. Convolutions, linear
layers and matrix products count, elementwise work does not. What a system adds is all of it beyond
ARTEMIS' encoders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cir_export.models import RetrievalModel

__all__ = ["SYSTEMS", "added_cost", "encoder_cost", "reference_shape"]

SYSTEMS = ("artemis", "tirg", "val", "cosmo")
"""The systems of the table, beside the encoders."""

_TOKENS, _SIDE, _TEXT = 20, 224, 512


def added_cost(system: str) -> tuple[int, int]:
    """Multiply-accumulates and parameters that a system adds to the encoders."""
    import torch

    model, encoders = _without_memory(system), _encoders()
    text = torch.zeros(1, _TEXT, device="meta")
    macs = _macs(lambda: model.compose(_image(model.encode_reference), text))
    macs += _macs(lambda: _image(model.encode_gallery)) - encoders[0]
    trained = sum(p.numel() for p in model.parameters()) - model.logit_scale.numel()
    return macs, trained - encoders[1]


def encoder_cost() -> tuple[int, int]:
    """Multiply-accumulates of two images and a text, and parameters of both encoders."""
    text: Any = _without_memory("artemis").text_encoder
    step = sum(p.numel() for name, p in text.rnn.named_parameters() if "weight" in name)
    macs, parameters = _encoders()
    return macs + _TOKENS * step + text.project.weight.numel(), parameters


def reference_shape(system: str) -> tuple[int, ...]:
    """The shape of what a system's composition reads of a reference."""
    return tuple(_image(_without_memory(system).encode_reference).shape[1:])


def _encoders() -> tuple[int, int]:
    """Multiply-accumulates of two images, and parameters of both encoders."""
    model: Any = _without_memory("artemis")
    parts = (model.image_encoder, model.text_encoder)
    return (
        2 * _macs(lambda: _image(model.encode_gallery)),
        sum(p.numel() for part in parts for p in part.parameters()),
    )


def _without_memory(system: str) -> RetrievalModel:
    import torch

    from cir_bench.seeded_models import full_size
    from cir_export.models import build_model

    with torch.device("meta"):
        return build_model(full_size(system)).eval()


def _image(encoder: Any) -> Any:
    import torch

    return encoder(torch.zeros(1, _SIDE, _SIDE, 3, dtype=torch.uint8, device="meta"))


def _macs(run: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2
