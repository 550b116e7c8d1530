"""A folder of an object store as a source: what objects' names begin with, walked as a folder is."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

from cir_infer.errors import DatasetError
from cir_infer.indexing.formats import ending_of, file_looks_like_image
from cir_infer.indexing.items import Broken, Item, Survey, Territory, file_item
from cir_infer.indexing.source import Named
from cir_infer.indexing.walking import HIDDEN
from cir_infer.inputs.opening import why
from cir_infer.inputs.remote import NO_EMPTY_PARTS, Entry, below, listed

__all__ = ["StoreSource"]


class StoreSource(Named):
    """Every image below a folder of a store; ids are names relative to it, as they are, with slashes.

    It is listed folder by folder, so the names of one folder are held at a time; those that begin with a dot
    are left out.

    Args:
        address: of the folder, see `checked_address`.
        suffixes: of what is an image.
    """

    def __init__(self, address: str, suffixes: frozenset[str]) -> None:
        self._address, self._suffixes = address, suffixes
        super().__init__(address)

    @property
    def territory(self) -> Territory | None:
        """Items below the folder whose id is the rest of their address."""
        return Territory((f"{self._address}/",), lambda item, origin: origin == below(self._address, item))

    def count(self) -> int | None:
        """Not known without listing everything once more."""
        return None

    def items(self) -> Iterator[Item | Broken]:
        """The images, folder by folder, in the order of their names.

        Raises:
            DatasetError: the folder itself cannot be listed.
        """
        self._survey.clear()
        waiting = [(self._address, self._listed(self._address))]  # folders with what is left of them
        while waiting:
            folder, entries = waiting[-1]
            if not entries:
                waiting.pop()
                continue
            entry = entries.pop()
            address = below(folder, entry.name)
            if not entry.name:
                reason = f"{address}//: a folder without a name; {NO_EMPTY_PARTS}"
                # Not the folder itself: what else is in it can be seen, and be pruned.
                yield Broken(f"{self._id(address)}//*", f"{address}//*", reason)
            elif entry.name.startswith("."):
                self._survey.leave_out(HIDDEN)
            elif not entry.folder:
                yield from self._image(address, entry, self._survey)
            else:
                try:
                    inside = self._listed(address)
                except DatasetError as error:
                    self._survey.unseen.append(address)
                    yield Broken(self._id(address), address, str(error))
                    continue
                waiting.append((address, inside))

    def _listed(self, address: str) -> list[Entry]:
        """Its entries, the last one first."""
        try:
            return listed(address)[::-1]
        except OSError as error:
            raise DatasetError(f"{address}: cannot be listed ({why(error)})") from error

    def _id(self, address: str) -> str:
        return unquote(address[len(self._address) + 1 :])

    def _image(self, address: str, entry: Entry, survey: Survey) -> Iterator[Item | Broken]:
        ending = ending_of(entry.name)
        if ending in self._suffixes or (not ending and file_looks_like_image(address)):
            yield file_item(self._id(address), address, status=entry)
        else:
            survey.leave_out(ending or "without an ending")
