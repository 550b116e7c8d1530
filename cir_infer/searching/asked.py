"""One query among several: what was asked, looked at before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from cir_infer.engine import Engine
from cir_infer.errors import CirError, StaleHitError, UsageError, shown
from cir_infer.hits import Hit
from cir_infer.inputs.arguments import checked_list
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.preparing import PreparedImage
from cir_infer.inputs.taken import taken
from cir_infer.inputs.texts import ReadText, Text
from cir_infer.inputs.unknown_words import Together, said_together

if TYPE_CHECKING:
    from cir_infer.searching.found import Held, Source

__all__ = ["Asked", "Reference", "ask", "check_reference", "held_of", "paired", "read_text"]

Reference: TypeAlias = "ImageLike | PreparedImage | Hit | None"
"""An image, one that `Engine.prepare_image` made ready, a Hit to refine, or None for a system that reads only
the text."""


@dataclass
class Asked:
    """A query, as far as it has come.

    Attributes:
        number: its place among those asked together, from 0.
        reference: as it was passed.
        held: the item that a Hit is; None for an image.
        said: the text as it was passed.
        text: the tokens; None for a system that reads no text.
        error: why it cannot be answered; None where nothing has gone wrong.
    """

    number: int
    reference: Any
    held: Held | None = None
    said: Any = None
    text: ReadText | None = None
    error: CirError | None = None

    @property
    def own(self) -> str | None:
        """The id of a Hit; None for an image."""
        return self.reference.id if isinstance(self.reference, Hit) else None

    @property
    def is_image(self) -> bool:
        """Whether the reference is an image and no Hit."""
        return self.reference is not None and not isinstance(self.reference, Hit)


def ask(engine: Engine, source: Source, pairs: Sequence[tuple[Any, Any]], number: int = 0) -> list[Asked]:
    """Look at queries that are asked together; what is wrong with one is its `error`.

    Args:
        engine: that will encode them.
        source: that will answer.
        pairs: reference and text of each.
        number: the place of the first.
    """
    held = iter(held_of(source, [reference for reference, _ in pairs if isinstance(reference, Hit)]))
    found = []
    with said_together() as together:
        for at, (reference, text) in enumerate(pairs, number):
            asked = Asked(at, reference, said=text)
            own = next(held) if isinstance(reference, Hit) else None
            try:
                check_reference(engine, reference)
                if isinstance(own, CirError):
                    raise own
                asked.held = own
                asked.text = read_text(engine, text, together)
            except CirError as error:
                asked.error = error
            found.append(asked)
    return found


def held_of(source: Source, wanted: Sequence[Hit | str]) -> list[Held | CirError]:
    """The items that Hits are, or that have some ids; of each that is not there why.

    Of a Hit it is an error, too, if what has its id now is a picture from elsewhere.
    """
    if not wanted:
        return []
    held = source.held([one.id if isinstance(one, Hit) else one for one in wanted])
    return [_unchanged(one, found) for one, found in zip(wanted, held, strict=True)]


def _unchanged(wanted: Hit | str, held: Held | CirError) -> Held | CirError:
    if isinstance(held, CirError) or isinstance(wanted, str) or wanted.source is None:
        return held
    now = held.told().source
    if now == wanted.source:
        return held
    return StaleHitError(
        f"the hit {shown(wanted.id)} came from {shown(wanted.source)}, and what the gallery holds under "
        f"this id from {shown(now)}; it is of another gallery, or was replaced: ask again"
    )


def check_reference(engine: Engine, reference: Any) -> None:
    """Refuse a reference that the system cannot see, or none where it needs one.

    Raises:
        UsageError: it is such a one.
    """
    if not engine.needs_reference:
        return
    if reference is None:
        raise UsageError(
            f"the system {shown(engine.manifest.system)} needs a reference image for every query"
        )
    if isinstance(reference, Hit) and not engine.row_is_reference:
        raise UsageError(
            f"the system {shown(engine.manifest.system)} sees reference images with an encoder of its "
            f"own, so a Hit cannot be refined from its row; pass the image of {shown(reference.id)} instead"
        )


def read_text(engine: Engine, text: Any, together: Together | None = None) -> ReadText | None:
    """The tokens of a text; None for a system that reads none.

    Raises:
        TextError: it is empty, too long, or nothing in it can be read.
        UsageError: there is none, and the system needs one.
    """
    if not engine.needs_text:
        return None
    if text is None:
        raise UsageError(f"the system {shown(engine.manifest.system)} needs a text for every query")
    return engine.text_reader.read_one(text, together)


def paired(images: Any, texts: Any) -> Iterator[tuple[Reference, Text | None]]:
    """References and texts side by side.

    Raises:
        UsageError: one of them is no list, or the other is longer; at once where both have a length,
            else when one of them ends.
    """
    images, texts = checked_list("images", images, "image"), checked_list("texts", texts, "text")
    if isinstance(images, Hit):
        raise UsageError("images is one Hit; expected a list of images, [hit] for one")
    try:
        counts = len(images), len(texts)
    except TypeError:
        return _zipped(taken(images), taken(texts))
    if counts[0] != counts[1]:
        raise UsageError(
            f"{counts[0]:,} images and {counts[1]:,} texts; as many images as texts were expected"
        )
    return zip(taken(images), taken(texts), strict=True)


def _zipped(images: Iterable[Any], texts: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    pairs = zip(images, texts, strict=True)
    count = 0
    while True:
        try:
            found = list(islice(pairs, 1))
        except ValueError as error:
            if "zip()" not in str(error):
                raise
            raise UsageError(
                f"as many images as texts were expected; one of them ends after {count:,}"
            ) from error
        if not found:
            return
        count += 1
        yield found[0]
