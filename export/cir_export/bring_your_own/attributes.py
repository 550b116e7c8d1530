"""The attributes of a user's module, checked before anything runs: each error names one and its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from cir_export.preprocessing import check_inputs
from cir_export.stated import LONGEST, is_stated
from cir_export.tokenization import unknown_id
from cir_infer.errors import BundleError, ExportError, shown

__all__ = ["domain_of_module", "image_of", "term_names_of", "text_of", "tokenizer_of"]

_MAX_TOKENS = 64
_IMAGE = "e.g. image = cir_export.preprocessing.padded_crop(224)"


def image_of(module: nn.Module, where: str) -> dict[str, Any]:
    """`image`, the preprocessing.

    Raises:
        ExportError: it is missing, or not what a manifest holds.
    """
    image = getattr(module, "image", None)
    if not isinstance(image, Mapping):
        found = (
            "has no attribute image"
            if image is None
            else f": attribute image is {' '.join(shown(image).split())}"
        )
        raise ExportError(
            f"{where}{'' if found[0] == ':' else ' '}{found}; set it to the preprocessing, {_IMAGE}"
        )
    given = dict(image)
    if given.get("kind") == "pixels":
        given.setdefault("exif_orientation", True)
    try:
        check_inputs(given, {"pad_id": 0, "unk_id": None, "max_tokens": 1, "captions": " "})
    except BundleError as error:
        raise ExportError(f"{where}: attribute image: {_reason(error)}; {_IMAGE}") from error
    return given


def tokenizer_of(module: nn.Module, where: str) -> Tokenizer:
    """`tokenizer`; a fast tokenizer of transformers does, for the `tokenizers.Tokenizer` inside.

    Raises:
        ExportError: it is missing or something else.
    """
    found = getattr(module, "tokenizer", None)
    inside = getattr(found, "backend_tokenizer", found)
    if isinstance(inside, Tokenizer):
        return inside
    said = "has no attribute tokenizer" if found is None else f"has a {type(found).__name__} as tokenizer"
    raise ExportError(
        f"{where} {said}; set the attribute tokenizer to a tokenizers.Tokenizer, e.g. "
        "cir_export.tokenization.build_tokenizer(...), or give a tokenizers JSON or a word list (--vocab)"
    )


def text_of(module: nn.Module, tokenizer: Tokenizer, where: str) -> dict[str, Any]:
    """`pad_id`, `unk_id`, `max_tokens` and `captions`, or what the tokenizer says, or defaults.

    Raises:
        ExportError: one of them cannot be.
    """
    size = tokenizer.get_vocab_size()
    text: dict[str, Any] = {
        "pad_id": _whole(
            module, "pad_id", _pad_id(module, tokenizer), 0, size - 1, where, f"a token id below {size}"
        ),
        "unk_id": getattr(module, "unk_id", unknown_id(tokenizer)),
        "max_tokens": _whole(module, "max_tokens", _MAX_TOKENS, 1, 1 << 16, where, "from 1 to 65536"),
        "captions": getattr(module, "captions", " "),
    }
    if text["unk_id"] is not None:
        _whole(module, "unk_id", text["unk_id"], 0, size - 1, where, f"a token id below {size}, or None")
    if not is_stated(text["captions"]):
        raise ExportError(
            f"{where}: attribute captions is {shown(text['captions'])}; expected the text that joins several "
            'captions, e.g. captions = " ", or "pair"; leave it out for " "'
        )
    return text


def _pad_id(module: nn.Module, tokenizer: Tokenizer) -> int:
    """What the tokenizer pads with, as a transformers' one or in its JSON, 0 where it does not say.

    A model may tell by it where a text ends, as those do that read no lengths.
    """
    own = getattr(module, "tokenizer", None)
    is_read = getattr(own, "backend_tokenizer", own) is tokenizer  # and none that was given in its place
    inside = tokenizer.padding or {}
    for said in (getattr(own, "pad_token_id", None) if is_read else None, inside.get("pad_id")):
        if type(said) is int:
            return said
    return 0


def term_names_of(module: nn.Module, where: str) -> tuple[str, ...]:
    """`term_names`, or ("similarity",).

    Raises:
        ExportError: not one to 64 different names.
    """
    names = getattr(module, "term_names", ("similarity",))
    if isinstance(names, str):
        raise ExportError(
            f'{where}: attribute term_names is the text "{names[:40]}"; expected a tuple of names, '
            f'term_names = ("{names[:40]}",)'
        )
    listed = list(names) if isinstance(names, tuple | list) else []
    if (
        not 1 <= len(listed) <= 64
        or not all(isinstance(name, str) and name.isidentifier() for name in listed)
        or len(set(listed)) != len(listed)
    ):
        raise ExportError(
            f"{where}: attribute term_names is {shown(names)}; expected a tuple of 1 to 64 different names "
            'of letters, digits and underscores, e.g. ("similarity",)'
        )
    return tuple(listed)


def domain_of_module(module: nn.Module, where: str) -> str | None:
    """`domain`, what it was trained on, in words; None where it does not say.

    Raises:
        ExportError: it is no text.
    """
    domain = getattr(module, "domain", None)
    if domain is not None and not is_stated(domain):
        raise ExportError(
            f"{where}: attribute domain is {shown(domain)}; expected a text of up to {LONGEST:,} characters, "
            "or leave it out"
        )
    return domain


def _whole(module: nn.Module, name: str, default: int, low: int, high: int, where: str, expected: str) -> int:
    value = getattr(module, name, default)
    if type(value) is not int or not low <= value <= high:
        raise ExportError(f"{where}: attribute {name} is {shown(value)}; expected a whole number, {expected}")
    return value


def _reason(error: BundleError) -> str:
    return str(error).removeprefix("manifest: ")
