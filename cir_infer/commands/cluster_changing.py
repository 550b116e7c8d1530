"""`cir-cluster rebalance` and `change`: other shards, or rows of another bundle, while queries go on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cir_infer.commands.cluster_indexing import add_encoders, engine_options, progress
from cir_infer.console.common import print_json, printable
from cir_infer.errors import GalleryError, UsageError

if TYPE_CHECKING:
    from cir_infer.indexing.report import Report

__all__ = ["add_change", "add_rebalance", "change", "rebalance"]

Options = argparse.Namespace


def add_rebalance(made: argparse.ArgumentParser) -> None:
    """The arguments of the action."""
    made.add_argument("--into", type=int, required=True, metavar="N", help="how many shards there will be")
    _add_switch(made)


def add_change(made: argparse.ArgumentParser) -> None:
    """The arguments of the action."""
    made.add_argument("bundle", metavar="BUNDLE", help="the bundle (.cir) that will have encoded the images")
    made.add_argument("--dtype", choices=("float32", "float16", "int8"), help="new rows (default: as before)")
    made.add_argument(
        "--drop-broken",
        action="store_true",
        help="leave out items whose image cannot be encoded any more, instead of giving up",
    )
    made.add_argument("--prune-limit", metavar="LIMIT", help="how much --drop-broken may leave out")
    made.add_argument("--broken-list", metavar="FILE", help="where to list what cannot be encoded")
    add_encoders(made)
    _add_switch(made)


def _add_switch(made: argparse.ArgumentParser) -> None:
    made.add_argument("--name", metavar="NAME", help="actors that shall go over (cir-cluster create)")
    made.add_argument("--service", metavar="NAME", help="a service that shall go over (cir-cluster serve)")
    made.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for which old actors go on, and old shards stay on the disk (default 10)",
    )
    made.add_argument("--keep-old", action="store_true", help="do not remove the old shards")


def rebalance(options: Options) -> int:
    """Run the action."""
    from cir_infer.shards.succession import rebalance as run

    _check(options)
    old = run(options.folder, options.into)
    known = {"folder": options.folder, "shards": options.into, **_switched(options, old)}
    _tell(options, known, f"{printable(options.folder)}: {options.into} shards")
    return 0


def change(options: Options) -> int:
    """Run the action; returns 1 if images that cannot be encoded have kept it from changing over."""
    from cir_infer.cluster.changing import change_bundle
    from cir_infer.cluster.indexing import Resources
    from cir_infer.indexing.broken_list import BrokenList
    from cir_infer.indexing.pruning import PruneLimit
    from cir_infer.shards.layout import ShardedGallery

    _check(options)
    if options.prune_limit is not None and not options.drop_broken:
        raise UsageError("--prune-limit is for --drop-broken, which leaves items out; add it")
    limit = PruneLimit() if options.prune_limit is None else PruneLimit.parse(options.prune_limit)
    listing = BrokenList.of(options.folder, options.broken_list)
    with ShardedGallery(options.folder, read_only=True) as gallery:
        count = len(gallery)
    with progress(lambda: count, "encoding") as told:
        report, old = change_bundle(
            options.folder,
            engine_options(options, None),
            Resources(options.encoders, options.gpus),
            dtype=options.dtype,
            batch_size=options.batch_size,
            drop_broken=options.drop_broken,
            prune_limit=limit,
            address=options.address,
            on_progress=told,
        )
    unlisted = listing.write(report.broken)
    if not old:
        raise GalleryError(_not_changed(options.folder, report, listing.path if unlisted is None else None))
    known = {"folder": options.folder, **report.to_dict(), **_switched(options, old)}
    text = f"{printable(options.folder)}: {report.encoded:,} images encoded with {printable(options.bundle)}"
    _tell(options, known, text)
    return 0


def _not_changed(folder: str, report: Report, listed: Path | None) -> str:
    where = "" if listed is None else f", listed in {listed}"
    if report.refused:
        return f"{report.refused[0].reason}{where}"
    return (
        f"{folder}: is as it was, because {len(report.broken):,} of its images cannot be encoded anew{where}"
        f"; the first: {report.broken[0].reason}; put them right and run this again, or leave them out "
        "with --drop-broken"
    )


def _check(options: Options) -> None:
    from cir_infer.inputs.arguments import checked_seconds

    checked_seconds("--grace", options.grace)
    if options.name is not None:
        from cir_infer.shards.ray import RayShards
        from cir_infer.shards.ray_actor import check_folder

        # Before hours of work. Of others' actors nobody would go over, and the old shards would be removed.
        shards = RayShards.attach(options.name, address=options.address)
        check_folder(options.name, shards.started_as().folder, options.folder)
    if options.service is not None:
        from cir_infer.cluster.serving import check_served

        check_served(options.service, options.folder, address=options.address)


def _switched(options: Options, old: Sequence[str]) -> dict[str, object]:
    """Let actors go over; then nobody needs the old shards."""
    from cir_infer.shards.succession import remove_old

    version = None
    if options.name is not None:
        from cir_infer.shards.ray import RayShards

        fresh = RayShards.attach(options.name, address=options.address).renewed(options.grace)
        version = fresh.version
    ended: list[str] = []
    if options.service is not None:
        from cir_infer.cluster.serving import renew

        ended = renew(options.service, options.folder, grace=options.grace, address=options.address)
    if options.name is None and options.service is None and not options.keep_old:
        time.sleep(options.grace)
    if not options.keep_old:
        remove_old(options.folder, old)
    return {"version": version, "ended": ended, "removed_shards": [] if options.keep_old else list(old)}


def _tell(options: Options, known: dict[str, object], text: str) -> None:
    if options.json:
        print_json(known)
    else:
        version = known["version"]
        print(text + (f", answered by version {version} of {options.name}" if version else ""))
