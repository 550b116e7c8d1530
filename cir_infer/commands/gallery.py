"""`cir-gallery`: look after a gallery: what is in it, is it sound, make it small, take it elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cir_infer.commands.filtered import nothing_matches
from cir_infer.console.common import CirParser, complain, print_json, printable, run_command
from cir_infer.console.figures import counted
from cir_infer.console.tables import format_table
from cir_infer.errors import GalleryError

if TYPE_CHECKING:
    from cir_infer.gallery import Gallery

__all__ = ["main"]

Options = argparse.Namespace
_MORE_IDS = 20
_MANY_BURIED = 1000
"""Rows of no item that are worth a word, where they are a quarter."""


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a verification found problems."""
    options = _parse(arguments)
    from cir_infer.gallery import Gallery

    if options.action in _WITHOUT_ONE:
        return _WITHOUT_ONE[options.action](options)
    reading = options.action in _READING
    with Gallery.open(options.gallery, read_only=reading) as gallery:
        _ACTIONS[options.action](gallery, options)
    return 0


# ---- what each action does


def _info(gallery: Gallery, options: Options) -> None:
    snapshot = gallery.snapshot()
    rows = snapshot.rows.count
    buried = rows - snapshot.count
    known = {
        "gallery": str(gallery.path),
        "items": snapshot.count,
        "rows": rows,
        "buried": buried,
        "dimension": snapshot.dimension,
        "tokens_per_item": snapshot.tokens_per_item,
        "dtype": str(snapshot.rows.dtype),
        "segments": snapshot.segment_count,
        "generation": snapshot.generation,
        "fingerprint": snapshot.fingerprint,
        "format": gallery.format_version,
        "uuid": gallery.uuid,
    }
    if options.where is not None:
        known["matching"] = snapshot.matching(options.where)
    width = max(map(len, known))
    lines = (f"{name:<{width}}  {_of_info(value)}" for name, value in known.items())
    _tell(options, known, "\n".join(lines))
    if known.get("matching") == 0:
        complain(nothing_matches(gallery))
    if buried >= max(_MANY_BURIED, rows // 4):
        complain(
            f"{buried:,} of {counted(rows, 'row')} are of items that were removed or replaced, and queries "
            "read them too; cir-gallery compact drops them"
        )


def _of_info(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _fields(gallery: Gallery, options: Options) -> None:
    found = gallery.fields()
    rows = [
        (
            printable(field.name),
            f"{field.items:,}",
            ", ".join(field.types),
            "" if field.distinct is None else f"{field.distinct:,}",
            _range(field.least, field.greatest),
            ", ".join(_shortened(value) for value in field.examples[:3]),
        )
        for field in found
    ]
    header = ("field", "items", "types", "distinct", "range", "commonest")
    text = format_table(header, rows, right=(1, 3)) if rows else "no metadata"
    known = {
        "gallery": str(gallery.path),
        "items": len(gallery),
        "fields": [asdict(field) for field in found],
    }
    _tell(options, known, text)


def _range(least: Any, greatest: Any) -> str:
    if least is None:
        return ""
    return _shortened(least) if least == greatest else f"{_shortened(least)} to {_shortened(greatest)}"


def _shortened(value: Any) -> str:
    text = printable(str(value).lower() if isinstance(value, bool) else str(value))
    return text if len(text) <= 24 else f"{text[:21]}..."


def _duplicates(gallery: Gallery, options: Options) -> None:
    groups = gallery.duplicates(options.threshold, progress=True)
    known = {
        "gallery": str(gallery.path),
        "items": len(gallery),
        "threshold": options.threshold,
        "groups": [group._asdict() for group in groups],
    }
    lines = []
    for group in groups:
        ids = ", ".join(printable(item) for item in group.ids[:_MORE_IDS])
        more = len(group.ids) - _MORE_IDS
        rest = f", and {more:,} more (--json lists all)" if more > 0 else ""
        lines.append(f"{counted(len(group.ids), 'item')}, cosine {group.similarity:.5f}: {ids}{rest}")
    count = sum(len(group.ids) - 1 for group in groups)
    repeat = "repeats" if count == 1 else "repeat"
    lines.append(
        f"{counted(len(groups), 'group')}; {count:,} of {counted(len(gallery), 'item')} {repeat} another"
    )
    _tell(options, known, "\n".join(lines))


def _verify(gallery: Gallery, options: Options) -> None:
    report = gallery.verify(progress=True)
    text = (
        f"{counted(report.rows, 'row')} in {counted(report.segments, 'file')} ({report.bytes:,} bytes) read"
    )
    _tell(options, {**asdict(report), "ok": report.ok}, text + (", all sound" if report.ok else ""))
    if not report.ok:
        more = len(report.problems) - 1
        raise GalleryError(report.problems[0] + (f" (and {more:,} more, see --json)" if more else ""))


def _compact(gallery: Gallery, options: Options) -> None:
    done = gallery.compact()
    files = f"{counted(done.segments_before, 'file')} became {done.segments_after:,}"
    _tell(options, asdict(done), f"{counted(done.rows_dropped, 'row')} dropped, {files}")


def _upgrade(gallery: Gallery, options: Options) -> None:
    before = gallery.format_version
    gallery.upgrade(verify=not options.no_verify)
    after = gallery.format_version
    text = f"format {before} became {after}" if before != after else f"format {after} already"
    _tell(options, {"gallery": str(gallery.path), "before": before, "after": after}, text)


def _backup(gallery: Gallery, options: Options) -> None:
    done = gallery.backup(options.target, verify=not options.no_verify, link=not options.copy, progress=True)
    files = f"{counted(done.linked, 'file')} linked, {done.copied:,} copied ({done.bytes:,} bytes)"
    items = f"{counted(done.items, 'item')} of commit {done.generation}"
    text = f"{items} in {printable(str(done.path))}: {files}, {done.kept:,} kept"
    _tell(options, asdict(done), text + ("; verified" if done.verified else ""))


def _remove(gallery: Gallery, options: Options) -> None:
    count = gallery.remove(options.ids, missing="skip" if options.skip_missing else "error")
    _tell(options, {"removed": count, "items": len(gallery)}, f"{count:,} removed, {len(gallery):,} left")


def _export(gallery: Gallery, options: Options) -> None:
    gallery.export(options.target, overwrite=options.overwrite)
    known = {"items": len(gallery), "target": options.target}
    _tell(options, known, f"{counted(len(gallery), 'item')} written")


def _shard(options: Options) -> int:
    from cir_infer.gallery import Gallery
    from cir_infer.shards import ShardedGallery
    from cir_infer.shards.listing import is_sharded

    kind = ShardedGallery if is_sharded(options.gallery) else Gallery.open
    with (
        kind(options.gallery, read_only=True) as gallery,
        ShardedGallery.split(gallery, options.target, options.into) as made,
    ):
        counts = [len(shard) for shard in made.shards]
    known = {"shards": len(counts), "items": sum(counts), "target": options.target, "counts": counts}
    _tell(options, known, f"{counted(sum(counts), 'item')} in {counted(len(counts), 'shard')}")
    return 0


def _metadata(options: Options) -> int:
    from cir_infer.gallery import Gallery
    from cir_infer.indexing.descriptions import describe
    from cir_infer.shards import ShardedGallery
    from cir_infer.shards.listing import is_sharded

    how = {"merge": options.merge, "skip_missing": options.skip_missing}
    if is_sharded(options.gallery):
        with ShardedGallery(options.gallery) as shards:
            done, items = describe(shards.shards, shards.of, options.target, **how), len(shards)
    else:
        with Gallery.open(options.gallery) as gallery:
            done, items = describe([gallery], lambda _: gallery, options.target, **how), len(gallery)
    text = f"{done.changed:,} of {counted(done.named, 'item')} changed"
    more = f", {done.missing:,} not in the gallery" if done.missing else ""
    _tell(options, {**done._asdict(), "items": items}, text + more)
    return 0


def _import(options: Options) -> int:
    from cir_infer.gallery import Gallery

    with Gallery.import_from(
        options.gallery,
        options.target,
        dtype=options.dtype,
        fingerprint=options.fingerprint if options.bundle is None else _fingerprint(options.bundle),
        unknown_fingerprint=options.unknown_fingerprint,
    ) as gallery:
        _tell(
            options, {"gallery": str(gallery.path), "items": len(gallery)}, f"{counted(len(gallery), 'item')}"
        )
    return 0


def _fingerprint(bundle: Path) -> str:
    from cir_infer.bundle import Bundle

    return Bundle(bundle).manifest.fingerprint


def _tell(options: Options, known: dict[str, Any], text: str) -> None:
    if options.json:
        print_json(known)
    else:
        print(text)


_ACTIONS: dict[str, Callable[[Gallery, Options], None]] = {
    "info": _info,
    "fields": _fields,
    "duplicates": _duplicates,
    "verify": _verify,
    "compact": _compact,
    "upgrade": _upgrade,
    "backup": _backup,
    "remove": _remove,
    "export": _export,
}
_WITHOUT_ONE: dict[str, Callable[[Options], int]] = {
    "import": _import,
    "metadata": _metadata,
    "shard": _shard,
}
"""Actions for which the command's argument need not be a single gallery."""
_READING = ("info", "fields", "duplicates", "verify", "backup", "export")


# ---- the command line


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = CirParser(
        "cir-gallery",
        "Look after a gallery. cir-index fills it, cir-query asks it.",
        example="cir-gallery info shop.gallery --where 'category = dress and price < 50'\n"
        "  cir-gallery fields shop.gallery\n"
        "  cir-gallery duplicates shop.gallery --threshold 0.98\n"
        "  cir-gallery verify shop.gallery\n"
        "  cir-gallery compact shop.gallery\n"
        "  cir-gallery backup shop.gallery /backups/shop.gallery\n"
        "  cir-gallery remove shop.gallery sku-17 sku-18\n"
        "  cir-gallery metadata shop.gallery prices.csv --merge\n"
        "  cir-gallery export shop.gallery rows.safetensors\n"
        "  cir-gallery shard shop.gallery shop.shards --into 4\n"
        "  cir-gallery import new.gallery clip-retrieval-folder/ --bundle artemis.cir",
    )
    add = parser.actions()

    def action(name: str, text: str, example: str) -> argparse.ArgumentParser:
        sub = add(name, text, example)
        sub.add_argument("gallery", type=Path, help="the gallery's folder")
        return sub

    info = action("info", "say what is in a gallery", "shop.gallery --where 'price < 50'")
    info.add_argument(
        "--where", metavar="FILTER", help="count the items that match a filter, see docs/gallery.md"
    )
    action("fields", "list the fields of the metadata: types, counts, ranges, examples", "shop.gallery")
    duplicates = action(
        "duplicates", "find items whose rows are alike, comparing every row with every other", "shop.gallery"
    )
    duplicates.add_argument(
        "--threshold", type=float, default=0.99, help="the least cosine of a pair, at most 1 (default 0.99)"
    )
    action("verify", "read everything and check that it fits together", "shop.gallery")
    action(
        "compact", "drop the rows of removed items and merge small files, while others read", "shop.gallery"
    )
    backup = action(
        "backup",
        "make a backup, or bring one up to date, while others go on",
        "shop.gallery /backups/shop.gallery",
    )
    backup.add_argument("target", help="nothing yet, an empty folder, or an earlier backup of this gallery")
    backup.add_argument("--copy", action="store_true", help="copy all rows, share none by hard links")
    backup.add_argument("--no-verify", action="store_true", help="do not verify the result")
    upgrade = action("upgrade", "bring a gallery of an earlier format to the newest", "shop.gallery")
    upgrade.add_argument("--no-verify", action="store_true", help="do not verify the gallery before")
    remove = action("remove", "remove items", "shop.gallery sku-17 sku-18")
    remove.add_argument("ids", nargs="+", metavar="ID")
    remove.add_argument("--skip-missing", action="store_true", help="pass over ids that the gallery lacks")
    metadata = action(
        "metadata",
        "give items other metadata, from a table with a column id; their rows stay",
        "shop.gallery prices.csv --merge",
    )
    metadata.add_argument("target", type=Path, metavar="table", help="a .csv, .tsv, .jsonl or .parquet file")
    metadata.add_argument(
        "--merge",
        action="store_true",
        help="keep the fields that the table does not name, which are gone without this; a null takes one "
        "away, an empty cell of a .csv says nothing",
    )
    metadata.add_argument("--skip-missing", action="store_true", help="pass over ids that the gallery lacks")
    export = action(
        "export",
        "write all items to a .safetensors file, or to a folder as clip-retrieval has it",
        "shop.gallery rows.safetensors",
    )
    export.add_argument("target", help="the file or folder; does not exist yet")
    export.add_argument("--overwrite", action="store_true", help="take the place of an earlier export")
    shard = action(
        "shard",
        "split all items of a gallery, or of other shards, into several galleries",
        "shop.gallery shop.shards --into 4",
    )
    shard.add_argument("target", help="the folder of the shards; does not exist yet")
    shard.add_argument("--into", type=int, required=True, metavar="N", help="how many shards, 1 to 256")
    _add_import(action)
    options: Options = parser.parse_args(arguments)
    return options


def _add_import(action: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    source = action(
        "import",
        "make a gallery of a .safetensors file or a clip-retrieval folder",
        "new.gallery clip-retrieval-folder/ --bundle artemis.cir",
    )
    source.add_argument("target", metavar="source", help="the file or folder")
    source.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        help="of the rows; by default what the exported gallery had, or float16",
    )
    of = source.add_mutually_exclusive_group()
    of.add_argument("--bundle", type=Path, help="the rows are of this bundle")
    of.add_argument("--fingerprint", help="the rows are of the bundle with this fingerprint")
    of.add_argument(
        "--unknown-fingerprint",
        action="store_true",
        help="nobody knows of which bundle the rows are; needed only for rows that others wrote",
    )
