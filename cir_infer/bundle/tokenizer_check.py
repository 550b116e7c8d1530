"""What a tokenizer may take for a text, known before it reads one.

A tokenizer.json runs no code, and yet computes: replacements that multiply one another turn a word into
gigabytes, a pattern can take hours for a line, and a library that finds no memory ends the process. So every
part is on a list, and what the parts do to a text of `MAX_CHARACTERS` is bounded: by how much they lengthen
it, how often a pattern goes over it, how many tokens come of it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

from cir_infer.bundle.patterns import Cost, pattern_cost
from cir_infer.errors import BundleError, shown
from cir_infer.foreign import read_json, unique_names

__all__ = ["MAX_CHARACTERS", "MAX_TOKENIZER_BYTES", "check_tokenizer"]

MAX_CHARACTERS = 5_000
"""Longer texts are refused before a tokenizer spends time on them."""

MAX_TOKENIZER_BYTES = 64 << 20

_MOST_VALUES = 3_000_000
"""Commas, brackets and braces of the file; each stands for values that take memory of their own."""

_MOST_GROWTH = 128
"""By how much a text may become longer, in characters."""

_MOST_STEPS = 300_000_000
"""Steps of patterns over a text: some seconds."""

_MOST_PARTS = 512
_LONGEST_WORD = 200
"""Letters of a word that WordPiece looks at; its time grows with their cube."""

_GROWING = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 2,
    "BertNormalizer": 12,
    "ByteLevel": 4,
    "Nmt": 1,
    "Strip": 1,
    "StripAccents": 1,
}
"""Characters that a normaliser makes of one, at most: of Unicode's own tables, or by what it does."""

_SPLITTING = {
    "BertPreTokenizer": 1,
    "ByteLevel": 4,
    "CharDelimiterSplit": 1,
    "Digits": 1,
    "FixedLength": 1,
    "Metaspace": 2,
    "Punctuation": 1,
    "UnicodeScripts": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
}
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_DECODERS = (
    "BPEDecoder",
    "ByteFallback",
    "ByteLevel",
    "CTC",
    "Fuse",
    "Metaspace",
    "Replace",
    "Strip",
    "WordPiece",
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel splits by, where it does."""


def check_tokenizer(data: bytes) -> None:
    """Refuse a tokenizer.json that could take more than a stated multiple of a text.

    Raises:
        BundleError: it is no JSON, holds a part that is not on the list, or parts that multiply a text by
            more than 128, take more than some seconds, or are longer than any tokenizer needs.
    """
    if len(data) > MAX_TOKENIZER_BYTES:
        raise BundleError(f"tokenizer.json has {len(data):,} bytes; expected at most {MAX_TOKENIZER_BYTES:,}")
    if data.count(b",") + 2 * (data.count(b"[") + data.count(b"{")) > _MOST_VALUES:
        raise BundleError(f"tokenizer.json has more than {_MOST_VALUES:,} values; no vocabulary is so large")
    try:
        content = read_json(data, object_pairs_hook=unique_names)
    except ValueError as error:
        raise BundleError(f"tokenizer.json is no JSON ({shown(error)}); export the model again") from error
    try:
        _check(content)
    except _RefusedError as error:
        raise BundleError(
            f"tokenizer.json cannot be used: {error}; export the model again with a plainer tokenizer"
        ) from error


class _RefusedError(Exception):
    """A part of the tokenizer may not be there."""


def _check(content: Any) -> None:
    if not isinstance(content, dict):
        raise _RefusedError(f"it is {shown(content, 40)} and no object")
    normalizers = list(_parts(content.get("normalizer"), "normalizer", "normalizers"))
    splitters = list(_parts(content.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers"))
    growth, steps = _normalizing(normalizers)
    for splitter in splitters:
        kind = _kind(splitter, "pre_tokenizer", (*_SPLITTING, "Split"))
        if kind == "Split":
            steps += _steps(_pattern(splitter), growth)
        elif kind == "ByteLevel" and splitter.get("use_regex", True):
            steps += _steps(pattern_cost(_GPT2), growth)
        growth *= _SPLITTING.get(kind, 1)
        _bounded(growth, steps)
    _check_model(content.get("model"))
    tokens = 1
    for processor in _parts(content.get("post_processor"), "post_processor", "processors"):
        tokens *= _framing(processor)
    _bounded(growth * tokens, steps)
    for decoder in _parts(content.get("decoder"), "decoder", "decoders"):
        if _kind(decoder, "decoder", _DECODERS) == "Replace":
            _pattern(decoder)
    _check_added(content.get("added_tokens"))
    _check_ids(content)


def _check_ids(content: dict[str, Any]) -> None:
    """Every number that may come out as a token fits the type that encoders read."""
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    numbers += [token["id"] for token in added if "id" in token]
    for processor in _parts(content.get("post_processor"), "post_processor", "processors"):
        special = processor.get("special_tokens")
        numbers += (
            [id for token in special.values() for id in _ids(token)] if isinstance(special, dict) else []
        )
        numbers += [
            pair[1] for pair in map(processor.get, ("sep", "cls")) if isinstance(pair, list) and pair[1:]
        ]
    odd = next((number for number in numbers if type(number) is not int or not 0 <= number < 1 << 31), None)
    if odd is not None:
        raise _RefusedError(f"a token has the number {shown(odd, 40)}; expected whole numbers below 2**31")


def _bounded(growth: float, steps: float) -> None:
    if growth > _MOST_GROWTH:
        raise _RefusedError(
            f"its parts can make a text {growth:,.0f} times as long; expected at most {_MOST_GROWTH}"
            if growth < 1e12
            else "its parts multiply a text without a bound"
        )
    if steps > _MOST_STEPS:
        raise _RefusedError(
            f"its patterns can take {steps:,.0f} steps for {MAX_CHARACTERS:,} characters; expected at most "
            f"{_MOST_STEPS:,}"
        )


def _parts(value: Any, where: str, inside: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """A part, or those of a sequence of parts, in their order."""
    if value is None:
        return
    if not isinstance(value, dict) or depth > 4:
        raise _RefusedError(f"its {where} is {shown(value, 60)}; expected an object")
    if value.get("type") != "Sequence":
        yield value
        return
    inner = value.get(inside)
    if not isinstance(inner, list) or len(inner) > _MOST_PARTS:
        raise _RefusedError(f"its {where} is no list of at most {_MOST_PARTS} parts")
    for part in inner:
        yield from _parts(part, where, inside, depth + 1)


def _kind(part: dict[str, Any], where: str, known: tuple[str, ...]) -> str:
    kind = part.get("type")
    if kind not in known:
        raise _RefusedError(
            f"its {where} holds {shown(kind, 60)}; expected one of {', '.join(sorted(known))}"
        )
    return str(kind)


def _pattern(part: dict[str, Any]) -> Cost:
    """What finding the pattern of a Split or a Replace takes."""
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and len(pattern) == 1:
        plain, regex = pattern.get("String"), pattern.get("Regex")
        if isinstance(plain, str) and len(plain) <= 1000:
            return Cost(0, 1, len(plain), plain)
        if isinstance(regex, str):
            try:
                return pattern_cost(regex)
            except ValueError as error:
                raise _RefusedError(f"its pattern {shown(regex, 60)} is not used: {error}") from error
    raise _RefusedError(f"it has the pattern {shown(pattern, 60)}; expected a String or a Regex")


def _steps(cost: Cost, growth: float) -> float:
    length = MAX_CHARACTERS * growth
    return float(cost.ways * length ** (cost.degree + 1)) / (2 if cost.degree else 1)


class _Lengths:
    """What each character becomes at most, in characters, by the parts that are still to come."""

    def __init__(self) -> None:
        self._single: dict[str, float] = {}
        self._other = 1.0

    def of(self, text: str) -> float:
        return sum(self._single.get(character, self._other) for character in text)

    @property
    def longest(self) -> float:
        return max(self._other, *self._single.values(), 0.0)

    def grown(self, factor: float) -> None:
        """By a part that makes up to so many characters, whichever, of any."""
        self._other = max(self.longest * factor, 1.0)
        self._single.clear()

    def replaced(self, cost: Cost, content: str) -> None:
        """By a part that puts `content` in the place of a match."""
        made = self.of(content)
        if cost.literal:
            found = self.of(cost.literal)
            if made > found:
                # Each character of the match bears its share, so that together they are long enough.
                for character in set(cost.literal):
                    share = self._single.get(character, self._other)
                    self._single[character] = share * made / found if found else made
        elif cost.shortest == 0:
            self._every(lambda old: old + made)
        else:
            self._every(lambda old: max(old, made / cost.shortest))

    def _every(self, change: Callable[[float], float]) -> None:
        self._other = change(self._other)
        self._single = {character: change(old) for character, old in self._single.items()}


def _normalizing(parts: list[dict[str, Any]]) -> tuple[float, float]:
    """By how much all normalisers together lengthen a text, and how many steps their patterns take."""
    steps = 0.0
    read = [_normalizer(part) for part in parts]
    if len(read) > _MOST_PARTS:
        raise _RefusedError(f"it has more than {_MOST_PARTS} normalisers")
    for place, (_, cost, _) in enumerate(read):
        if cost is not None:
            # A pattern that is linear in the text costs no more than the rest of the reading.
            steps += _steps(cost, _growth(read[:place])) if cost.degree else 0
    growth = _growth(read)
    _bounded(growth, steps)
    return growth, steps


def _growth(read: list[tuple[float, Cost | None, str]]) -> float:
    lengths = _Lengths()
    more = 0.0
    for factor, cost, content in reversed(read):
        if cost is not None:
            lengths.replaced(cost, content)
            if cost.shortest == 0:
                more += lengths.of(content) / MAX_CHARACTERS
        elif content:
            more += lengths.of(content)  # of a text that may be one character
        else:
            lengths.grown(factor)
        if lengths.longest + more > 1e15:
            return 1e15
    return lengths.longest + more


def _normalizer(part: dict[str, Any]) -> tuple[float, Cost | None, str]:
    """By how much it lengthens a text; or the pattern that it replaces, and by what; or what it prepends."""
    kind = _kind(part, "normalizer", (*_GROWING, "Replace", "Prepend", "Precompiled"))
    if kind == "Replace":
        content = part.get("content")
        if not isinstance(content, str) or len(content) > 1000:
            raise _RefusedError(
                f"it replaces something by {shown(content, 60)}; expected at most 1,000 characters"
            )
        return 1.0, _pattern(part), content
    if kind == "Prepend":
        content = part.get("prepend")
        if not isinstance(content, str) or len(content) > 8:
            raise _RefusedError(f"it puts {shown(content, 60)} before a text; expected at most 8 characters")
        return 1.0, None, content
    if kind == "Precompiled":
        return float(_longest_replacement(part.get("precompiled_charsmap"))), None, ""
    return float(_GROWING[kind]), None, ""


def _longest_replacement(charsmap: Any) -> int:
    """Of SentencePiece's table: the length of its tree, the tree, and texts that a NUL ends."""
    try:
        table = base64.b64decode(charsmap, validate=True)
        tree = int.from_bytes(table[:4], "little")
        texts = table[4 + tree :]
    except (TypeError, ValueError) as error:
        raise _RefusedError(f"its precompiled_charsmap is no table ({error})") from error
    if len(table) < 8 or tree % 4 or not 0 < tree <= len(table) - 4:
        raise _RefusedError("its precompiled_charsmap is no table")
    return max(map(len, texts.split(b"\0")))


def _check_model(model: Any) -> None:
    if not isinstance(model, dict):
        raise _RefusedError(f"its model is {shown(model, 60)}; expected an object")
    kind = model.get("type") or ("BPE" if "merges" in model else "WordLevel")
    if kind not in _MODELS:
        raise _RefusedError(f"its model is a {shown(kind, 60)}; expected one of {', '.join(_MODELS)}")
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        value = model.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > 64):
            raise _RefusedError(f"its {name} is {shown(value, 60)}; expected at most 64 characters")
    if model.get("dropout"):
        raise _RefusedError("it drops merges at random, so that a text has no one meaning")
    longest = model.get("max_input_chars_per_word", 100)
    if type(longest) is not int or not 0 <= longest <= _LONGEST_WORD:
        raise _RefusedError(
            f"its max_input_chars_per_word is {shown(longest, 60)}; expected at most {_LONGEST_WORD}"
        )


def _framing(processor: dict[str, Any]) -> int:
    """By how much a post-processor multiplies tokens; what it adds to them has a limit."""
    known = ("BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing")
    if _kind(processor, "post_processor", known) != "TemplateProcessing":
        return 1
    most = 1
    special = processor.get("special_tokens")
    for side in ("single", "pair"):
        pieces = processor.get(side)
        if not isinstance(pieces, list) or len(pieces) > 64:
            raise _RefusedError(f"its template {side} is no list of at most 64 pieces")
        for piece in pieces:
            token = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = token.get("id") if isinstance(token, dict) else None
            listed = isinstance(special, dict) and isinstance(name, str) and name in special
            if token is not None and not listed:
                raise _RefusedError(f"its template has a special token {shown(name, 60)} without ids")
        texts = [
            shown(piece["Sequence"]) for piece in pieces if isinstance(piece, dict) and "Sequence" in piece
        ]
        most = max(most, len(texts) - (side == "pair"))
    if not isinstance(special, dict) or sum(len(_ids(token)) for token in special.values()) > 64:
        raise _RefusedError("its template has no table of at most 64 special tokens")
    return most


def _ids(token: Any) -> list[Any]:
    ids = token.get("ids") if isinstance(token, dict) else None
    if not isinstance(ids, list):
        raise _RefusedError(f"a special token of its template is {shown(token, 60)}; expected one with ids")
    return ids


def _check_added(added: Any) -> None:
    if added is None:
        return
    if not isinstance(added, list) or len(added) > 100_000:
        raise _RefusedError("its added_tokens are no list of at most 100,000")
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or len(content) > 1000:
            raise _RefusedError(f"an added token is {shown(token, 60)}; expected a content of at most 1,000")
