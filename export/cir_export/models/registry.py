"""Which systems there are, and how a configuration becomes a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cir_export.models import artemis, clip4cir, tirg
from cir_export.models.attribute_as_operator import AttributeAsOperator
from cir_export.models.base import RetrievalModel
from cir_export.models.blip2 import Blip2TextOnly
from cir_export.models.cirplant import Cirplant
from cir_export.models.clip_artemis import ArtemisOverClip, ArtemisOverPair
from cir_export.models.combiner import PairCombiner
from cir_export.models.composeae import ComposeAe
from cir_export.models.concatenation import Concatenation
from cir_export.models.cosmo import Cosmo
from cir_export.models.covr2 import Covr2
from cir_export.models.film import Film
from cir_export.models.maaf import Maaf
from cir_export.models.magiclens import MagicLens
from cir_export.models.mrn import Mrn
from cir_export.models.parameter_hashing import ParameterHashing
from cir_export.models.pic2word import Pic2Word
from cir_export.models.relationship import Relationship
from cir_export.models.sac import Sac
from cir_export.models.show_and_tell import ShowAndTell
from cir_export.models.sprc import Sprc
from cir_export.models.sum import Sum, SumImageOnly, SumTextOnly
from cir_export.models.val import Val
from cir_infer.errors import UsageError, shown

__all__ = ["MODELS", "build_model", "layers_of"]

MODELS: dict[str, type[RetrievalModel]] = {
    model.system: model
    for model in (
        artemis.Artemis,
        artemis.ImplicitSimilarityOnly,
        artemis.ExplicitMatchingOnly,
        artemis.ImageOnly,
        artemis.TextOnly,
        artemis.LateFusion,
        tirg.Tirg,
        tirg.TirgLastConvolution,
        tirg.TirgImageOnly,
        tirg.TirgTextOnly,
        Sac,
        clip4cir.Clip4CirSum,
        clip4cir.Clip4CirCombiner,
        ArtemisOverClip,
        Sum,
        SumImageOnly,
        SumTextOnly,
        PairCombiner,
        ArtemisOverPair,
        Pic2Word,
        MagicLens,
        Blip2TextOnly,
        Covr2,
        Sprc,
        Concatenation,
        ShowAndTell,
        ParameterHashing,
        AttributeAsOperator,
        Relationship,
        Mrn,
        Film,
        Val,
        Cosmo,
        ComposeAe,
        Maaf,
        Cirplant,
    )
}
"""Every system by its name."""

_MOST_LAYERS = 10_000
"""Above any model's. Each takes time and memory to build, whatever weights there are for it."""


def build_model(config: Mapping[str, Any]) -> RetrievalModel:
    """Builds the system that `config["system"]` names, with fresh weights.

    Example:
        >>> model = build_model({
        ...     "system": "artemis",
        ...     "embedding_dim": 512,
        ...     "image": {"trunk": "small", "pooling": "grid", "size": 72},
        ...     "text": {"encoder": "bigru", "vocabulary_size": 120, "word_dim": 300},
        ... })

    Raises:
        UsageError: the system is unknown, or its configuration does not fit.
    """
    system = config.get("system")
    if not isinstance(system, str) or system not in MODELS:
        raise UsageError(f"system {shown(system)} is not known; expected one of {', '.join(sorted(MODELS))}")
    _check_layers(config)
    try:
        model = MODELS[system].from_config(config)
    except UsageError:
        raise
    except Exception as error:  # PyTorch's answers to senseless sizes
        raise UsageError(f"its configuration cannot be built ({shown(error, 200)})") from error
    model.config = dict(config)
    return model


def layers_of(config: Mapping[str, Any]) -> int:
    """How many layers a configuration asks for, in all its tables."""
    count = 0
    waiting: list[Any] = [config]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, Mapping):
                waiting.append(value)
            elif isinstance(key, str) and ("layers" in key or key == "blocks"):
                values = value if isinstance(value, (list, tuple)) else [value]
                count += sum(one for one in values if isinstance(one, int) and one > 0)
    return count


def _check_layers(config: Mapping[str, Any]) -> None:
    if layers_of(config) > _MOST_LAYERS:
        raise UsageError(f"it has more than {_MOST_LAYERS:,} layers; expected fewer")
