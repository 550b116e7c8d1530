"""Finding images by their content, so that moved files are followed without encoding them again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ImageError
from cir_infer.gallery import Gallery
from cir_infer.indexing.items import Item, Stamp, digest_of
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.threads import Threads

__all__ = ["Contents", "digests"]

_READERS = 4


class Contents:
    """What a gallery held at one moment, by the size and the digest of the images.

    Twenty-four bytes an item.
    """

    def __init__(self, gallery: Gallery) -> None:
        sizes, heads, held = array("Q"), array("Q"), array("q")
        for key, text in gallery.stamps():
            stamp = Stamp.parse(text)
            if stamp is not None and stamp.digest and stamp.size is not None:
                sizes.append(stamp.size)
                heads.append(int(stamp.digest[:16], 16))
                held.append(key)
        self._sizes = np.unique(np.array(sizes, np.uint64))
        order = np.argsort(np.array(heads, np.uint64), kind="stable")
        self._heads = np.array(heads, np.uint64)[order]
        self._keys = np.array(held, np.int64)[order]

    def may_hold(self, size: int | None) -> bool:
        """Whether an image of this size is held, so that it is worth looking at its content."""
        if size is None or not len(self._sizes):
            return False
        at = int(np.searchsorted(self._sizes, np.uint64(size)))
        return at < len(self._sizes) and int(self._sizes[at]) == size

    def keys(self, digest: str) -> list[int]:
        """The items that may have this digest; the gallery says for certain."""
        head = np.uint64(int(digest[:16], 16))
        first, last = np.searchsorted(self._heads, head, "left"), np.searchsorted(self._heads, head, "right")
        found: npt.NDArray[np.int64] = self._keys[first:last]
        return [int(key) for key in found[:64]]

    def are_elsewhere(self, keys: Sequence[int], met: npt.NDArray[np.bool_]) -> list[bool]:
        """Whether the content of each of these items is also that of an item that was met.

        Args:
            keys: of items.
            met: by key, whether an item was met.
        """
        there = np.unique(self._heads[met[self._keys]])
        mine = dict(zip(self._keys.tolist(), self._heads.tolist(), strict=True)) if len(there) else {}
        wanted = np.array([mine.get(key, 0) for key in keys], np.uint64)
        return [bool(found) and key in mine for key, found in zip(keys, np.isin(wanted, there), strict=True)]


def digests(items: Sequence[Item]) -> dict[str, str]:
    """The digests of images by the ids of their items; without those that cannot be read."""

    def one(item: Item) -> str | None:
        try:
            return digest_of(item.location.read())
        except ImageError:
            return None  # its decoder will say why

    if not items:
        return {}
    threads = Threads(min(_READERS, len(items), available_cpus()))
    tasks = [threads.submit(one, item) for item in items]
    threads.close()
    found = [task.result() for task in tasks]
    return {item.id: digest for item, digest in zip(items, found, strict=True) if digest is not None}
