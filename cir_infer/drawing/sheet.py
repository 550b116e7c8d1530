"""A contact sheet: the reference, the text and the ranked hits with their scores, as one picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from cir_infer.console.figures import decimals
from cir_infer.drawing.page import (
    CARD,
    COLUMNS,
    GAP,
    GUTTER,
    LABEL,
    MARGIN,
    MAX_HITS,
    NUMBER,
    PANEL,
    RIGHT,
    RULE,
    SMALL,
    TITLE,
    Page,
    colour_of,
    initials,
    notes_on,
    quoted,
    shortened,
    wrapped,
)
from cir_infer.errors import UsageError, shown
from cir_infer.hits import Hit, Hits, weighted
from cir_infer.inputs.arguments import checked_flag, checked_list

if TYPE_CHECKING:
    from PIL import Image

    from cir_infer.inputs.texts import Text
    from cir_infer.searcher import Reference

__all__ = ["contact_sheet"]


def contact_sheet(
    reference: Reference,
    text: Text | None,
    hits: Hits,
    correct: Collection[str] = (),
    explain: bool = False,
) -> Image.Image:
    """Draw the answer to a query.

    Args:
        reference: the query's image or Hit.
        text: the query's text.
        hits: the answer; their images are read from `Hit.source`, a card without a readable image
            says so. The first 100 are drawn.
        correct: ids of right answers, where they are known; they get a green frame.
        explain: show what made each term, over each hit's picture and the reference's, and what each word
            is worth (docs/explanations.md); the hits must be a Searcher's.

    Returns:
        An RGB image at twice its layout size, 144 dpi when saved as `image.save(path, dpi=(144, 144))`.

    Raises:
        UsageError: an argument is not what is said above.
        CirError: with `explain`, the query cannot be explained, see `Hits.explain`; a hit that alone cannot
            be is drawn without its maps and says so.
    """
    hits, correct = _checked(text, hits, correct)
    hits = hits[:MAX_HITS]
    if checked_flag("explain", explain) and hits:
        from cir_infer.drawing.explained import explained_sheet

        return explained_sheet(reference, text, hits, correct)
    columns = max(1, min(COLUMNS, len(hits)))
    names = list(hits[0].terms) if hits else []
    card_height = CARD + 34 + 15 * len(names)
    rows = -(-len(hits) // columns)
    width = 2 * MARGIN + PANEL + GUTTER + columns * (CARD + GAP) - GAP
    lines = wrapped(quoted(text), TITLE, PANEL)
    notes = [line for note in notes_on(hits) for line in wrapped(note, SMALL, PANEL)]
    panel_height = 22 + PANEL + 30 + 22 + len(lines) * 30 + len(notes) * 16 + 24 + 18 * len(names)
    height = 2 * MARGIN + max(panel_height, 22 + rows * (card_height + GAP) - GAP)
    page = Page(width, height)

    left, top = MARGIN, MARGIN
    page.label("Reference", left, top)
    page.picture(reference, left, top + 22, PANEL)
    below = top + 22 + PANEL + 30
    page.label("Text", left, below)
    for number, line in enumerate(lines):
        page.text(line, left, below + 20 + number * 30, TITLE)
    below += len(lines) * 30
    for number, line in enumerate(notes):
        page.text(line, left, below + 26 + number * 16, SMALL)
    below += len(notes) * 16
    for number, name in enumerate(names if len(names) > 1 else ()):
        y = below + 22 + 24 + number * 18
        page.bar(left, y + 3, 14, 8, colour_of(number))
        factor = weighted(hits.balance.get(name))
        page.text(f"{initials(name)}  {name.replace('_', ' ')}{factor}", left + 22, y, SMALL)

    left += PANEL + GUTTER
    page.label(("No hit", "Best match", f"{len(hits):,} best matches")[min(len(hits), 2)], left, top)
    reach = max((abs(value) for hit in hits for value in hit.terms.values()), default=1.0) or 1.0
    for number, hit in enumerate(hits):
        x = left + number % columns * (CARD + GAP)
        y = top + 22 + number // columns * (card_height + GAP)
        page.picture(hit, x, y, CARD, RIGHT if hit.id in correct else None)
        _caption(page, hit, x, y + CARD + 9, reach)
    return page.image


def _checked(text: Any, hits: Any, correct: Any) -> tuple[Hits, frozenset[str]]:
    """Hits and ids that can be drawn; raises `UsageError` for anything else."""
    captions = [] if text is None else [text] if isinstance(text, str) else text
    if not isinstance(captions, (list, tuple)) or not all(isinstance(one, str) for one in captions):
        raise UsageError(f"text is {shown(text)}; expected a text, a list of captions, or None")
    if not isinstance(hits, Hits):
        hits = Hits(checked_list("hits", hits, "Hit"))
    for hit in hits:
        if not isinstance(hit, Hit) or not isinstance(hit.id, str):
            raise UsageError(f"hits holds {shown(hit)}; expected the hits of an answer")
    if isinstance(correct, str):
        raise UsageError(f"correct is one id ({shown(correct)}); expected a list of ids")
    ids = list(checked_list("correct", correct, "id"))
    return hits, frozenset(item for item in ids if isinstance(item, str))


def _caption(page: Page, hit: Hit, x: int, y: int, reach: float) -> None:
    rank = f"{hit.rank}"
    page.text(rank, x, y, NUMBER)
    score = decimals(hit.score, 3)
    page.text(score, x + CARD - page.width_of(score, NUMBER), y, NUMBER)
    start = x + page.width_of(rank, NUMBER) + 8
    space = x + CARD - page.width_of(score, NUMBER) - 10 - start
    page.text(shortened(hit.id, SMALL, space), start, y + 3, SMALL)
    several = len(hit.terms) > 1
    start, room = (24, CARD - 24 - 40) if several else (0, CARD)
    for number, (name, value) in enumerate(hit.terms.items()):
        line = y + 25 + number * 15
        if several:
            shown = decimals(value, 3)
            page.text(initials(name), x, line - 1, LABEL)
            page.text(shown, x + CARD - page.width_of(shown, LABEL), line - 1, LABEL)
        page.bar(x + start, line + 4, room, 4, RULE)
        page.bar(x + start, line + 4, round(room * max(0.0, value) / reach), 4, colour_of(number))
