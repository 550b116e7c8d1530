"""A model's weights out of a folder, whose names and partition are another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cir_export.checkpoints.folders.weights import FolderWeights
from cir_export.model_file import check_layers
from cir_export.models import RetrievalModel, build_model
from cir_infer.errors import CheckpointError, CirError

__all__ = ["renamed_model"]


def renamed_model(
    config: Mapping[str, Any],
    weights: FolderWeights,
    names: Callable[[str], tuple[str, ...]],
    ignored: Callable[[str], bool],
) -> RetrievalModel:
    """Builds a model and fills it with a folder's weights.

    Args:
        config: for `build_model`.
        weights: of the folder.
        names: by our name of a parameter the theirs whose rows, one below the other, are it. A one ending in
            ".T" is taken transposed, and one of another shape and as many values is reshaped; none stands for
            a parameter that plays no part in inference.
        ignored: whether a weight of theirs has no part in ours.

    Raises:
        CheckpointError: a weight is missing, of another shape, one too many or not finite, or the
            configuration cannot be built.
    """
    where = weights.where
    check_layers(config, len(weights.names), where)
    try:
        with torch.device("meta"):  # shapes without memory
            shapes = {name: tuple(value.shape) for name, value in build_model(config).named_parameters()}
        sources = {name: names(name) for name in shapes}
        _check(weights, shapes, sources)
        left = weights.names - {_plain(source) for theirs in sources.values() for source in theirs}
        unknown = sorted(name for name in left if not ignored(name))
        if unknown:
            raise CheckpointError(
                f"{where}: {len(unknown)} weights have no place in this model, {unknown[0]} among them; "
                f"it is of "
                "another class than its config.json says"
            )
        model = build_model(config)
    except CheckpointError:
        raise
    except CirError as error:
        raise CheckpointError(f"{where}: {error}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if sources[name]:  # one at a time: a model may be a third of the memory
                parameter.copy_(_read(weights, sources[name], parameter))
            if not torch.isfinite(parameter).all():
                raise CheckpointError(f"{where}: weight {sources[name][0]} holds NaN or infinity")
    return model.eval()


def _plain(source: str) -> str:
    return source.removesuffix(".T")


def _check(
    weights: FolderWeights, shapes: Mapping[str, tuple[int, ...]], sources: Mapping[str, tuple[str, ...]]
) -> None:
    """Compares shapes before anything is read, and says what differs in the names of the file."""
    for name, theirs in sources.items():
        expected = shapes[name]
        for source in theirs:
            found = weights.shape(_plain(source))
            if found is None:
                raise CheckpointError(f"{weights.where}: weight {_plain(source)} is missing")
            part = (expected[0] // len(theirs), *expected[1:]) if len(theirs) > 1 else expected
            wanted = part[::-1] if source.endswith(".T") else part
            if found != wanted and (len(theirs) > 1 or _without_ones(found) != _without_ones(wanted)):
                raise CheckpointError(
                    f"{weights.where}: weight {_plain(source)} has shape {found}; expected {wanted} by "
                    f"config.json"
                )


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _read(weights: FolderWeights, theirs: tuple[str, ...], own: Tensor) -> Tensor:
    parts = [
        weights.tensor(_plain(source)).T if source.endswith(".T") else weights.tensor(source)
        for source in theirs
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(own.shape)
