"""Emoji in several styles: families of near emoji, each drawn in other styles every epoch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cir_eval.datasets.emoji.reader import EmojiDataset
from cir_eval.datasets.emoji.reader import Split as EmojiSplit
from cir_eval.protocols.emoji import part_name
from cir_export.training.configuration import DataSettings
from cir_export.training.sources.contract import (
    FixedTriplets,
    Measured,
    Source,
    TrainingSplit,
    Triplet,
    chosen_protocol,
)
from cir_infer.errors import TrainingError, shown

__all__ = ["open_emoji"]


def open_emoji(root: Path, settings: DataSettings) -> Source:
    """Targets and galleries in `data.view`, references in `data.reference_view`; every style where not set.

    Where both are every style, half of the families have reference and target in the same one.
    """
    dataset = EmojiDataset.open(root)
    chosen = [_styles(dataset, name) for name in (settings.view, settings.reference_view or settings.view)]
    pairs = [pair for gallery in chosen[0] for pair in _pairs(gallery, chosen[1])]
    protocol = chosen_protocol(settings)
    wanted = {part_name(*pair) for pair in pairs}
    validation, test = (
        Measured(split, tuple(part for part in protocol.load(root, split) if part.name in wanted))
        for split in ("validation", "test")
    )
    return Source(
        "emoji",
        _Styled(dataset.split("train"), list(dataset.styles), pairs),
        protocol,
        validation,
        test,
        view=settings.view,
        licence="pictures: " + ", ".join(f"{name} {dataset.styles[name]}" for name in dataset.styles),
    )


def _pairs(gallery: str, references: Sequence[str]) -> list[tuple[str, str]]:
    across = [(reference, gallery) for reference in references if reference != gallery]
    return [*across, *([(gallery, gallery)] * max(1, len(across)) if gallery in references else ())]


def _styles(dataset: EmojiDataset, name: str) -> list[str]:
    if name and name not in dataset.styles:
        raise TrainingError(
            f"{dataset.root} has the styles {', '.join(dataset.styles)}, not {shown(name)}; change "
            "data.view or build it with that style"
        )
    return [name] if name else list(dataset.styles)


class _Styled(TrainingSplit):
    """The training queries, whose families are drawn in a pair of styles that follows from the epoch.

    Args:
        split: the queries over all emoji of the split.
        styles: of the pictures.
        pairs: styles of references and targets, as often as they shall be drawn.
    """

    def __init__(self, split: EmojiSplit, styles: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
        self.images = [path for style in styles for path in split.images(style)]
        # A query without a family is one of its own.
        self.families = [-1 - i if q.family is None else q.family for i, q in enumerate(split.queries)]
        rows = split.rows
        self._queries = FixedTriplets(
            (), [Triplet(rows[q.reference], (q.text,), rows[q.target]) for q in split.queries]
        )
        self._first = {style: number * len(split.emoji) for number, style in enumerate(styles)}
        self._pairs = list(pairs)
        # Of pictures that look alike one stands for all, or a batch would hold one as a wrong answer.
        self._shown = {
            style: {rows[id_]: rows[group[0]] for id_, group in groups.items() if id_ in rows}
            for style, groups in split.alike.items()
        }

    def __len__(self) -> int:
        return len(self._queries)

    def triplet(self, query: int, draw: int) -> Triplet:
        """See `TrainingSplit.triplet`; the draw chooses the styles."""
        found = self._queries.triplet(query, draw)
        assert self.families is not None
        number = zlib.crc32(f"{self.families[query]} {draw}".encode())
        reference, gallery = self._pairs[number % len(self._pairs)]
        target = self._shown[gallery].get(found.target, found.target)
        return Triplet(self._first[reference] + found.reference, found.texts, self._first[gallery] + target)

    def texts(self) -> Iterator[str]:
        """See `TrainingSplit.texts`."""
        return self._queries.texts()
