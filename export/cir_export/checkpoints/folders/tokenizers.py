"""`tokenizer.json` of transformers as a bundle's tokenizer.

It is taken as it is, but that a text cannot type a special token, and that nothing is cut or padded: the
runtime does the latter and says so where a text is too long. SigLIP's tokenizers clean texts in Python,
which is put into the JSON here where it lacks it.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cir_export.checkpoints.folders.files import is_pointer, json_of
from cir_export.clip_tokenization import WORDS
from cir_export.tokenization import unknown_id
from cir_infer.bundle.tokenizer_check import MAX_TOKENIZER_BYTES, check_tokenizer
from cir_infer.errors import CheckpointError, CirError, shown
from cir_infer.foreign import has_file, read_json

__all__ = ["FolderTokenizer"]

_CLEANED = ("SiglipTokenizer", "SiglipTokenizerFast")
"""Classes that take punctuation out."""

_LOWERED = (*_CLEANED, "GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer")
"""Classes that make letters small where they belong to a SigLIP."""

_PROBE = "a photo of a dog"


class FolderTokenizer:
    """The tokenizer of a folder.

    Args:
        folder: of the model.
        siglip: whether it belongs to a SigLIP, whose classes clean texts.

    Attributes:
        tokenizer: for a bundle.
        where: the file, for messages.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """

    def __init__(self, folder: Path, siglip: bool = False) -> None:
        path = folder / "tokenizer.json"
        self.where = str(path)
        if not has_file(path, CheckpointError):
            raise CheckpointError(
                f"{folder} has no tokenizer.json; make it once, with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
            )
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_TOKENIZER_BYTES >> 20} MB")
        if is_pointer(path):
            raise CheckpointError(f"{path} is a pointer of Git LFS; run `git lfs pull` in {folder}")
        self._said = json_of(folder, "tokenizer_config.json") or {}
        self._special = json_of(folder, "special_tokens_map.json") or {}
        try:
            table = read_json(path.read_bytes())
            if not isinstance(table, dict) or not isinstance(table.get("model"), dict):
                raise CheckpointError("it is no tokenizer")
            self._plain(table)
            if siglip:
                self._framed(table)
                self._cleaned(table)
            prepared = json.dumps(table, ensure_ascii=False)
            check_tokenizer(prepared.encode())
            self.tokenizer = Tokenizer.from_str(prepared)
        except CirError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} cannot be read ({shown(error)})") from error

    def pad_id(self, default: Any) -> int:
        """The token that fills texts up.

        Raises:
            CheckpointError: neither the folder nor `default` names one.
        """
        named = self._named("pad_token")
        found = self.tokenizer.token_to_id(named) if named is not None else default
        if type(found) is not int or not 0 <= found < 1 << 24:
            raise CheckpointError(
                f"{self.where}: no pad token is known (found {shown(named)}), and the model reads its "
                f"padding; "
                "expected pad_token in tokenizer_config.json"
            )
        return found

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, None where the folder names none."""
        named = self._named("eos_token")
        return None if named is None else self.tokenizer.token_to_id(named)

    @property
    def unk_id(self) -> int | None:
        """See `unknown_id`."""
        return unknown_id(self.tokenizer)

    def check(self, vocabulary: int, first: int | None, last: int, name: str) -> None:
        """Assert that it is the model's: its ids have word vectors, its texts begin and end as they should.

        Raises:
            CheckpointError: it is not.
        """
        ids = self.tokenizer.encode(_PROBE).ids
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        if largest >= vocabulary:
            raise CheckpointError(
                f"{self.where} has token ids up to {largest} and the model has {vocabulary} word vectors; "
                f"the two "
                "are not of one model"
            )
        for what, place, wanted in (("begin", 0, first), ("end", -1, last)):
            if wanted is not None and (not ids or ids[place] != wanted):
                raise CheckpointError(
                    f"{self.where}: texts do not {what} with the special token {wanted} that {name} expects "
                    f"(a text becomes {shown(ids)}); its post_processor or its added tokens are missing. "
                    "Download the file again, or save it anew from the tokenizer that the model was "
                    "trained with"
                )

    def _plain(self, table: dict[str, Any]) -> None:
        table["truncation"] = table["padding"] = None
        # An added token is looked for in the raw text, so that a text could type it; where it is special, the
        # post-processor holds its id.
        table["added_tokens"] = [
            token for token in table.get("added_tokens") or () if not token.get("special", False)
        ]

        # CLIP's words are as GPT-2's pattern would have them, which ByteLevel applies again; that takes the
        # square of a text's length, for nothing.
        splitting = table.get("pre_tokenizer") or {}
        parts = splitting.get("pretokenizers") if isinstance(splitting, dict) else None
        if isinstance(parts, list) and [part.get("type") for part in parts] == ["Split", "ByteLevel"]:
            first = parts[0]
            if first.get("pattern") == {"Regex": WORDS} and first.get("invert") is True:
                parts[1]["use_regex"] = False

    def _framed(self, table: dict[str, Any]) -> None:
        """The tokens around a text that the class adds, and not the file."""
        asked = {side: self._said.get(f"add_{side}_token") for side in ("bos", "eos")}
        if not any(type(value) is bool for value in asked.values()):
            return
        named = {side: self._named(f"{side}_token") for side in ("bos", "eos") if asked[side]}
        ids = {token: _id_of(table, token) for token in named.values() if token is not None}
        if None in ids.values() or len(ids) != len(named):
            raise CheckpointError(f"its special tokens {shown(named)} are not in its vocabulary")
        single = [{"Sequence": {"id": "A", "type_id": 0}}]
        for side, token in named.items():
            single.insert(
                0 if side == "bos" else len(single), {"SpecialToken": {"id": str(token), "type_id": 0}}
            )
        table["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                str(token): {"id": token, "ids": [number], "tokens": [token]} for token, number in ids.items()
            },
        }

    def _cleaned(self, table: dict[str, Any]) -> None:
        kind = self._said.get("tokenizer_class")
        added: list[dict[str, Any]] = []
        if kind in _LOWERED or self._said.get("do_lower_case") is True:
            added.append({"type": "Lowercase"})
        if kind in _CLEANED:
            marks = "".join(f"\\x{ord(mark):02x}" for mark in string.punctuation)
            added += [
                {"type": "Replace", "pattern": {"Regex": f"[{marks}]"}, "content": ""},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ]
        if not added:
            return
        normalizer = table.get("normalizer")
        table["normalizer"] = {
            "type": "Sequence",
            "normalizers": [*added, *([normalizer] if normalizer is not None else [])],
        }

    def _named(self, key: str) -> str | None:
        for table in (self._said, self._special):
            value = table.get(key)
            value = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(value, str):
                return value
        return None


def _id_of(table: Mapping[str, Any], token: str) -> int | None:
    vocabulary = table["model"].get("vocab")
    if isinstance(vocabulary, Mapping):
        found = vocabulary.get(token)
        return found if type(found) is int else None
    pieces = [piece[0] for piece in vocabulary or ()]
    return pieces.index(token) if token in pieces else None
