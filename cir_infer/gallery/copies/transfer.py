"""Galleries from and to the layouts that people have: clip-retrieval folders and safetensors files.

A safetensors file holds `embeddings` (N, D), or (N, M, D) for M vectors an item, and as UTF-8 JSON in bytes
`ids` (a list of N texts), `metadata` (N objects) and `sources` (N texts or null). Read ones need only the
array. What `exported.about` says stands in the header of the file, as texts. For folders see
`clip_retrieval`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.foreign import no_file, read_json, text_of
from cir_infer.gallery.copies.clip_retrieval import MANIFEST, import_parquet, read_folder, write_folder
from cir_infer.gallery.copies.exported import (
    FORMAT,
    About,
    Part,
    Source,
    about,
    empty_rows,
    part_rows,
    read_about,
)
from cir_infer.gallery.disk import files
from cir_infer.gallery.disk.drafts import Made, drafted
from cir_infer.gallery.rows.tensors import Tensor, TensorInfo, read_about_of, read_header, view, write_tensors
from cir_infer.gallery.snapshot import Snapshot

__all__ = ["export_rows", "open_source"]

_OF_FILES = frozenset(
    (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".parquet", ".pq", ".npy", ".npz", ".pt", ".pth",
     ".bin", ".h5", ".hdf5", ".pkl", ".zip", ".tar", ".gz", ".db", ".sqlite", ".sqlite3", ".lance", ".faiss",
     ".index", ".xlsx", ".arrow", ".feather", ".cir")
)  # fmt: skip
"""Endings of files of other kinds, which an export is not."""

_TEXTS = ("ids", "metadata", "sources")


def export_rows(snapshot: Snapshot, target: Path, made: Made, overwrite: bool = False) -> None:
    """Write the live items of a snapshot: to a safetensors file if the name ends so, else to a folder.

    float32 and float16 rows stay what they are, int8 rows become float32. The target is there whole or
    not at all.

    Args:
        snapshot: the items.
        target: the file or folder.
        made: empty; says what is made here, for `tell_of`.
        overwrite: take the place of an earlier export. Nothing else is ever replaced.

    Raises:
        GalleryError: the target exists (and is no export, or `overwrite` is not set), the disk is full,
            or pyarrow is missing (for folders).
    """
    there = target.exists() or target.is_symlink()
    if there and overwrite and not _is_export(target):
        raise GalleryError(
            f"{target}: is no export of a gallery, so it is not overwritten; choose another path"
        )
    if there and not overwrite:
        raise GalleryError(
            f"{target}: already exists; choose another path, or pass "
            "overwrite=True (--overwrite) if an earlier export may be replaced"
        )
    as_file = target.suffix == ".safetensors"
    if not as_file and target.suffix.lower() in _OF_FILES:
        raise UsageError(
            f"{target}: an export is a .safetensors file, or a folder as clip-retrieval has it; give it such "
            "a name"
        )
    if not as_file:
        import_parquet(target)
    with drafted(target, made, replacing=there) as draft:
        if as_file:
            _write_safetensors(snapshot, draft)
        else:
            write_folder(snapshot, draft, _export_type(snapshot))
            files.sync_tree(draft)


def _export_type(snapshot: Snapshot) -> str:
    return "float32" if snapshot.rows.dtype == np.int8 else str(snapshot.rows.dtype)


def _is_export(target: Path) -> bool:
    if target.is_symlink():
        return False
    try:
        if target.is_dir():
            return bool(json.loads(text_of(target / MANIFEST, "utf-8")).get("format") == FORMAT)
        return read_about_of(files.map_file(target)).get("format") == FORMAT
    except (OSError, ValueError, AttributeError, RecursionError, GalleryError):
        return False


def open_source(source: Path) -> Source:
    """A safetensors file or a clip-retrieval folder, to be imported.

    Raises:
        GalleryError: neither, damaged, or pyarrow is missing (for folders with parquet).
    """
    if source.is_dir():
        return read_folder(source)
    if source.is_file() and source.suffix == ".safetensors":
        return _read_safetensors(source)
    found = "is another kind of file" if source.is_file() else no_file(source)
    raise GalleryError(
        f"{source} {found}; expected a .safetensors file, or a folder with img_emb/*.npy and "
        "metadata/*.parquet"
    )


def _write_safetensors(snapshot: Snapshot, path: Path) -> None:
    rows = snapshot.live_rows()
    dtype = _export_type(snapshot)
    texts = {
        "ids": json.dumps(snapshot.ids(rows), ensure_ascii=False),
        "metadata": json.dumps(snapshot.metadata(rows), ensure_ascii=False),
        "sources": json.dumps(snapshot.sources(rows), ensure_ascii=False),
    }
    shape = snapshot.row_shape
    step = part_rows(shape)
    blocks = (
        snapshot.rows.take(rows[start : start + step]).astype(dtype) for start in range(0, len(rows), step)
    )
    tensors = [Tensor("embeddings", dtype, (len(rows), *shape), blocks)]
    for name, text in texts.items():
        data = np.frombuffer(text.encode(), np.uint8)
        tensors.append(Tensor(name, "uint8", data.shape, [data]))
    said = about(snapshot, len(rows))
    # The header of such a file holds texts only.
    write_tensors(path, tensors, {name: _as_text(value) for name, value in said.items()})


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)


def _read_safetensors(path: Path) -> Source:
    mapped = files.map_file(path)
    try:
        found = read_header(mapped)
        said = read_about_of(mapped)
        matrices = {name: info for name, info in found.items() if len(info.shape) in (2, 3)}
        name = "embeddings" if "embeddings" in matrices else next(iter(matrices), "")
        if not name or (name != "embeddings" and len(matrices) > 1):
            names = shown(sorted(found)) if found else "none"
            raise ValueError(f"expected one matrix, or one named embeddings; found {names}")
        info = matrices[name]
        vectors = view(mapped, info) if info.shape[0] else empty_rows(str(info.dtype), info.shape[1:])
        texts = {key: _texts(mapped, found, key, len(vectors)) for key in _TEXTS if key in found}
    except (ValueError, RecursionError) as error:
        raise GalleryError(f"{path}: cannot be read as rows in safetensors ({shown(error)})") from error
    stated = _stated(path, said, info) if said.get("format") == FORMAT else None
    return Source(path, stated, info.shape[1:], _parts(vectors, texts))


def _stated(path: Path, said: Mapping[str, str], info: TensorInfo) -> About:
    if "version" not in said:  # as the first release wrote it
        return About(said.get("fingerprint") or None, "float16", info.shape[1], info.shape[0])
    numbers = {
        name: int(said[name]) if said.get(name, "").isdecimal() and len(said[name]) < 19 else None
        for name in ("version", "dimension", "items", "tokens_per_item")
    }
    return read_about(path, {**said, **numbers, "fingerprint": said.get("fingerprint") or None})


def _texts(mapped: Any, found: Mapping[str, TensorInfo], name: str, count: int) -> list[Any]:
    info = found[name]
    if info.dtype != np.uint8:
        raise ValueError(f"its {name} are {info.dtype}; expected JSON as bytes")
    value = read_json(view(mapped, info).tobytes())
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"its {name} are not {count}, one for each row")
    return value


def _parts(vectors: npt.NDArray[Any], texts: Mapping[str, list[Any]]) -> Iterator[Part]:
    count, step = len(vectors), part_rows(vectors.shape[1:])
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        length = part.stop - start
        yield Part(
            texts["ids"][part] if "ids" in texts else [str(number) for number in range(start, part.stop)],
            vectors[part],
            texts["metadata"][part] if "metadata" in texts else [None] * length,
            texts["sources"][part] if "sources" in texts else [None] * length,
        )
