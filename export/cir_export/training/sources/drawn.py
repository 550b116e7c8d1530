"""Data sets that annotate images, not pairs: each epoch draws a target for every reference (TIRG).

Fashion200K: a reference is any image whose caption has siblings, captions that differ from it in one word.
The target is an image of a drawn sibling, the text "replace X with Y".
MIT-States: a reference is any photograph of a noun that occurs in several states. The target shows the noun
in another, drawn state; the text is that state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from cir_eval.datasets import fashion200k, mitstates
from cir_export.training.configuration import DataSettings
from cir_export.training.sources.contract import (
    Measured,
    Source,
    TrainingSplit,
    Triplet,
    chosen_protocol,
)
from cir_infer.inputs.images import ImageLike

__all__ = ["open_fashion200k", "open_mitstates"]


class _Drawn(TrainingSplit):
    """Images with labels: a reference of one label leads to an image of another that is open to it."""

    def __init__(
        self, images: Sequence[ImageLike], labels: Sequence[str], others: dict[str, list[str]]
    ) -> None:
        self.images = images
        self._labels = labels
        self._others = others
        self._rows: dict[str, list[int]] = {}
        for row, label in enumerate(labels):
            self._rows.setdefault(label, []).append(row)
        self._references = [row for row, label in enumerate(labels) if others.get(label)]

    def __len__(self) -> int:
        return len(self._references)

    def triplet(self, query: int, draw: int) -> Triplet:
        """See `TrainingSplit.triplet`."""
        dice = random.Random(f"{query} {draw}")
        reference = self._references[query]
        source = self._labels[reference]
        target = dice.choice(self._others[source])
        return Triplet(reference, (self._text(source, target),), dice.choice(self._rows[target]))

    def texts(self) -> Iterator[str]:
        """See `TrainingSplit.texts`."""
        for source, others in self._others.items():
            for target in others:
                yield self._text(source, target)

    def _text(self, source: str, target: str) -> str:
        return fashion200k.modification(source, target)


class _States(_Drawn):
    def _text(self, source: str, target: str) -> str:  # noqa: ARG002
        return target.split()[0]


def open_fashion200k(root: Path, settings: DataSettings) -> Source:
    """See the module's docstring; there is no validation split, so the last epoch is kept."""
    items = fashion200k.read_items(root, "train")
    captions = list(dict.fromkeys(item.caption for item in items))
    shortened: dict[str, list[str]] = {}
    for caption in captions:
        for short in _without_one_word(caption):
            shortened.setdefault(short, []).append(caption)
    others = {
        caption: sorted(
            {other for short in _without_one_word(caption) for other in shortened[short]} - {caption}
        )
        for caption in captions
    }
    images = [fashion200k.image_path(root, item) for item in items]
    train = _Drawn(images, [item.caption for item in items], others)
    return _with_test("fashion200k", root, settings, train)


def open_mitstates(root: Path, settings: DataSettings) -> Source:
    """See the module's docstring; there is no validation split, so the last epoch is kept."""
    photos = mitstates.read_photos(root, "train")
    labels = [f"{photo.adjective} {photo.noun}" for photo in photos]
    of_noun: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        of_noun.setdefault(label.split()[1], []).append(label)
    others = {
        label: [other for other in of_noun[label.split()[1]] if other != label]
        for label in dict.fromkeys(labels)
    }
    return _with_test("mitstates", root, settings, _States([photo.path for photo in photos], labels, others))


def _with_test(name: str, root: Path, settings: DataSettings, train: TrainingSplit) -> Source:
    protocol = chosen_protocol(settings)
    return Source(name, train, protocol, None, Measured("test", tuple(protocol.load(root, "test"))))


def _without_one_word(caption: str) -> set[str]:
    words = caption.split()
    return {" ".join(words[:place] + words[place + 1 :]) for place in range(len(words)) if len(words) > 1}
