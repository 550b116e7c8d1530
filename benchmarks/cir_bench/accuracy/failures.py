"""Where a bundle fails, as pictures: one page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cir_bench.report.page import COLOURS
from cir_eval.evaluation import Evaluated
from cir_infer.console.figures import decimals
from cir_infer.errors import ImageError
from cir_infer.inputs.images import ImageLike, as_encoded, load_image

__all__ = ["failures_page"]

_SIDE = 132
_SHOWN = 5

_STYLE = (
    COLOURS
    + """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem}
body{color:var(--ink);background:var(--ground)}
h1{font-size:1.4rem;margin:0 0 .2rem}p.lead{color:var(--soft);margin:0 0 1.5rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1rem 1.1rem;margin:0 0 1rem}
section h2{font-size:1rem;font-weight:600;margin:0 0 .7rem}
section h2 small{font-weight:400;color:var(--soft);margin-left:.6rem}
.row{display:flex;flex-wrap:wrap;gap:.7rem;align-items:flex-start}
figure{margin:0;width:132px}
figure img,figure .none{width:132px;height:132px;object-fit:contain;background:var(--line);
border-radius:6px;border:3px solid var(--line);box-sizing:border-box}
figure.right img{border-color:var(--a)}figure.wanted img{border-color:var(--b)}
figcaption{font-size:.78rem;color:var(--soft);margin-top:.25rem;overflow-wrap:anywhere}
.gap{width:1px;background:var(--line);align-self:stretch;margin:0 .2rem}
@media(max-width:40rem){.gap{width:100%;height:1px}}
.none{display:flex;align-items:center;justify-content:center;font-size:.75rem;color:var(--soft)}
"""
)


class _Failure(NamedTuple):
    evaluated: Evaluated
    query: int
    rank: int


def failures_page(evaluated: Sequence[Evaluated], title: str, count: int = 24) -> str:
    """The queries whose answer came last, as an HTML page with the pictures inside.

    Args:
        evaluated: parts with outcomes.
        title: heads the page.
        count: how many queries to show; they are taken evenly from all that failed at rank 1, the
            worst first.
    """
    failed = [
        _Failure(part, number, outcome.rank if outcome.rank is not None else len(part.part.ids) + 1)
        for part in evaluated
        for number, outcome in enumerate(part.outcomes)
        if outcome.rank != 1
    ]
    failed.sort(key=lambda failure: -failure.rank)
    step = max(1, len(failed) // max(1, count))
    total = sum(len(part.outcomes) for part in evaluated)
    sections = "".join(_section(failure) for failure in failed[::step][:count])
    lead = (
        f"{len(failed):,} of {total:,} queries do not have a correct image first; shown are "
        f"{len(failed[::step][:count])} of them, worst first. Blue: the answer. Green: correct."
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>{sections}</html>\n"
    )


def _section(failure: _Failure) -> str:
    part, query = failure.evaluated.part, failure.evaluated.part.queries[failure.query]
    correct = set(query.correct.tolist())
    ranking = failure.evaluated.rankings[failure.query]
    scores = failure.evaluated.scores[failure.query]
    shown = [(row, score) for row, score in zip(ranking.tolist(), scores.tolist(), strict=True) if row >= 0]
    figures = [
        _figure(part.images[query.reference], "reference", ""),
        _figure(part.images[int(query.correct[0])], f"the answer, rank {failure.rank}", "wanted"),
        "<span class='gap'></span>",
    ]
    figures += [
        _figure(
            part.images[row],
            f"{place}. {decimals(score, 3)} {part.ids[row]}",
            "right" if row in correct else "",
        )
        for place, (row, score) in enumerate(shown[:_SHOWN], start=1)
    ]
    text = html.escape(" / ".join(query.texts))
    where = html.escape(f"{part.name}, query {query.key}")
    return (
        f"<section><h2>“{text}”<small>{where}</small></h2><div class='row'>{''.join(figures)}</div></section>"
    )


def _figure(image: ImageLike, caption: str, kind: str) -> str:
    picture = _thumbnail(image)
    shown = f"<img alt='' src='{picture}'>" if picture else "<div class='none'>no picture</div>"
    return f"<figure class='{kind}'>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _thumbnail(image: ImageLike) -> str | None:
    """A small JPEG as a data URI; None for features and for images that cannot be read any more."""
    if isinstance(image, np.ndarray) and image.ndim != 3:
        return None
    try:
        picture = as_encoded(load_image(image))
    except ImageError:
        return None
    picture.thumbnail((2 * _SIDE, 2 * _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
