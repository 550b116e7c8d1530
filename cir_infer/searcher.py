"""A searcher: an engine plus a gallery. Reference image and text in, ranked hits out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from cir_infer.bundle import Bundle
from cir_infer.bundle.orientation import orientation_of_rows
from cir_infer.engine import Engine
from cir_infer.errors import CirError, DeviceError, UsageError, shown
from cir_infer.gallery import Gallery, Snapshot
from cir_infer.gallery.filters.filters import Where
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.arguments import checked_count, checked_flag, checked_word
from cir_infer.inputs.texts import Text
from cir_infer.processes.ending import native_call
from cir_infer.processes.users import Users
from cir_infer.runtime.chains import Chains
from cir_infer.runtime.device_names import ON_GPU
from cir_infer.runtime.encoding import OnError
from cir_infer.scoring import make_scorer
from cir_infer.scoring.balance import Balance, checked_balance
from cir_infer.scoring.contract import Rows, Scorer
from cir_infer.searching.answering import Answering, Wish, numbered, raised
from cir_infer.searching.asked import Reference, paired
from cir_infer.searching.exclusion import checked_ids, without
from cir_infer.searching.found import OneGallery
from cir_infer.vector_searcher import VectorSearcher

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cir_infer.explaining.explainer import Explainer
    from cir_infer.explaining.explanation import Explains, Explanation
    from cir_infer.inputs.images import ImageLike

__all__ = ["Queries", "Reference", "Searcher"]

_log = logging.getLogger(__name__)


class Queries:
    """The ways to ask composed queries, over one gallery or over many."""

    engine: Engine
    _users: Users

    def _answering(
        self, k: Any, where: Any, exclude: Any, leave_reference_out: Any, balance: Any
    ) -> Answering:
        """What answers queries that want this; the arguments are looked at here."""
        raise NotImplementedError

    def _explainer(self, reference: Any, text: Any, balance: Balance) -> Explainer:
        """What explains the hits of a query."""
        raise NotImplementedError

    def query(
        self,
        image: Reference,
        text: Text | None,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        exclude_reference: bool = False,
        balance: Balance | None = None,
    ) -> Hits:
        """The k items that best match a reference image changed as a text says.

        Args:
            image: see `Reference`. A Hit is refined: its gallery row is the reference embedding, no
                image is encoded, and the Hit itself is not among the answers.
            text: the modification, or a list of captions; None for a system that reads no text. Words
                that the model does not know are named in `Hits.unknown_words`.
            k: how many hits; fewer come back where fewer items qualify.
            where: a filter on metadata, see docs/gallery.md. One that leaves nothing gives no hits.
            exclude: ids that must not be answered; unknown ids are ignored.
            exclude_reference: leave out items that show the reference image itself (by their row or
                their file), which otherwise often come first. `Hits.reference_id` names one either way.
            balance: more of one term, less of another: factors by name, {"implicit_similarity": 1.5} for
                instance, that multiply terms before they are added; 0 leaves a term out, and a negative
                factor asks for its opposite. The hits' terms are the weighted ones, and `Hits.balance`
                says so. None changes nothing.

        Raises:
            ImageError: the image cannot be read.
            TextError: the text is empty, too long, or nothing in it can be read.
            GalleryError: the gallery is empty, or a Hit is no longer in it or of another gallery.
            UsageError: an argument is not what is said above, or the searcher is closed.
            DeviceError: the device failed, or does not survive the fork that made this process.
        """
        return self._users.run(self._answer, (image, text), k, where, exclude, exclude_reference, balance)

    def _answer(self, pair: tuple[Reference, Text | None], *wished: Any) -> Hits:
        return next(raised(self._answering(*wished).answers(iter([pair]), 1)))

    async def aquery(
        self,
        image: Reference,
        text: Text | None,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        exclude_reference: bool = False,
        balance: Balance | None = None,
    ) -> Hits:
        """`query` in a thread of the event loop's executor, so that the loop goes on meanwhile.

        A query that is cancelled is still computed in its thread, and its answer is dropped.

        Raises:
            CirError: see `query`.
        """
        import asyncio  # which takes ssl with it: 20 ms that few need

        return await asyncio.to_thread(self.query, image, text, k, where, exclude, exclude_reference, balance)

    @overload
    def query_batch(
        self,
        images: Iterable[Reference],
        texts: Iterable[Text | None],
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        batch_size: int = 32,
        exclude_reference: bool = False,
        errors: Literal["raise"] = "raise",
        balance: Balance | None = None,
    ) -> Iterator[Hits]: ...

    @overload
    def query_batch(
        self,
        images: Iterable[Reference],
        texts: Iterable[Text | None],
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        batch_size: int = 32,
        exclude_reference: bool = False,
        *,
        errors: Literal["return"],
        balance: Balance | None = None,
    ) -> Iterator[Hits | CirError]: ...

    def query_batch(
        self,
        images: Iterable[Reference],
        texts: Iterable[Text | None],
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        batch_size: int = 32,
        exclude_reference: bool = False,
        errors: OnError = "raise",
        balance: Balance | None = None,
    ) -> Iterator[Hits] | Iterator[Hits | CirError]:
        """The answers to many queries, in order, all over the gallery as it is now.

        Args:
            images: one reference a query, see `query`.
            texts: one text a query.
            k: how many hits for each.
            where: a filter on metadata for all of them.
            exclude: ids that no query may answer.
            batch_size: queries encoded and scored together.
            exclude_reference: see `query`; of each its own.
            errors: "raise" the error of a query that cannot be answered when its turn comes, which ends
                the answers; "return" it in place of its `Hits` and go on. What concerns all queries, a
                device that fails for instance, is always raised.
            balance: see `query`; the same for all of them.

        Yields:
            `Hits`, one for each query; with errors="return" a `CirError` where there are none.

        Raises:
            UsageError: as many images as texts were expected; and as `query`. Messages about one query
                begin with its number, from 0.
        """
        returned = checked_word("errors", errors, ("raise", "return")) == "return"
        size = checked_count("batch_size", batch_size)
        pairs = paired(images, texts)
        answering = self._users.run(self._answering, k, where, exclude, exclude_reference, balance)
        answers = self._users.each(numbered(answering.answers(pairs, size)))
        return answers if returned else raised(answers)

    def explain(
        self,
        hit: Hit | str,
        reference: Reference,
        text: Text | None,
        balance: Balance | None = None,
        image: ImageLike | None = None,
        progress: bool = False,
        as_found: bool = False,
    ) -> Explanation:
        """Why an item has its score in the answer to a query: which parts of both images and which words.

        Of one answer's hits `Hits.explain` and `Hits.explain_all` say the same for less work. See
        docs/explanations.md.

        Args:
            hit: the item, or its id; it need not be among the best.
            reference: see `query`.
            text: see `query`.
            balance: see `query`.
            image: the item's picture, where the gallery's `source` cannot be read.
            progress: show a bar where pictures are painted over.
            as_found: the Hit was found by this very query; it and the reference must be what they were then.

        Raises:
            GalleryError: there is no such item (any more), or a Hit is of another gallery.
            StaleHitError: a Hit's item was replaced by a picture from elsewhere; with `as_found` also where
                its terms are others by now.
            ImageError: a picture cannot be read, or is no longer the one that was indexed.
            UsageError: the bundle reads features and no pictures; and as `query`.
            CirError: see `query`.
        """
        if not isinstance(hit, (Hit, str)):
            raise UsageError(f"hit is {shown(hit)}; expected a Hit or the id of an item")
        factors = checked_balance(balance, self.engine.manifest.terms)
        found_so = checked_flag("as_found", as_found)
        (found,) = self._explains(reference, text, factors).explain([(hit, image)], found_so, progress)
        if isinstance(found, CirError):
            raise found
        return found

    def _explains(self, reference: Any, text: Any, balance: Balance) -> Explains:
        """What explains the hits of a query, and uses the searcher meanwhile."""
        return _Explains(self._users, self._explainer(reference, text, balance))


class _Explains:
    def __init__(self, users: Users, explainer: Explainer) -> None:
        self._users, self._explainer = users, explainer

    def explain(self, *asked: Any) -> list[Explanation | CirError]:
        return self._users.run(self._explainer.explain, *asked)


class Searcher(Queries, VectorSearcher):
    """Answers queries over a gallery. Threads may share one, and a forked child may use it on the CPU.

    Vectors of the bundle's image encoder can be asked as well, see `VectorSearcher.search_vectors`.

    Close it, or use it in a `with` block, to give its memory back at once; what it opened itself is closed
    too. A copy, or what comes out of pickle, is another searcher, opened by the paths of both.

    Args:
        bundle: a bundle's path, a `Bundle`, or an `Engine` to share.
        gallery: a gallery or its path; by default the bundle's own, its path with the ending
            ".gallery".
        device: where the graphs run, see `Engine`; not together with an `Engine`.
        scorer: see `cir_infer.scoring.make_scorer`; "auto" scores on the engine's device.
        threads: see `Engine`; not together with an `Engine`.
        exif_orientation: see `Engine`; None does as the gallery's images were read. Not together with an
            `Engine`.

    Attributes:
        engine: the engine.
        gallery: the gallery. Items that are added or removed show from the next query on.

    Raises:
        BundleError, DeviceError: see `Engine`.
        GalleryError: the gallery is missing or damaged, or was encoded by another bundle.
        UsageError: contradicting arguments.
    """

    def __init__(
        self,
        bundle: Engine | Bundle | str | os.PathLike[str],
        gallery: Gallery | str | os.PathLike[str] | None = None,
        device: str = "auto",
        scorer: str = "auto",
        threads: int | None = None,
        exif_orientation: bool | None = None,
    ) -> None:
        self._begin(scorer)
        if isinstance(bundle, Engine):
            given = {"device": device, "threads": threads, "exif_orientation": exif_orientation}
            for name, value in given.items():
                if value is not None and not (isinstance(value, str) and value == "auto"):
                    raise UsageError(f"{name}={shown(value)} cannot change an Engine that is open already")
        else:
            bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        try:
            self._use_gallery(Path(bundle.path).with_suffix(".gallery") if gallery is None else gallery)
            if isinstance(bundle, Bundle):
                if exif_orientation is None:
                    exif_orientation = orientation_of_rows(bundle.manifest, self.gallery.fingerprint)
                bundle = Engine(bundle, device, threads, exif_orientation=exif_orientation)
                self._owned.append(bundle)
            self.engine = bundle
            self.gallery.check_engine(self.engine)
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return Searcher, (self.engine, self._place, "auto", self._backend)

    def __repr__(self) -> str:
        return f"<Searcher {self.engine!r} over {self.gallery.path}{', closed' if self._users.ended else ''}>"

    def warm_up(self, k: int = 10) -> None:
        """Do now what the first query would do: load kernels, take buffers, capture CUDA graphs.

        Args:
            k: as later queries will ask for.

        Raises:
            GalleryError: the gallery is empty.
            UsageError: k < 1, or the searcher is closed.
            DeviceError: the device failed.
        """
        self._users.run(self._warm, checked_count("k", k))

    def _warm(self, k: int) -> None:
        snapshot = self._snapshot()
        k = min(k, snapshot.count)
        samples = self.engine.warm_up()
        scorer, chains = self._scorer(snapshot)
        if chains is None:
            with native_call:
                scorer.topk(self.engine.compose(samples.reference, samples.text), k)
            return
        text = None if samples.text is None else samples.text[0]
        if not self.engine.needs_reference:
            chains.topk(None, None, text, k, None)
            return
        chains.topk(samples.image[0], None, text, k, None)
        if self.engine.row_is_reference and samples.reference is not None:
            chains.topk(None, samples.reference[0], text, min(k + 1, snapshot.count), None)

    def describe(self) -> dict[str, Any]:
        """Engine, gallery and scorer, as plain values that JSON can hold."""
        return super().describe()

    def _described(self) -> dict[str, Any]:
        return {**self.engine.describe(), **super()._described()}

    # ---- answering

    def _answering(
        self, k: Any, where: Any, exclude: Any, leave_reference_out: Any, balance: Any
    ) -> Answering:
        k = checked_count("k", k)
        ids = checked_ids(exclude)
        left_out = checked_flag("exclude_reference", leave_reference_out)
        factors = checked_balance(balance, self.engine.manifest.terms)
        snapshot = self._snapshot()
        source = self._source(snapshot, without(snapshot, snapshot.where(where), ids))
        wish = Wish(k, left_out, factors)
        return Answering(self.engine, source, lambda: self._here.get().beside, wish, self._explains)

    def _source(self, snapshot: Snapshot, allow: npt.NDArray[np.uint8] | None = None) -> OneGallery:
        return OneGallery(snapshot, str(self.gallery.path), *self._scorer(snapshot), allow)

    def _explainer(self, reference: Any, text: Any, balance: Balance) -> Explainer:
        from cir_infer.explaining.explainer import Explainer

        place = str(self.gallery.path)
        return Explainer(self.engine, lambda: self._source(self._snapshot()), place, reference, text, balance)

    def _new_scorer(self, rows: Rows) -> tuple[Scorer, Chains | None]:
        scorer = self._scorer_on_device(rows)
        return scorer, self.engine.chains(scorer)

    def _scorer_on_device(self, rows: Rows) -> Scorer:
        """A scorer on the engine's device, unless another was asked for by name."""
        engine = self.engine
        if self._backend != "auto" or engine.device not in ON_GPU:
            return make_scorer(rows, self._backend, engine.threads)
        try:
            return make_scorer(rows, "cuda")
        except DeviceError as error:
            if engine.device_asked != "auto":
                raise
            _log.warning("scoring on the CPU (%s)", error)
            return make_scorer(rows, "cpu", engine.threads)
