"""A searcher that is in use by many, and that another takes the place of without one of them noticing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from cir_infer.bundle.manifest import PixelInput
from cir_infer.engine import Engine
from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.searcher import Searcher
from cir_infer.serving.problems import hide_folders
from cir_infer.serving.settings import Settings
from cir_infer.serving.several import SeveralGalleries
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.listing import Listing, is_sharded
from cir_infer.shards.searcher import ShardedSearcher
from cir_infer.shards.shard import Shard

__all__ = ["Current", "Opened", "Parts", "open_searcher"]

Parts: TypeAlias = Callable[[Listing], Sequence[Sequence[Shard]]]
"""Of a sharded gallery's listing, the replicas of each shard that shall be asked."""


class Opened:
    """A searcher with its gallery; closed when it was replaced and nobody uses it any more.

    Attributes:
        searcher: the searcher.
        gallery: its gallery; that of the searcher where none is named.
        upright: whether pictures are turned as their EXIF tag says before they are encoded.
        mark: tells it from other galleries, whose keys say nothing here.
    """

    def __init__(self, searcher: Searcher, gallery: Gallery | None = None) -> None:
        self.searcher, self.gallery = searcher, searcher.gallery if gallery is None else gallery
        image = searcher.engine.manifest.image
        self.upright = not isinstance(image, PixelInput) or image.exif_orientation
        self.mark = hashlib.sha256(str(self.gallery.uuid).encode()).hexdigest()[:8]
        self._lock = threading.Lock()
        self._users, self._retired = 1, False

    def take(self) -> Opened:
        """Use it; `give_back` afterwards."""
        with self._lock:
            self._users += 1
        return self

    def give_back(self) -> None:
        """The end of a use."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if not last:
            return
        if asyncio._get_running_loop() is not None:  # a large model takes its time to go, and others wait
            with contextlib.suppress(RuntimeError):  # no more threads are allowed
                threading.Thread(target=self._close, name="cir-serve-closing").start()
                return
        self._close()

    def _close(self) -> None:
        engine = self.searcher.engine
        self.searcher.close()
        self.gallery.close()
        engine.close()

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        with self._lock:
            retired, self._retired = self._retired, True
        if not retired:
            self.give_back()


class Current:
    """The searcher that new requests use.

    Args:
        make: opens one, ready to answer.
    """

    def __init__(self, make: Callable[[], Opened]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._reloading = threading.Lock()
        self._opened = make()

    @contextlib.contextmanager
    def use(self) -> Iterator[Opened]:
        """The searcher, which stays open within the block."""
        opened = self.take()
        try:
            yield opened
        finally:
            opened.give_back()

    def take(self) -> Opened:
        """The searcher; give it back."""
        with self._lock:
            return self._opened.take()

    def reload(self) -> None:
        """Open bundle and gallery again and let new requests use them; on an error nothing changes.

        Raises:
            CirError: they cannot be opened.
        """
        with self._reloading:
            fresh = self._make()
            with self._lock:
                old, self._opened = self._opened, fresh
            old.retire()

    def close(self) -> None:
        """Close what is open, once nobody uses it."""
        with self._lock:
            self._opened.retire()


def open_searcher(settings: Settings, parts: Parts | None = None) -> Opened:
    """A searcher as the settings say, warm; over shards where the gallery is a sharded one.

    Args:
        settings: they.
        parts: of a sharded gallery's listing, what shall be asked; by default its galleries, in this process.

    Raises:
        CirError: bundle or gallery cannot be opened, do not belong together, or cannot be written to where
            the settings want that.
    """
    if is_sharded(settings.gallery_path):
        opened = _over_shards(settings, parts)
    elif not settings.writable:
        searcher = Searcher(settings.bundle, settings.gallery_path, settings.device, threads=settings.threads)
        opened = Opened(searcher)
    else:
        gallery = Gallery.open(settings.gallery_path)
        try:
            _check_writable(settings.gallery_path)
            _check_writable(settings.images_path)
            engine = Engine(
                settings.bundle,
                settings.device,
                settings.threads,
                exif_orientation=_orientation(settings.bundle, gallery.fingerprint),
            )
            opened = Opened(Searcher(engine, gallery))
        except BaseException:
            gallery.close()
            raise
    engine = opened.searcher.engine
    hide_folders(Path(engine.path), settings.gallery_path, settings.images_path)
    if engine.needs_text and not settings.log_queries:
        engine.text_reader.log_no_text()
    try:
        if len(opened.gallery):
            opened.searcher.warm_up()
        else:
            engine.warm_up()
    except BaseException:
        opened.retire()
        raise
    return opened


def _check_writable(place: Path) -> None:
    """Refuse now what every change would fail at; a folder that is not there yet is made in the one above."""
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "cannot be written to" if there.is_dir() else "is no folder"
        raise UsageError(
            f"{there}: {found}, and --writable needs {place}; make it so, or leave out --writable"
        )


def _over_shards(settings: Settings, parts: Parts | None) -> Opened:
    if settings.writable or settings.shard:
        raise UsageError(
            f"{settings.gallery_path}: is a sharded gallery, which is served as a whole and read only; leave "
            "out --writable and --shard, or serve one of its galleries"
        )
    gallery = SeveralGalleries(ShardedGallery(settings.gallery_path, read_only=True))
    engine: Engine | None = None
    try:
        # Which bundle made the rows the folder says where it can: it may be another after a change.
        bundle = settings.bundle if parts is None else gallery.listing.bundle or settings.bundle
        turned = _orientation(bundle, gallery.fingerprint)
        engine = Engine(bundle, settings.device, settings.threads, exif_orientation=turned)
        shards = gallery.shards if parts is None else parts(gallery.listing)
        searcher = ShardedSearcher(engine, shards, threads=settings.threads, deadline=settings.timeout)
    except BaseException:
        gallery.close()
        if engine is not None:
            engine.close()
        raise
    # A service asks of them what one gallery and its searcher have as well.
    return Opened(cast(Searcher, searcher), cast(Gallery, gallery))


def _orientation(bundle: str, fingerprint: str | None) -> bool | None:
    from cir_infer.bundle import Bundle
    from cir_infer.bundle.orientation import orientation_of_rows

    return orientation_of_rows(Bundle(bundle).manifest, fingerprint)
