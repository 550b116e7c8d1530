"""Folders as clip-retrieval lays them out: `img_emb/*.npy` and `metadata/*.parquet`.

A folder holds `img_emb/img_emb_0.npy`, `img_emb_1.npy`, ... and beside each
`metadata/metadata_0.parquet`, ..., a row of the one to a row of the other. Written ones have the
columns `id`, `image_path`, one for every field whose values are all of one plain type, and
`metadata`, JSON of what is left; and a file `cir-gallery.json`, written last, which says of which bundle the
rows are and what every other file holds (size and sha256). Read ones may have any columns: `id` names an
item, else `image_path`, else its number; all others become metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cir_infer.errors import GalleryError, shown
from cir_infer.extras import require
from cir_infer.foreign import opened_file, read_json, text_of, unique_names
from cir_infer.gallery.copies.exported import About, Part, Source, about, part_rows, read_about
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.inputs.arrays import mapped_array, save_array

__all__ = ["MANIFEST", "read_folder", "write_folder"]

MANIFEST = "cir-gallery.json"
_MANIFEST_BYTES = 64 << 20
_NUMBERED = re.compile(r".*?_?(\d{1,18})")
_RESERVED = ("id", "image_path", "metadata")
_BLOCK = 8 << 20


# ---- writing


def write_folder(snapshot: Snapshot, folder: Path, dtype: str) -> None:
    """Write the live items of a snapshot into a folder that does not exist yet.

    Args:
        snapshot: the items.
        folder: where.
        dtype: of the written rows.

    Raises:
        GalleryError: pyarrow is missing, or metadata does not fit into a table.
        OSError: the disk is full or fails.
    """
    parquet = import_parquet(folder)
    import pyarrow

    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    rows, shape = snapshot.live_rows(), snapshot.row_shape
    step = part_rows(shape)
    for number, start in enumerate(range(0, max(len(rows), 1), step)):
        part = rows[start : start + step]
        vectors = snapshot.rows.take(part).astype(dtype).reshape(len(part), *shape)
        with (folder / "img_emb" / f"img_emb_{number}.npy").open("wb") as file:
            save_array(file, vectors)
        columns: dict[str, list[Any]] = {"id": snapshot.ids(part), "image_path": snapshot.sources(part)}
        columns |= _columns(snapshot.metadata(part))
        try:
            table = pyarrow.table(
                {
                    name: pyarrow.array(values, _arrow_type(pyarrow, values))
                    for name, values in columns.items()
                }
            )
            with (folder / "metadata" / f"metadata_{number}.parquet").open("wb") as file:
                parquet.write_table(table, file)  # which takes no name that is not UTF-8
        except pyarrow.ArrowException as error:
            raise GalleryError(f"{folder}: metadata cannot be written as a table ({shown(error)})") from error
    manifest = about(snapshot, len(rows))
    manifest["files"] = {name: _digest(folder / name) for name in _contents(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")


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


def _contents(folder: Path) -> list[str]:
    """The names, below the folder, of the files that hold rows and metadata."""
    return sorted(
        f"{part}/{path.name}"
        for part, ending in (("img_emb", ".npy"), ("metadata", ".parquet"))
        if (folder / part).is_dir()
        for path in (folder / part).iterdir()
        if path.suffix == ending
    )


def _digest(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with opened_file(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


# ---- reading


def read_folder(folder: Path) -> Source:
    """A folder to be imported.

    Raises:
        GalleryError: it is no such folder, is damaged, or pyarrow is missing where it has tables.
    """
    arrays = _numbered(folder / "img_emb", ".npy")
    if not arrays:
        raise GalleryError(f"{folder}: expected rows in img_emb/*.npy, as clip-retrieval writes them")
    tables = _numbered(folder / "metadata", ".parquet")
    if tables and tables.keys() != arrays.keys():
        raise GalleryError(
            f"{folder}: the numbers of img_emb/*.npy and metadata/*.parquet differ; expected one of each"
        )
    stated = _manifest(folder)
    first = _array(next(iter(arrays.values())))
    return Source(folder, stated, first.shape[1:], _parts(arrays, tables))


def _manifest(folder: Path) -> About | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        found = read_json(text_of(path, "utf-8", _MANIFEST_BYTES), object_pairs_hook=unique_names)
        files = found["files"]
        if not isinstance(files, dict):
            raise TypeError("it lists no files")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise GalleryError(f"{path}: cannot be read ({shown(error)}); export the gallery again") from error
    stated = read_about(path, found)
    for name in sorted({*files, *_contents(folder)}):
        if name not in files:
            raise GalleryError(f"{folder}: {name} is no part of this export; move it out of the folder")
        if name not in _contents(folder):
            raise GalleryError(f"{folder}: {name} of this export is missing; export it again")
        if _digest(folder / name) != files[name]:
            raise GalleryError(f"{folder}: {name} is not what was exported; export it again")
    return stated


def _parts(arrays: Mapping[int, Path], tables: Mapping[int, Path]) -> Iterator[Part]:
    before = 0
    for number, path in arrays.items():
        vectors = _array(path)
        for start, rows in _table_parts(tables.get(number), len(vectors), part_rows(vectors.shape[1:])):
            yield _part(tables.get(number, path), vectors[start : start + len(rows)], rows, before + start)
        before += len(vectors)


def _array(path: Path) -> npt.NDArray[Any]:
    vectors = mapped_array(path)
    if vectors.ndim not in (2, 3):
        raise GalleryError(f"{path}: expected an array (N, D) or (N, M, D), a row for each item")
    return vectors


def _table_parts(path: Path | None, count: int, step: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    if path is None:
        for start in range(0, count, step):
            yield start, [{} for _ in range(min(step, count - start))]
        return
    parquet = import_parquet(path)
    try:
        with opened_file(path) as file:
            table = parquet.ParquetFile(file)
            if table.metadata.num_rows != count:
                raise ValueError(f"{table.metadata.num_rows:,} rows for {count:,} vectors")
            names = table.schema_arrow.names
            if len(set(names)) != len(names):
                raise ValueError("two columns of one name")
            start = 0
            for batch in table.iter_batches(batch_size=step):
                rows = batch.to_pylist()
                yield start, rows
                start += len(rows)
    except GalleryError:
        raise
    except Exception as error:
        raise GalleryError(f"{path}: cannot be read as the metadata of its rows ({shown(error)})") from error


def _part(path: Path, vectors: npt.NDArray[Any], rows: list[dict[str, Any]], first: int) -> Part:
    ids, metadata, sources = [], [], []
    for number, row in enumerate(rows, first):
        source = row.pop("image_path", None)
        item = _id(path, row.pop("id"), number) if "id" in row else None
        text = row.pop("metadata", None)
        entry = {key: value for key, value in row.items() if value is not None}
        if isinstance(text, str):
            try:
                inner = read_json(text, object_pairs_hook=unique_names)
            except ValueError:
                inner = text
            for key, value in (inner if isinstance(inner, dict) else {"metadata": inner}).items():
                if key in entry and entry[key] != value:
                    raise GalleryError(
                        f"{path}: row {number} has {shown(key, 60)} as a column and, with another value, in "
                        "its column metadata; remove one of them"
                    )
                entry[key] = value
        elif text is not None:
            entry["metadata"] = text
        ids.append(item or (source if isinstance(source, str) and source else str(number)))
        sources.append(source if isinstance(source, str) else None)
        metadata.append(entry or None)
    return Part(ids, vectors, metadata, sources)


def _id(path: Path, value: Any, number: int) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise GalleryError(
        f"{path}: the id of row {number} is {shown(value, 60)}; expected a text or a whole number in every "
        "row (a column of whole numbers with one missing becomes floats in pandas)"
    )


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """The files of a folder by the number in their names, ascending.

    Raises:
        GalleryError: a file has no number, or two have the same.
    """
    if not folder.is_dir():
        return {}
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix != suffix or path.name.startswith("."):
            continue
        match = _NUMBERED.fullmatch(path.stem)
        if match is None:
            raise GalleryError(f"{path}: expected a number at the end of its name; move it out of the folder")
        other = found.setdefault(int(match[1]), path)
        if other != path:
            raise GalleryError(f"{path}: has the same number as {other.name}; expected one of each")
    return dict(sorted(found.items()))


def import_parquet(path: Path) -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        GalleryError: it is missing.
    """
    require(f"{path}: parquet", "pyarrow", error=GalleryError)
    from pyarrow import parquet

    return parquet
