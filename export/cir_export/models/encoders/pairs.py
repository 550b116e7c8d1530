"""Which pairs of towers there are, and how a configuration becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cir_export.models.configuration import parse
from cir_export.models.encoders.blip import Blip, BlipSettings
from cir_export.models.encoders.clip import Clip, ClipSettings
from cir_export.models.encoders.pair import Pair
from cir_export.models.encoders.siglip import Siglip, SiglipSettings
from cir_infer.errors import UsageError, shown

__all__ = ["build_clip", "build_pair"]


def build_pair(config: Any) -> Pair:
    """Builds the pair that `config["family"]` names, "clip", "siglip" or "blip", with fresh weights.

    Args:
        config: the family, and the keys of `ClipSettings`, `SiglipSettings` or `BlipSettings`.

    Raises:
        UsageError: the family is unknown, or a key does not fit.
    """
    if not isinstance(config, Mapping):
        raise UsageError(f"pair: {shown(config)} is not a table; expected one of keys and values")
    sizes = {key: value for key, value in config.items() if key != "family"}
    if config.get("family") == Clip.family:
        return Clip(parse(ClipSettings, sizes, "pair"))
    if config.get("family") == Siglip.family:
        return Siglip(parse(SiglipSettings, sizes, "pair"))
    if config.get("family") == Blip.family:
        return Blip(parse(BlipSettings, sizes, "pair"))
    raise UsageError(
        f"pair.family: {shown(config.get('family'))} is not known; expected clip, siglip or blip"
    )


def build_clip(config: Any, why: str) -> Clip:
    """As `build_pair`, for what is over a CLIP and over nothing else.

    Args:
        config: see `build_pair`.
        why: it has to be one, as it follows a semicolon.

    Raises:
        UsageError: see `build_pair`, or it is another pair.
    """
    pair = build_pair(config)
    if not isinstance(pair, Clip):
        raise UsageError(f"pair.family: {shown(pair.family)}; {why}")
    return pair
