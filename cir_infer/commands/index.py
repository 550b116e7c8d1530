"""`cir-index`: encode images into a gallery, and keep it in step with them."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cir_infer.console.common import (
    CirParser,
    check_order,
    complain,
    print_json,
    printable,
    run_command,
)
from cir_infer.console.figures import counted
from cir_infer.console.progress import progress_of
from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.runtime.device_names import DEVICES

if TYPE_CHECKING:
    from cir_infer.bundle import Bundle
    from cir_infer.engine import Engine
    from cir_infer.gallery import Gallery
    from cir_infer.indexing.broken_list import BrokenList
    from cir_infer.indexing.items import Broken
    from cir_infer.indexing.report import Report
    from cir_infer.indexing.source import Source
    from cir_infer.shards.layout import ShardedGallery

__all__ = ["main", "tell"]

_TOLD = 20
"""So many reasons are printed where the list of them cannot be written."""


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if some images could not be indexed."""
    options = _parse(arguments)
    from cir_infer.bundle import Bundle
    from cir_infer.bundle.manifest import FeatureInput
    from cir_infer.engine import Engine
    from cir_infer.indexing.broken_list import BrokenList
    from cir_infer.indexing.formats import image_endings
    from cir_infer.indexing.sources import open_sources

    check_order(options.bundle, *options.sources)
    path = Path(options.gallery) if options.gallery else Path(options.bundle).with_suffix(".gallery")
    bundle = Bundle(options.bundle)
    turned = _orientation(bundle, path, options)
    engine = Engine(bundle, options.device, threads=options.threads, exif_orientation=turned)
    listing = BrokenList.of(path, options.broken_list)
    if options.reencode:
        return _reencode(path, engine, options, listing)
    endings = image_endings(isinstance(engine.manifest.image, FeatureInput))
    sources = open_sources(options.sources, endings, options.prefix)
    if options.prune and all(source.territory is None for source in sources):
        raise UsageError("--prune takes folders and shards; other sources do not say what is gone")
    with _open_gallery(path, engine, options) as gallery:
        if options.watch is not None:
            return _watch(gallery, engine, sources, options, listing)
        report = _run(gallery, engine, sources, options)
        tell(report, gallery, options, listing, report.broken)
        return 0 if report.ok else 1


def _orientation(bundle: Bundle, path: Path, options: argparse.Namespace) -> bool | None:
    """Whether to turn photos upright: as asked, else as the gallery's own were, else as the bundle says."""
    from cir_infer.bundle.orientation import orientation_of_rows
    from cir_infer.gallery import Gallery

    if options.exif_orientation is not None or options.reencode or not (path / "catalogue.sqlite").exists():
        upright: bool | None = options.exif_orientation
        return upright
    with Gallery.open(path, read_only=True) as gallery:
        return orientation_of_rows(bundle.manifest, gallery.fingerprint)


def _reencode(path: Path, engine: Engine, options: argparse.Namespace, listing: BrokenList) -> int:
    from cir_infer.gallery import Gallery
    from cir_infer.indexing.reencode import reencode

    with Gallery.open(path) as gallery:
        if gallery.fingerprint == engine.fingerprint and options.dtype in (None, gallery.dtype):
            raise GalleryError(f"{path}: this bundle ({engine.fingerprint}) has encoded its rows already")
        with progress_of(lambda: len(gallery), "re-encoding", "image") as on_item:
            report = reencode(
                gallery,
                engine,
                dtype=options.dtype,
                workers=options.workers,
                batch_size=options.batch_size,
                drop_broken=options.drop_broken,
                prune_limit=options.prune_limit,
                on_item=on_item,
            )
        tell(report, gallery, options, listing, report.broken)
        if report.broken and not options.drop_broken:
            raise GalleryError(
                f"{path}: is as it was, because {len(report.broken):,} of its images cannot be encoded anew; "
                "put them right and run this again, or pass --drop-broken to remove them"
            )
        return 1 if report.refused else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    from cir_infer.indexing.pruning import PruneLimit
    from cir_infer.processes.cpus import available_cpus

    parser = CirParser(
        "cir-index",
        "Encode images into a gallery. Images that are indexed already and have not changed are passed over, "
        "so a run that was stopped is continued by running it again.",
        example="cir-index artemis.cir photos/ --gallery shop.gallery\n"
        "  cir-index artemis.cir catalogue.jsonl 'extra/**/*.jpg' shard-*.tar\n"
        "  cir-index artemis.cir anna=/media/anna/DCIM ben=/media/ben/DCIM\n"
        "  cir-index artemis.cir photos/ --watch\n"
        "  cir-index better.cir --gallery shop.gallery --reencode",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle (.cir) that encodes the images")
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a folder, a pattern in quotes, a manifest (.csv, .tsv, .jsonl, .parquet), a shard (.tar) or an "
        "image; folders, shards and images also by address (s3://bucket/photos); NAME=SOURCE puts NAME/ "
        "before its ids",
    )
    parser.add_argument(
        "--gallery", metavar="FOLDER", help="the gallery (default: the bundle's name with .gallery)"
    )
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        help="put NAME/ before the ids of all sources that have no NAME= of their own",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="an id that belongs to another file goes to the one that comes now (default: it is refused)",
    )
    parser.add_argument("--device", default="auto", help=", ".join(DEVICES))
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        help="how a new gallery stores its rows (default: float16)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes (default: one for each spare core)"
    )
    parser.add_argument(
        "--exif-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn photos upright as their EXIF tag says (default: as the gallery's own were, else as the "
        "bundle says)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of the encoder (default: as the device's runtime has it)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images encoded together (default: 32)"
    )
    parser.add_argument(
        "--prune", action="store_true", help="also remove items whose image is gone from these sources"
    )
    parser.add_argument(
        "--prune-limit",
        metavar="LIMIT",
        help="how much --prune, --watch and --drop-broken may remove in a run, a number of items or a share "
        "such as 50%% (default: a quarter of a source, 1,000 items at most, never all)",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="go on, look again every few seconds (default: 2), and remove what is gone; stop with Ctrl-C",
    )
    parser.add_argument(
        "--broken-list",
        metavar="FILE",
        help="where to list what cannot be indexed, one JSON object a line "
        "(default: the gallery's name with .broken.jsonl)",
    )
    parser.add_argument(
        "--reencode",
        action="store_true",
        help="encode the images of an existing gallery with another bundle, then change over at once",
    )
    parser.add_argument(
        "--drop-broken",
        action="store_true",
        help="with --reencode: remove items whose image cannot be encoded any more, instead of giving up",
    )
    options: argparse.Namespace = parser.parse_args(arguments)
    if options.reencode and (options.sources or options.prune or options.watch is not None):
        raise UsageError("--reencode takes the images that the gallery knows: no sources, --prune or --watch")
    if not options.reencode and not options.sources:
        if not Path(options.bundle).is_file():
            raise UsageError(
                f"{shown(options.bundle)} is no bundle; the bundle comes first and then the sources, as in "
                f"cir-index shop.cir {shown(options.bundle)}"
            )
        raise UsageError("no source of images; name a folder, a pattern, a manifest or a shard")
    removing = options.prune or options.watch is not None or (options.reencode and options.drop_broken)
    if options.prune_limit is not None and not removing:
        raise UsageError(
            "--prune-limit is for --prune, --watch and --drop-broken, which remove items; add one of them"
        )
    if options.workers is None:
        options.workers = max(1, min(8, available_cpus() - 1))
    if options.drop_broken and not options.reencode:
        raise UsageError("--drop-broken belongs to --reencode; --prune removes what is gone from its source")
    for flag, given, least in (("workers", options.workers, 0), ("batch-size", options.batch_size, 1)):
        if given < least:
            raise UsageError(f"--{flag} is {shown(given)}; expected a whole number of at least {least}")
    if options.watch is not None:
        from cir_infer.inputs.arguments import checked_seconds

        checked_seconds("--watch", options.watch, None)
    if options.prefix is not None and not options.prefix.strip("/"):
        raise UsageError("--prefix is empty; name what stands before the ids")
    options.prune_limit = (
        PruneLimit() if options.prune_limit is None else PruneLimit.parse(options.prune_limit)
    )
    return options


def _open_gallery(path: Path, engine: Engine, options: argparse.Namespace) -> Gallery:
    from cir_infer.gallery import Gallery
    from cir_infer.gallery.disk.drafts import is_vacant

    if not path.exists() or is_vacant(path):
        return Gallery.create(path, engine, options.dtype or "float16")
    gallery = Gallery.open(path, engine)
    if options.dtype not in (None, gallery.dtype):
        found = gallery.dtype
        gallery.close()
        raise GalleryError(f"{path}: stores {found} rows; leave out --dtype, or index into a new gallery")
    return gallery


def _run(
    gallery: Gallery,
    engine: Engine,
    sources: Sequence[Source],
    options: argparse.Namespace,
    known_broken: Container[tuple[str, str]] = frozenset(),
    quiet: bool = False,
) -> Report:
    from cir_infer.indexing.run import index

    counts = functools.partial(_total, sources)
    with progress_of(counts, "indexing", "image", enabled=not quiet) as on_item:
        return index(
            gallery,
            engine,
            sources,
            workers=options.workers,
            batch_size=options.batch_size,
            prune=options.prune or options.watch is not None,
            prune_limit=options.prune_limit,
            replace_taken=options.replace,
            known_broken=known_broken,
            on_item=on_item,
        )


def _total(sources: Sequence[Source]) -> int | None:
    counts = [source.count() for source in sources]
    return None if None in counts else sum(count or 0 for count in counts)


def _watch(
    gallery: Gallery,
    engine: Engine,
    sources: Sequence[Source],
    options: argparse.Namespace,
    listing: BrokenList,
) -> int:
    from cir_infer.indexing.watching import watch

    if any(source.territory is None for source in sources):
        raise UsageError("--watch takes folders and shards; other sources do not say what is gone")

    def run(known: Container[tuple[str, str]], first: bool) -> Report:
        return _run(gallery, engine, sources, options, known, quiet=not first)

    def told(report: Report, broken: Sequence[Broken]) -> None:
        tell(report, gallery, options, listing, broken)

    watch(run, told, options.watch)
    return 0


def tell(
    report: Report,
    gallery: Gallery | ShardedGallery,
    options: argparse.Namespace,
    listing: BrokenList,
    broken: Sequence[Broken],
) -> None:
    """Say what a run did; `broken` is all that is broken now, `report` has what is news."""
    unlisted = listing.write(broken)
    if options.json:
        result = {"gallery": str(gallery.path), "items": len(gallery), **report.to_dict()}
        print_json({**result, "broken_list": str(listing.path) if broken and unlisted is None else None})
    else:
        moved = f"{report.moved:,} moved, " if report.moved else ""
        items = counted(len(gallery), "item")
        digits = ".2g" if report.rate < 10 else ".0f"
        rate = f", {report.rate:{digits}} images/s" if report.encoded else ""
        print(
            f"{printable(str(gallery.path))}: {items} ({report.added:,} added, "
            f"{report.replaced:,} replaced, {moved}{report.unchanged:,} unchanged, "
            f"{report.removed:,} removed) in {report.seconds:.1f} s{rate}"
        )
        if report.left_out:
            from cir_infer.indexing.formats import describe_left_out

            print(printable(f"left out: {describe_left_out(report.left_out)}"))
    if report.broken:
        where = (
            f"listed in {listing.path}"
            if unlisted is None
            else f"{listing.path} cannot be written ({unlisted})"
        )
        complain(
            f"{len(report.broken):,} could not be indexed, {where}; the first: {report.broken[0].reason}"
        )
        if unlisted is not None:
            for entry in report.broken[1:_TOLD]:
                complain(entry.reason)
    for refused in report.refused:
        complain(refused.reason)
    sys.stdout.flush()
