"""A searcher that is in use by many, and that another takes the place of without one of them noticing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.searcher import Searcher
from cir_infer.serving.settings import Settings

__all__ = ["Current", "Opened", "open_searcher"]


class Opened:
    """A searcher with its gallery; closed when it was replaced and nobody uses it any more.

    Attributes:
        searcher: the searcher.
        gallery: its gallery.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher, self.gallery = searcher, searcher.gallery
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
        if last:
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


def open_searcher(settings: Settings) -> Opened:
    """A searcher as the settings say, warm.

    Raises:
        CirError: bundle or gallery cannot be opened, or do not belong together.
    """
    if not settings.writable:
        searcher = Searcher(settings.bundle, settings.gallery_path, settings.device, threads=settings.threads)
        opened = Opened(searcher)
    else:
        gallery = Gallery.open(settings.gallery_path)
        try:
            engine = Engine(
                settings.bundle,
                settings.device,
                settings.threads,
                exif_orientation=_orientation(settings, gallery),
            )
            opened = Opened(Searcher(engine, gallery))
        except BaseException:
            gallery.close()
            raise
    try:
        if len(opened.gallery):
            opened.searcher.warm_up()
        else:
            opened.searcher.engine.warm_up()
    except BaseException:
        opened.retire()
        raise
    return opened


def _orientation(settings: Settings, gallery: Gallery) -> bool | None:
    from cir_infer.bundle import Bundle
    from cir_infer.bundle.orientation import orientation_of_rows

    return orientation_of_rows(Bundle(settings.bundle).manifest, gallery.fingerprint)
