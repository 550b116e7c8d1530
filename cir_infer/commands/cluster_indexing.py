"""`cir-cluster index`: what `cir-index` does, for the shards of a gallery on a Ray cluster."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cir_infer.console.common import printable
from cir_infer.console.progress import progress_of
from cir_infer.errors import GalleryError, UsageError
from cir_infer.runtime.device_names import DEVICES

if TYPE_CHECKING:
    from cir_infer.bundle.manifest import Manifest
    from cir_infer.cluster.encoding import EngineOptions
    from cir_infer.shards.layout import ShardedGallery

__all__ = ["add_encoders", "add_index", "engine_options", "index", "progress"]

Options = argparse.Namespace


def add_index(made: argparse.ArgumentParser) -> None:
    """The arguments of the action."""
    made.add_argument("bundle", metavar="BUNDLE", help="the bundle (.cir) that encodes the images")
    made.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="as cir-index takes them, at the same paths on every machine",
    )
    made.add_argument("--gallery", required=True, metavar="FOLDER", help="the sharded gallery")
    made.add_argument("--shards", type=int, metavar="N", help="how many a new gallery gets (default 4)")
    made.add_argument(
        "--dtype", choices=("float32", "float16", "int8"), help="rows of a new gallery (default float16)"
    )
    made.add_argument("--prefix", metavar="NAME", help="see cir-index, as what follows")
    made.add_argument("--replace", action="store_true", help="an id of another file goes to the new one")
    made.add_argument("--prune", action="store_true", help="also remove items whose image is gone")
    made.add_argument("--prune-limit", metavar="LIMIT", help="how much --prune may remove, of each shard")
    made.add_argument("--broken-list", metavar="FILE", help="where to list what cannot be indexed")
    made.add_argument(
        "--exif-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn photos upright (default: as the gallery's own were, else as the bundle says)",
    )
    add_encoders(made)


def add_encoders(made: argparse.ArgumentParser) -> None:
    """The arguments that say how images are encoded."""
    made.add_argument("--device", default="auto", help=", ".join(DEVICES))
    made.add_argument("--threads", type=int, metavar="N", help="of an encoder")
    made.add_argument("--batch-size", type=int, default=32, metavar="N", help="images together (default 32)")
    made.add_argument(
        "--encoders",
        type=int,
        metavar="N",
        help="engines on the cluster (default: one for each GPU, else one for each machine)",
    )
    made.add_argument(
        "--gpus",
        type=float,
        metavar="N",
        help="that Ray keeps for an encoder, 0.5 for half a one (default 1)",
    )


def engine_options(options: Options, turned: bool | None) -> EngineOptions:
    """How the engines are opened."""
    from cir_infer.cluster.encoding import EngineOptions

    if options.batch_size < 1 or (options.encoders is not None and options.encoders < 1):
        raise UsageError("--batch-size and --encoders must be at least 1")
    return EngineOptions(str(Path(options.bundle).absolute()), options.device, options.threads, turned)


@contextmanager
def progress(total: Callable[[], int | None], what: str) -> Iterator[Callable[[int], None]]:
    """What is told how many items have been dealt with so far, see `progress_of`."""
    dealt = 0
    with progress_of(total, what, "image") as update:

        def told(now: int) -> None:
            nonlocal dealt
            if now > dealt:  # a writer that is run again counts anew
                update(now - dealt)
                dealt = now

        yield told


def index(options: Options) -> int:
    """Run the action; returns 1 if some images could not be indexed."""
    from cir_infer.bundle import Bundle
    from cir_infer.bundle.manifest import FeatureInput
    from cir_infer.cluster.indexing import Job, Resources, index_shards, opened_sources
    from cir_infer.commands.index import tell
    from cir_infer.indexing.broken_list import BrokenList
    from cir_infer.indexing.pruning import PruneLimit

    path = Path(options.gallery)
    manifest = Bundle(options.bundle).manifest
    if options.prune_limit is not None and not options.prune:
        raise UsageError("--prune-limit is for --prune, which removes items; add it")
    limit = PruneLimit() if options.prune_limit is None else PruneLimit.parse(options.prune_limit)
    job = Job(
        options.sources,
        str(Path.cwd()),
        options.prefix,
        options.batch_size,
        options.prune,
        limit,
        options.replace,
    )
    sources = opened_sources(job, isinstance(manifest.image, FeatureInput))
    if options.prune and all(source.territory is None for source in sources):
        raise UsageError("--prune takes folders and shards; other sources do not say what is gone")
    listing = BrokenList.of(path, options.broken_list)
    with _gallery(path, manifest, options) as gallery:
        turned = _orientation(manifest, gallery, options)
        counts = functools.partial(_total, [source.count() for source in sources])
        with progress(counts, "indexing") as told:
            report = index_shards(
                gallery,
                engine_options(options, turned),
                job,
                Resources(options.encoders, options.gpus),
                address=options.address,
                on_progress=told,
            )
        tell(report, gallery, options, listing, report.broken)
    return 0 if report.ok else 1


def _total(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def _gallery(path: Path, manifest: Manifest, options: Options) -> ShardedGallery:
    from cir_infer.bundle.orientation import oriented
    from cir_infer.shards.layout import ShardedGallery

    if not path.exists():
        return ShardedGallery.create(
            path,
            4 if options.shards is None else options.shards,
            options.dtype or "float16",
            dimension=manifest.embedding_dim,
            tokens_per_item=manifest.tokens_per_item,
            fingerprint=oriented(manifest, options.exif_orientation).fingerprint,
            bundle=str(Path(options.bundle).absolute()),
        )
    gallery = ShardedGallery(path)
    found = {"--shards": len(gallery.shards), "--dtype": gallery.shards[0].dtype}
    for flag, wanted in (("--shards", options.shards), ("--dtype", options.dtype)):
        if wanted not in (None, found[flag]):
            gallery.close()
            raise GalleryError(f"{printable(str(path))}: has {flag} {found[flag]} already; leave it out")
    return gallery


def _orientation(manifest: Manifest, gallery: ShardedGallery, options: Options) -> bool | None:
    from cir_infer.bundle.orientation import orientation_of_rows

    if options.exif_orientation is not None:
        turned: bool = options.exif_orientation
        return turned
    return orientation_of_rows(manifest, gallery.fingerprint)
