"""What training needs of a data set: triplets to learn from, and galleries with queries to measure on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from cir_eval.pictures import Contents, contents_of_pictures
from cir_eval.protocols import protocol
from cir_eval.protocols.contract import Part, Protocol
from cir_export.training.configuration import DataSettings
from cir_infer.errors import DatasetError, TrainingError, shown
from cir_infer.inputs.images import ImageLike

__all__ = [
    "FixedTriplets",
    "Indexed",
    "Joined",
    "Measured",
    "Source",
    "TrainingSplit",
    "Triplet",
    "checked_rows",
    "chosen_protocol",
]


class Triplet(NamedTuple):
    """A query with its answer.

    Attributes:
        reference: row of the split's images.
        texts: one caption, or two that the tokeniser joins.
        target: row of the split's images.
    """

    reference: int
    texts: tuple[str, ...]
    target: int


class TrainingSplit(ABC):
    """Queries to learn from. One epoch sees each of them once.

    Attributes:
        images: all images, by row.
        families: queries of one family share a batch; None where each is one of its own.
    """

    images: Sequence[ImageLike]
    families: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many queries."""

    @abstractmethod
    def triplet(self, query: int, draw: int) -> Triplet:
        """A query of this split.

        Args:
            query: its number, from 0.
            draw: where a data set leaves the target or the text open, another number may draw another one;
                the same number always draws the same.
        """

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Every text that can occur, in a fixed order: the vocabulary."""

    def digest(self) -> str:
        """Sha256 over the triplets of the first draw, in hexadecimal."""
        found = hashlib.sha256(f"{len(self.images)} {len(self)}".encode())
        for query in range(len(self)):
            found.update(repr(tuple(self.triplet(query, 0))).encode())
        return found.hexdigest()


class FixedTriplets(TrainingSplit):
    """Triplets that are annotated, so that there is nothing to draw.

    They lie in plain arrays, 32 bytes a triplet of one caption beside its text, so that many fit into memory,
    and the processes that read them copy none.

    Args:
        images: see `TrainingSplit`; a reader that finds them with the triplets sets them afterwards.
        triplets: read once.
        families: see `TrainingSplit`.
        shuffle_captions: whether the draw turns the captions of a query around.
    """

    def __init__(
        self,
        images: Sequence[ImageLike],
        triplets: Iterable[Triplet],
        families: Sequence[int] | None = None,
        shuffle_captions: bool = False,
    ) -> None:
        self.images = images
        self.families = families
        self._shuffle = shuffle_captions
        self._references, self._targets = array("q"), array("q")
        self._captions = array("q", [0])  # where each query's captions begin, and where the last one's end
        self._letters = array("q", [0])  # the same of each caption
        text = bytearray()
        for triplet in triplets:
            self._references.append(triplet.reference)
            self._targets.append(triplet.target)
            for caption in triplet.texts:
                text += _bytes(caption)
                self._letters.append(len(text))
            self._captions.append(len(self._letters) - 1)
        self._text = bytes(text)

    def __len__(self) -> int:
        return len(self._references)

    def triplet(self, query: int, draw: int) -> Triplet:
        """See `TrainingSplit.triplet`; with `shuffle_captions` the draw turns the captions around."""
        texts = tuple(map(self._caption, range(self._captions[query], self._captions[query + 1])))
        found = Triplet(self._references[query], texts, self._targets[query])
        if self._shuffle and len(found.texts) == 2 and _odd(query, draw):
            return found._replace(texts=found.texts[::-1])
        return found

    def texts(self) -> Iterator[str]:
        """See `TrainingSplit.texts`."""
        yield from map(self._caption, range(len(self._letters) - 1))

    def _caption(self, number: int) -> str:
        return self._text[self._letters[number] : self._letters[number + 1]].decode()


class Joined(Sequence[ImageLike]):
    """Two sequences of images end to end; nothing is copied."""

    def __init__(self, first: Sequence[ImageLike], second: Sequence[ImageLike]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, row: int) -> ImageLike: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[ImageLike]: ...
    def __getitem__(self, row: int | slice) -> ImageLike | Sequence[ImageLike]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        return self._first[row] if row < len(self._first) else self._second[row - len(self._first)]


class Indexed:
    """Gives every image a row when it is first named."""

    def __init__(self) -> None:
        self.rows: dict[Hashable, int] = {}

    def __call__(self, name: Hashable) -> int:
        """The row of an image."""
        return self.rows.setdefault(name, len(self.rows))


class Measured(NamedTuple):
    """A split to measure on.

    Attributes:
        split: its name in the data set.
        parts: its galleries with their queries.
    """

    split: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Source:
    """A data set, opened for training.

    Attributes:
        name: e.g. "fashioniq"; goes into the model's provenance.
        train: what to learn from.
        protocol: how to measure.
        validation: chooses the best epoch; None keeps the last one.
        test: what the stored weights are measured on; None measures nothing.
        view: which of several pictures of the same the targets are, where there is a choice; else "".
        licence: of the pictures, where the data set states it; goes into the model's provenance.
    """

    name: str
    train: TrainingSplit
    protocol: Protocol
    validation: Measured | None
    test: Measured | None
    view: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not len(self.train):
            raise TrainingError(f"the training split of {self.name} has no queries; expected at least one")
        for measured in (self.validation, self.test):
            for part in measured.parts if measured is not None else ():
                for query in part.queries:
                    _bytes("".join(query.texts))
                if not part.queries or not part.answered:
                    raise TrainingError(
                        f"{self.name}, split {measured.split if measured else ''}, {part.name}: no queries "
                        "with published answers; expected some to measure on"
                    )

    @property
    def digest(self) -> str:
        """Sha256 over its name, its protocol, all queries and ids, in hexadecimal."""
        return hashlib.sha256(f"{self.name} {self.protocol.name} {self._digest()}".encode()).hexdigest()

    def contents(self) -> Contents:
        """Which pictures it has, of all its splits."""
        parts = [part for some in (self.validation, self.test) if some is not None for part in some.parts]
        seen = [part.reference_images for part in parts if part.reference_images is not None]
        return contents_of_pictures([self.train.images, *(part.images for part in parts), *seen])

    def _digest(self) -> str:
        found = hashlib.sha256(self.train.digest().encode())
        for measured in (self.validation, self.test):
            for part in measured.parts if measured is not None else ():
                found.update(repr(part.ids).encode())
                for query in part.queries:
                    found.update(repr((query.reference, query.texts, query.correct.tolist())).encode())
        return found.hexdigest()


def chosen_protocol(settings: DataSettings) -> Protocol:
    """The protocol that `data.protocol` names, or the data set's first one.

    Raises:
        TrainingError: it is another data set's.
    """
    name = settings.protocol or settings.dataset
    if name.split("/")[0] != settings.dataset:
        raise TrainingError(
            f"data.protocol: {shown(name)} is not of the data set {settings.dataset}; "
            "expected one of docs/datasets.md"
        )
    return protocol(name)


def checked_rows(triplets: Iterable[Triplet], images: int, where: str) -> None:
    """Refuse rows that do not exist.

    Raises:
        DatasetError: there is one.
    """
    for triplet in triplets:
        if not (0 <= triplet.reference < images and 0 <= triplet.target < images):
            raise DatasetError(f"{where} names an image that does not exist; download it again")


def _bytes(text: str) -> bytes:
    """A text in UTF-8, which has no half of a character: JSON has, and no tokenizer reads them.

    Raises:
        DatasetError: it holds one.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"a text holds half of a character, a lone surrogate: {shown(text)}; expected whole ones"
        ) from error


def _odd(query: int, draw: int) -> bool:
    return bool(hashlib.blake2b(f"{query} {draw}".encode(), digest_size=1).digest()[0] & 1)
