"""What an export says of itself, and the parts in which rows are read: shared by all layouts.

An export of this package carries the fingerprint of the bundle that encoded its rows, so that it goes to no
gallery of another one. Rows of others carry none: whoever imports them has to say what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.rows.vectors import ROW_TYPES, row_shape, rows_at_once
from cir_infer.gallery.snapshot import Snapshot

__all__ = ["FORMAT", "About", "Part", "Source", "about", "empty_rows", "part_rows", "read_about"]

FORMAT = "cir-gallery-export"
_PART = 1 << 17
_VERSION = 2


class Part(NamedTuple):
    """Items to be added together.

    Attributes:
        ids: n texts.
        vectors: (n, D) numbers, or (n, M, D).
        metadata: n dictionaries or None.
        sources: n paths or None.
    """

    ids: Sequence[str]
    vectors: npt.NDArray[Any]
    metadata: Sequence[Mapping[str, Any] | None]
    sources: Sequence[str | None]


class About(NamedTuple):
    """What an export of this package says of itself.

    Attributes:
        fingerprint: of the bundle that encoded the rows, None where the gallery had none.
        dtype: how the gallery stored its rows: "float32", "float16" or "int8".
        dimension: D.
        items: how many.
        tokens_per_item: M.
    """

    fingerprint: str | None
    dtype: str
    dimension: int
    items: int
    tokens_per_item: int = 1


@dataclass
class Source:
    """Rows to be imported.

    Attributes:
        path: the file or folder.
        about: what it says of itself, None where it is no export of this package.
        shape: of a row, (D,) or (M, D).
        parts: the rows; reading them may raise `GalleryError`.
    """

    path: Path
    about: About | None
    shape: tuple[int, ...]
    parts: Iterator[Part]

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 2) or 0 in self.shape:
            raise GalleryError(
                f"{self.path}: its rows have shape {shown(self.shape, 60)}; expected (D,) or (M, D)"
            )
        if self.about is not None:
            said = row_shape(self.about.tokens_per_item, self.about.dimension)
            if said != self.shape:
                raise GalleryError(
                    f"{self.path}: its rows have shape {self.shape}, its export said {said}; export it again"
                )
        self.parts = self._checked(self.parts)

    def _checked(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The parts, each fit to be added to what the others hold."""
        seen: set[str] = set()
        count = 0
        for part in parts:
            for item, metadata, source in zip(part.ids, part.metadata, part.sources, strict=True):
                if not isinstance(item, str):
                    raise GalleryError(f"{self.path}: an id is {shown(item, 80)}; expected texts")
                if item in seen:
                    raise GalleryError(
                        f"{self.path}: id {shown(item, 80)} comes twice; ids name items, give each its own "
                        "(a column id, or other paths)"
                    )
                if not isinstance(metadata, (dict, type(None))) or not isinstance(source, (str, type(None))):
                    raise GalleryError(
                        f"{self.path}: id {shown(item, 80)} has metadata that are no object or a source that "
                        "is no text"
                    )
                seen.add(item)
            if part.vectors.shape[1:] != self.shape:
                raise GalleryError(
                    f"{self.path}: vectors have shape {shown(part.vectors.shape, 60)}, the first "
                    f"{self.shape} each; expected rows of one shape"
                )
            if part.vectors.dtype.kind not in "fiu":
                raise GalleryError(f"{self.path}: vectors are {part.vectors.dtype}; expected numbers")
            count += len(part.ids)
            yield part
        if self.about is not None and self.about.items != count:
            raise GalleryError(
                f"{self.path}: holds {count:,} items, its export said {self.about.items:,}; export it again"
            )

    @property
    def tokens_per_item(self) -> int:
        """M."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def dimension(self) -> int:
        """D."""
        return self.shape[-1]

    def fingerprint(self, wanted: str | None, unknown: bool) -> str | None:
        """The fingerprint of the gallery that is made of these rows.

        Args:
            wanted: what the caller says that they are.
            unknown: the caller says that nobody knows.

        Raises:
            GalleryError: the rows are of another bundle, or nobody says of which.
        """
        stated = None if self.about is None else self.about.fingerprint
        if wanted is not None:
            if stated not in (None, wanted):
                raise GalleryError(
                    f"{self.path}: its rows were encoded by bundle {stated}, not by {wanted}; import it for "
                    "that bundle, or encode the images anew with cir-index"
                )
            return wanted
        if self.about is None and not unknown:
            raise GalleryError(
                f"{self.path}: nothing says which bundle encoded its rows, and another bundle's rows answer "
                "nonsense; say it (an engine or a fingerprint; --bundle or --fingerprint), or that it is not "
                "known (unknown_fingerprint=True; --unknown-fingerprint)"
            )
        return stated


def about(snapshot: Snapshot, items: int) -> dict[str, Any]:
    """What an export writes of itself, as JSON values. Version 2 is that of items of several vectors."""
    tokens = snapshot.tokens_per_item
    return {
        "format": FORMAT,
        "version": 1 if tokens == 1 else _VERSION,
        "fingerprint": snapshot.fingerprint,
        "dtype": str(snapshot.rows.dtype),
        "dimension": snapshot.dimension,
        "items": items,
        **({} if tokens == 1 else {"tokens_per_item": tokens}),
    }


def read_about(path: Path, found: Mapping[str, Any]) -> About:
    """The inverse of `about`.

    Raises:
        GalleryError: it is damaged, or of a newer format.
    """
    version = found.get("version")
    if found.get("format") != FORMAT or not isinstance(version, int):
        raise GalleryError(f"{path}: what it says of itself is damaged; export it again")
    if not 1 <= version <= _VERSION:
        raise GalleryError(
            f"{path}: found export format {shown(version)}, this version reads 1 to {_VERSION}; "
            "upgrade cir-infer"
        )
    fingerprint, dtype = found.get("fingerprint"), found.get("dtype")
    numbers = [found.get(name) for name in ("dimension", "items")]
    numbers.append(found.get("tokens_per_item") if version > 1 else 1)
    if (
        not isinstance(fingerprint, (str, type(None)))
        or dtype not in ROW_TYPES
        or not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    ):
        raise GalleryError(f"{path}: what it says of itself is damaged; export it again")
    return About(fingerprint, str(dtype), *(int(number or 0) for number in numbers))


def part_rows(shape: tuple[int, ...]) -> int:
    """How many rows of a shape are read or written together."""
    return rows_at_once(shape, _PART)


def empty_rows(dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """No rows of a shape."""
    return np.empty((0, *shape), np.dtype(dtype))
