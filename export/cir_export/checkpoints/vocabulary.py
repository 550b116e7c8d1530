"""Vocabulary files beside public checkpoints: a pickled word list, or JSON.

Such a pickle holds one object of the authors' class `Vocabulary`. It is read by an unpickler that can
build that one class, as plain data, and nothing else.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from cir_infer.errors import CheckpointError, shown
from cir_infer.foreign import check_pickle, no_file, read_json

__all__ = ["load_vocabulary"]

_CLASSES = {
    ("__main__", "Vocabulary"),
    ("vocab", "Vocabulary"),
    ("__main__", "SimpleVocab"),
    ("text_model", "SimpleVocab"),
}
"""Where pickles say the class lives: the script that built it, run or imported."""

_TABLES = ("word2idx", "word2id")
"""What naver/artemis and google/tirg call the table of ids by word."""

_MAX_BYTES = 64 << 20


def load_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """Token ids by word.

    Args:
        path: a pickle of naver/artemis (`<data>_vocab.pkl`) or of google/tirg's `SimpleVocab`, or JSON: a
            table of ids by word, that table under the name word2idx or word2id, or a list of words in the
            order of their ids.

    Raises:
        CheckpointError: no such file, neither of the two, or ids that are not 0, 1, 2, ... each once.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"vocabulary {path} {no_file(path)}; expected a pickle or JSON file")
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"vocabulary {path} has more than {_MAX_BYTES >> 20} MB; that is no word list")
    content = path.read_bytes()
    is_json = content.lstrip()[:1] in (b"{", b"[")
    vocabulary = _from_json(content, path) if is_json else _from_pickle(content, path)
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not vocabulary:
        raise CheckpointError(f"vocabulary {path}: ids are not 0..{len(vocabulary) - 1}, each once")
    return vocabulary


def _from_json(content: bytes, path: Path) -> dict[str, int]:
    try:
        values = read_json(content)
    except ValueError as error:
        raise CheckpointError(f"vocabulary {path} is not valid JSON ({shown(error)})") from error
    if isinstance(values, list) and all(isinstance(word, str) for word in values):
        if len(set(values)) != len(values):
            raise CheckpointError(f"vocabulary {path} lists a word twice")
        values = {word: index for index, word in enumerate(values)}
    if isinstance(values, dict):
        values = next((values[name] for name in _TABLES if isinstance(values.get(name), dict)), values)
    return _checked(values, path)


def _from_pickle(content: bytes, path: Path) -> dict[str, int]:
    import io

    class Vocabulary:
        """Takes the place of the authors' class; made anew for each file, so that no file can alter it."""

    class OneClassUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _CLASSES:
                return Vocabulary
            raise CheckpointError(
                f"vocabulary {path} refers to {module[:80]}.{name[:80]}; expected the class Vocabulary or "
                "SimpleVocab alone. Nothing of it was executed"
            )

    try:
        check_pickle(io.BytesIO(content))
        found = OneClassUnpickler(io.BytesIO(content)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(
            f"vocabulary {path} is neither JSON nor a readable pickle ({shown(error)})"
        ) from error
    if type(found) is not Vocabulary:
        raise CheckpointError(
            f"vocabulary {path} holds a {type(found).__name__}; expected an object of class Vocabulary"
        )
    attributes = vars(found)
    return _checked(next((attributes[name] for name in _TABLES if name in attributes), None), path)


def _checked(values: Any, path: Path) -> dict[str, int]:
    if not isinstance(values, dict) or not all(
        type(word) is str and type(index) is int for word, index in values.items()
    ):
        raise CheckpointError(f"vocabulary {path} has no table of token ids by word")
    return values
