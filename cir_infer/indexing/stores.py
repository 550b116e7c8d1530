"""A folder of an object store as a source: what objects' names begin with, walked as a folder is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote

from cir_infer.errors import DatasetError
from cir_infer.indexing.formats import HEAD_BYTES, ending_of, object_looks_like_image
from cir_infer.indexing.items import Broken, Item, Territory, file_item
from cir_infer.indexing.source import Named
from cir_infer.indexing.walking import HIDDEN
from cir_infer.inputs.opening import why
from cir_infer.inputs.remote import NO_EMPTY_PARTS, Ahead, Entry, asked_ahead, below, listed

__all__ = ["StoreSource"]


Answer: TypeAlias = Callable[[], Any]
_ONE_ANSWER = 1000
"""Names that a store tells at once."""


class StoreSource(Named):
    """Every image below a folder of a store; ids are names relative to it, as they are, with slashes.

    It is listed folder by folder, the next few before they are come to where they are small, so no more names
    are held than those of a large folder; those that begin with a dot are left out.

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
        with Ahead() as ahead:
            walk = _Walk(ahead)
            first = self._listed(self._address, partial(listed, self._address))
            waiting = [(self._address, walk.through(self._address, first))]
            while waiting:
                folder, entries = waiting[-1]
                if (found := next(entries, None)) is None:
                    waiting.pop()
                    continue
                entry, answer = found
                address = below(folder, entry.name)
                if not entry.name:
                    reason = f"{address}//: a folder without a name; {NO_EMPTY_PARTS}"
                    # Not the folder itself: what else is in it can be seen, and be pruned.
                    yield Broken(f"{self._id(address)}//*", f"{address}//*", reason)
                elif _is_hidden(entry):
                    self._survey.leave_out(HIDDEN)
                elif not entry.folder:
                    yield from self._image(address, entry, answer)
                else:
                    try:
                        inside = self._listed(address, partial(walk.listed, address, answer))
                    except DatasetError as error:
                        self._survey.unseen.append(address)
                        yield Broken(self._id(address), address, str(error))
                        continue
                    waiting.append((address, walk.through(address, inside)))

    def _listed(self, address: str, take: Callable[[], list[Entry]]) -> list[Entry]:
        try:
            return take()
        except OSError as error:
            raise DatasetError(f"{address}: cannot be listed ({why(error)})") from error

    def _id(self, address: str) -> str:
        return unquote(address[len(self._address) + 1 :])

    def _image(self, address: str, entry: Entry, answer: Answer | None) -> Iterator[Item | Broken]:
        ending = ending_of(entry.name)
        if ending in self._suffixes or (answer is not None and object_looks_like_image(answer)):
            yield file_item(self._id(address), address, status=entry)
        else:
            self._survey.leave_out(ending or "without an ending")


class _Walk:
    """Asks what will be known of a folder's entries before they are come to.

    Of a folder that takes more than one answer this waits until it is come to, and so it does with those that
    follow: the names of one such folder are held at a time.
    """

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._few = True

    def through(self, folder: str, entries: list[Entry]) -> Iterator[tuple[Entry, Answer | None]]:
        """Entries, each with what was asked about it."""
        return asked_ahead(_popped(entries[::-1]), lambda entry: self._begun(folder, entry))

    def listed(self, address: str, answer: Answer | None) -> list[Entry]:
        """The entries of a folder that is come to, see `remote.listed`."""
        entries: list[Entry] | None = None if answer is None else answer()
        if entries is None:
            entries = listed(address)
        self._few = len(entries) <= _ONE_ANSWER
        return entries

    def _begun(self, folder: str, entry: Entry) -> Answer | None:
        if not entry.name or _is_hidden(entry):
            return None
        address = below(folder, entry.name)
        if entry.folder:
            return self._ahead.listed(address, _ONE_ANSWER) if self._few else None
        return None if ending_of(entry.name) else self._ahead.read(address, 0, HEAD_BYTES, HEAD_BYTES)


def _is_hidden(entry: Entry) -> bool:
    return entry.name.startswith(".")


def _popped(entries: list[Entry]) -> Iterator[Entry]:
    while entries:  # of millions those that were come to stand here no more
        yield entries.pop()
