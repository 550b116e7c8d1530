"""The tokenizer of BERT (bert-base-uncased), which BLIP's checkpoints are read with and do not hold."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from cir_infer.errors import CheckpointError, shown
from cir_infer.foreign import lines_in, no_file, read_json

__all__ = ["CAPTIONS", "blip_tokenizer"]

_MAX_BYTES = 16 << 20
_WHERE = (
    "give BERT's as --vocab: vocab.txt or tokenizer.json of bert-base-uncased "
    "(hf download bert-base-uncased vocab.txt)"
)


CAPTIONS = (normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!\x22()*#:;~]"), " "))
"""How BLIP's authors clean captions."""


def blip_tokenizer(
    path: str | os.PathLike[str] | None,
    vocabulary: int,
    where: str,
    cleaning: Sequence[normalizers.Normalizer] = CAPTIONS,
    prompt: str = "",
) -> Tokenizer:
    """`[CLS] a [SEP]` over BERT's word pieces.

    Args:
        path: vocab.txt, a word piece a line, or a tokenizer.json of BERT.
        vocabulary: word vectors of the model; authors append tokens of their own behind BERT's.
        where: the checkpoint, for messages.
        cleaning: what is done to a text before BERT's own.
        prompt: what stands before every text.

    Raises:
        CheckpointError: there is none, or it is not of this model.
    """
    if path is None:
        raise CheckpointError(f"{where} does not hold its tokenizer; {_WHERE}")
    pieces = _pieces(Path(path))
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in pieces]
    if missing or pieces["[PAD]"] != 0:
        raise CheckpointError(f"{path} is no vocabulary of BERT: [PAD] is not its first token, or {missing} "
                              "are missing")  # fmt: skip
    if not vocabulary - 8 <= len(pieces) <= vocabulary:
        raise CheckpointError(
            f"{path} has {len(pieces)} word pieces and {where} word vectors for {vocabulary}; the two "
            f"are not of one model. {_WHERE[0].upper()}{_WHERE[1:]}"
        )
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
    own = normalizers.BertNormalizer(lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([*cleaning, own])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    opening = ["[CLS]", *tokenizer.encode(prompt).tokens] if prompt else ["[CLS]"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<opening> $A [SEP]",
        pair="<opening> $A $B [SEP]",
        special_tokens=[
            {"id": "<opening>", "ids": [pieces[piece] for piece in opening], "tokens": opening},
            {"id": "[SEP]", "ids": [pieces["[SEP]"]], "tokens": ["[SEP]"]},
        ],
    )
    return tokenizer


def _pieces(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise CheckpointError(f"vocabulary {path} {no_file(path)}; {_WHERE}")
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"vocabulary {path} is no word list; {_WHERE}")
    content = path.read_bytes()
    if content.lstrip()[:1] != b"{":
        try:
            lines = lines_in(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CheckpointError(f"vocabulary {path} is no text; {_WHERE}") from error
        if len(set(lines)) != len(lines):
            raise CheckpointError(f"vocabulary {path} lists a word piece twice; {_WHERE}")
        return {piece: number for number, piece in enumerate(lines)}
    try:
        table = read_json(content)
        model = table["model"]
        found = model["vocab"]
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"vocabulary {path} is no tokenizer.json ({shown(error)}); {_WHERE}") from error
    whole = isinstance(found, dict) and all(type(n) is int for n in found.values())
    if model.get("type") != "WordPiece" or not whole or sorted(found.values()) != list(range(len(found))):
        raise CheckpointError(f"vocabulary {path} holds no word pieces with ids 0, 1, 2, ...; {_WHERE}")
    return dict(found)
