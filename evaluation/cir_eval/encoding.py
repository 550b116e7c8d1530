"""Embeddings of a protocol's images, kept on the disk as they come, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cir_eval.pictures import digest_of_pictures
from cir_infer.console.progress import progress_bar
from cir_infer.inputs.arrays import save_array
from cir_infer.inputs.images import ImageLike

__all__ = ["encode_resumably"]

_CHUNK = 256
Floats = npt.NDArray[np.float32]


def encode_resumably(
    folder: Path | None,
    name: str,
    images: Sequence[ImageLike],
    ids: Sequence[str],
    fingerprint: str,
    encode: Callable[[Sequence[ImageLike]], Floats],
) -> Floats:
    """Embeddings of images, chunk by chunk.

    Args:
        folder: where finished chunks are kept; None keeps nothing.
        name: of the files, e.g. "dress.rows".
        images: what to encode.
        ids: their names, in order.
        fingerprint: what the embeddings depend on besides the images; with another fingerprint, other
            names or other pictures everything is encoded anew.
        encode: float32 (n, ...) of a chunk.

    Returns:
        float32 (N, ...).
    """
    key = ""
    if folder is not None:
        # Names are not enough: views of a data set, and data sets of one kind, share them.
        whole = json.dumps([fingerprint, list(ids), digest_of_pictures(images)])
        key = hashlib.sha256(whole.encode()).hexdigest()[:16]
    starts = range(0, len(images), _CHUNK)
    chunks = []
    for start in progress_bar(starts, len(images), name, "image", step=_CHUNK):
        part = images[start : start + _CHUNK]
        path = None if folder is None else folder / f"{name}.{key}.{start}.npy"
        found = None if path is None else _read(path, len(part))
        if found is None:
            found = encode(part)
            if path is not None:
                _write(path, found)
        chunks.append(found)
    return np.concatenate(chunks)


def _read(path: Path, count: int) -> Floats | None:
    """A finished chunk, or None where there is none or it was cut short."""
    try:
        chunk = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return chunk if chunk.dtype == np.float32 and len(chunk) == count else None


def _write(path: Path, chunk: Floats) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        save_array(file, chunk)
    draft.replace(path)
