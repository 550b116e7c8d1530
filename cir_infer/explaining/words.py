"""A query's text without one of its words at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cir_infer.inputs.texts import ReadText, Text, TextReader

__all__ = ["LeftOut", "leave_words_out"]

# Scripts without spaces between words: each character by itself.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_ALONE}]|[^\\s{_ALONE}]+")


@dataclass(frozen=True)
class LeftOut:
    """A word, and the text without it.

    Attributes:
        word: as it was typed.
        start: its place in its caption.
        end: the place behind it.
        caption: the caption's number.
        rest: the tokens of the text without it.
    """

    word: str
    start: int
    end: int
    caption: int
    rest: ReadText


def leave_words_out(reader: TextReader, text: Text) -> list[LeftOut]:
    """Every word of a text with what is left without it, in the order of the text.

    A word is what stands between spaces; in scripts without spaces, a character. Where nothing would be
    left that the model could read, not even tokens around the text, the word is not among them.

    Args:
        reader: reads what is left.
        text: as the query was asked, and as `TextReader.read_one` has accepted it.
    """
    captions = [text] if isinstance(text, str) else list(text)
    found: list[LeftOut] = []
    for number, caption in enumerate(captions):
        for match in _WORD.finditer(caption):
            start, end = match.span()
            without = f"{caption[:start].rstrip()} {caption[end:].lstrip()}".strip()
            others = [without if place == number else other for place, other in enumerate(captions)]
            rest = reader.read_rest(others[0] if isinstance(text, str) else others)
            if rest is not None:
                found.append(LeftOut(match[0], start, end, number, rest))
    return found
