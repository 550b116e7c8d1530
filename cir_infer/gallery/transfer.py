"""Galleries from and to the layouts that people have: clip-retrieval folders and safetensors files.

A clip-retrieval folder holds `img_emb/img_emb_0.npy`, `img_emb_1.npy`, ... and beside each
`metadata/metadata_0.parquet`, ..., a row of the one to a row of the other. Written ones have the
columns `id`, `image_path`, one for every field whose values are all of one plain type, and
`metadata`, JSON of what is left. Read ones may have any columns: `id` names an item, else
`image_path`, else its number; all others become metadata.

A safetensors file holds `embeddings` (N, D), and as UTF-8 JSON in bytes `ids` (a list of N texts),
`metadata` (N objects) and `sources` (N texts or null). Read ones need only a matrix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError
from cir_infer.gallery import files
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.gallery.store import drafted
from cir_infer.gallery.tensors import Tensor, read_header, view, write_tensors

__all__ = ["Part", "export_rows", "import_rows"]

PART = 1 << 17
_NUMBERED = re.compile(r".*?_?(\d+)")
_RESERVED = ("id", "image_path", "metadata")


class Part(NamedTuple):
    """Items to be added together.

    Attributes:
        ids: n texts.
        vectors: (n, D) numbers.
        metadata: n dictionaries or None.
        sources: n paths or None.
    """

    ids: Sequence[str]
    vectors: npt.NDArray[Any]
    metadata: Sequence[Mapping[str, Any] | None]
    sources: Sequence[str | None]


def export_rows(snapshot: Snapshot, target: Path) -> None:
    """Write the live items of a snapshot: to a safetensors file if the name ends so, else to a folder.

    float32 and float16 rows stay what they are, int8 rows become float32.

    Raises:
        GalleryError: the target exists, the disk is full, or pyarrow is missing (for folders).
    """
    if target.suffix == ".safetensors":
        with drafted(target) as draft:
            _write_safetensors(snapshot, draft)
    else:
        _pyarrow(target)
        with drafted(target) as draft:
            _write_folder(snapshot, draft)
            files.sync_tree(draft)


def import_rows(source: Path) -> Iterator[Part]:
    """Read a safetensors file or a clip-retrieval folder, in parts.

    Raises:
        GalleryError: neither, damaged, or pyarrow is missing (for folders with parquet).
    """
    if source.is_dir():
        yield from _read_folder(source)
    elif source.is_file() and source.suffix == ".safetensors":
        yield from _read_safetensors(source)
    else:
        raise GalleryError(
            f"{source}: expected a .safetensors file, or a folder with img_emb/*.npy and metadata/*.parquet"
        )


# ---- safetensors


def _write_safetensors(snapshot: Snapshot, path: Path) -> None:
    rows = snapshot.live_rows()
    dtype = _export_type(snapshot)
    texts = {
        "ids": json.dumps(snapshot.ids(rows), ensure_ascii=False),
        "metadata": json.dumps(snapshot.metadata(rows), ensure_ascii=False),
        "sources": json.dumps(snapshot.sources(rows), ensure_ascii=False),
    }
    blocks = (
        snapshot.rows.take(rows[start : start + PART]).astype(dtype) for start in range(0, len(rows), PART)
    )
    tensors = [Tensor("embeddings", dtype, (len(rows), snapshot.dimension), blocks)]
    for name, text in texts.items():
        data = np.frombuffer(text.encode(), np.uint8)
        tensors.append(Tensor(name, "uint8", data.shape, [data]))
    about = {"format": "cir-gallery-export", "fingerprint": snapshot.fingerprint or ""}
    write_tensors(path, tensors, about)


def _read_safetensors(path: Path) -> Iterator[Part]:
    mapped = files.map_file(path)
    try:
        found = read_header(mapped)
        matrices = {name: info for name, info in found.items() if len(info.shape) == 2}
        name = "embeddings" if "embeddings" in matrices else next(iter(matrices), "")
        if not name or (name != "embeddings" and len(matrices) > 1):
            raise ValueError(
                f"expected one matrix, or one named embeddings; found {', '.join(found) or 'none'}"
            )
        vectors = view(mapped, matrices[name])
        count = len(vectors)
        texts = {
            key: json.loads(view(mapped, found[key]).tobytes())
            for key in ("ids", "metadata", "sources")
            if key in found and found[key].dtype == np.uint8
        }
        if any(not isinstance(value, list) or len(value) != count for value in texts.values()):
            raise ValueError(f"its ids, metadata and sources are not {count} each")
    except (ValueError, RecursionError) as error:
        raise GalleryError(f"{path}: cannot be read as rows in safetensors ({error})") from error
    for start in range(0, count, PART):
        part = slice(start, min(start + PART, count))
        length = part.stop - start
        yield Part(
            texts["ids"][part] if "ids" in texts else [str(number) for number in range(start, part.stop)],
            vectors[part],
            texts["metadata"][part] if "metadata" in texts else [None] * length,
            texts["sources"][part] if "sources" in texts else [None] * length,
        )


# ---- clip-retrieval folders


def _write_folder(snapshot: Snapshot, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    dtype = _export_type(snapshot)
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    rows = snapshot.live_rows()
    for number, start in enumerate(range(0, max(len(rows), 1), PART)):
        part = rows[start : start + PART]
        vectors = snapshot.rows.take(part).astype(dtype).reshape(len(part), snapshot.dimension)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors)
        columns: dict[str, list[Any]] = {"id": snapshot.ids(part), "image_path": snapshot.sources(part)}
        columns |= _columns(snapshot.metadata(part))
        table = pyarrow.table(
            {name: pyarrow.array(values, _arrow_type(pyarrow, values)) for name, values in columns.items()}
        )
        parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


def _columns(metadata: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Fields of one plain type as columns, and the rest as JSON."""
    kinds: dict[str, set[type]] = {}
    for entry in metadata:
        for name, value in entry.items():
            kinds.setdefault(name, set()).add(type(value))
    plain = [
        name
        for name, types in kinds.items()
        if name not in _RESERVED and len(types) == 1 and types <= {str, int, float, bool}
    ]
    columns: dict[str, list[Any]] = {name: [entry.get(name) for entry in metadata] for name in plain}
    rest = [{name: value for name, value in entry.items() if name not in columns} for entry in metadata]
    if any(rest):
        columns["metadata"] = [json.dumps(entry, ensure_ascii=False) if entry else None for entry in rest]
    return columns


def _arrow_type(pyarrow: Any, values: Sequence[Any]) -> Any:
    kind = next((type(value) for value in values if value is not None), str)
    types = {bool: pyarrow.bool_, int: pyarrow.int64, float: pyarrow.float64, str: pyarrow.string}
    return types[kind]()


def _read_folder(folder: Path) -> Iterator[Part]:
    arrays = _numbered(folder / "img_emb", ".npy")
    if not arrays:
        raise GalleryError(f"{folder}: expected rows in img_emb/*.npy, as clip-retrieval writes them")
    tables = _numbered(folder / "metadata", ".parquet")
    if tables and tables.keys() != arrays.keys():
        raise GalleryError(
            f"{folder}: the numbers of img_emb/*.npy and metadata/*.parquet differ; expected one of each"
        )
    before = 0
    for number, path in arrays.items():
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise GalleryError(f"{path}: cannot be read as a .npy array ({error})") from error
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
            raise GalleryError(f"{path}: expected a matrix of one row for each item")
        for start, rows in _table_parts(tables.get(number), len(vectors)):
            yield _part(vectors[start : start + len(rows)], rows, before + start)
        before += len(vectors)


def _table_parts(path: Path | None, count: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    if path is None:
        for start in range(0, count, PART):
            yield start, [{} for _ in range(min(PART, count - start))]
        return
    parquet = _pyarrow(path)
    try:
        table = parquet.ParquetFile(path)
        if table.metadata.num_rows != count:
            raise ValueError(f"{table.metadata.num_rows} rows for {count} vectors")
        start = 0
        for batch in table.iter_batches(batch_size=PART):
            rows = batch.to_pylist()
            yield start, rows
            start += len(rows)
    except GalleryError:
        raise
    except Exception as error:
        raise GalleryError(f"{path}: cannot be read as the metadata of its rows ({error})") from error


def _part(vectors: npt.NDArray[Any], rows: list[dict[str, Any]], first: int) -> Part:
    ids, metadata, sources = [], [], []
    for number, row in enumerate(rows, first):
        source = row.pop("image_path", None)
        name = row.pop("id", None)
        text = row.pop("metadata", None)
        entry = {key: value for key, value in row.items() if value is not None}
        if isinstance(text, str):
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                inner = text
            entry |= inner if isinstance(inner, dict) else {"metadata": inner}
        ids.append(str(name if name is not None else source if source else number))
        sources.append(source if isinstance(source, str) else None)
        metadata.append(entry or None)
    return Part(ids, vectors, metadata, sources)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """The files of a folder by the number in their names, ascending."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in folder.iterdir():
        match = _NUMBERED.fullmatch(path.stem)
        if path.suffix == suffix and match and len(match[1]) < 19:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _export_type(snapshot: Snapshot) -> str:
    return "float32" if snapshot.rows.dtype == np.int8 else str(snapshot.rows.dtype)


def _pyarrow(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise GalleryError(f"{path}: parquet needs pyarrow; pip install 'cir-infer[parquet]'") from None
    return parquet
