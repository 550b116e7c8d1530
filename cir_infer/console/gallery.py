"""`cir-gallery`: look after a gallery: what is in it, is it sound, make it small, take it elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cir_infer.console.common import CirParser, print_json, run_command
from cir_infer.errors import GalleryError

__all__ = ["main"]


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a verification found problems."""
    options = _parse(arguments)
    from cir_infer.gallery import Gallery

    if options.action == "import":
        fingerprint = options.fingerprint if options.bundle is None else _fingerprint(options.bundle)
        with Gallery.import_from(
            options.gallery,
            options.target,
            dtype=options.dtype,
            fingerprint=fingerprint,
            unknown_fingerprint=options.unknown_fingerprint,
        ) as gallery:
            _tell(options, {"gallery": str(gallery.path), "items": len(gallery)}, f"{len(gallery):,} items")
        return 0
    reading = options.action in ("info", "verify", "export")
    with Gallery.open(options.gallery, read_only=reading) as gallery:
        if options.action == "info":
            _info(gallery, options)
        elif options.action == "verify":
            report = gallery.verify()
            text = f"{report.rows:,} rows in {report.segments} files ({report.bytes:,} bytes) read"
            _tell(options, {**asdict(report), "ok": report.ok}, text + (", all sound" if report.ok else ""))
            if not report.ok:
                more = (
                    f" (and {len(report.problems) - 1} more, see --json)" if len(report.problems) > 1 else ""
                )
                raise GalleryError(report.problems[0] + more)
        elif options.action == "compact":
            done = gallery.compact()
            files = f"{done.segments_before} files became {done.segments_after}"
            _tell(options, asdict(done), f"{done.rows_dropped:,} rows dropped, {files}")
        elif options.action == "remove":
            count = gallery.remove(options.ids)
            _tell(
                options,
                {"removed": count, "items": len(gallery)},
                f"{count:,} removed, {len(gallery):,} left",
            )
        else:
            gallery.export(options.target, overwrite=options.overwrite)
            _tell(
                options, {"items": len(gallery), "target": options.target}, f"{len(gallery):,} items written"
            )
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CirParser(
        "cir-gallery",
        "Look after a gallery. cir-index fills it, cir-query asks it.",
        example="cir-gallery info shop.gallery --where 'category = dress and price < 50'\n"
        "  cir-gallery verify shop.gallery\n"
        "  cir-gallery compact shop.gallery\n"
        "  cir-gallery remove shop.gallery sku-17 sku-18\n"
        "  cir-gallery export shop.gallery rows.safetensors\n"
        "  cir-gallery import new.gallery clip-retrieval-folder/",
    )
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )

    def action(name: str, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("gallery", type=Path, help="the gallery's folder")
        # Also behind the action; SUPPRESS keeps what was said before it.
        sub.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
        )
        return sub

    info = action("info", "say what is in a gallery")
    info.add_argument(
        "--where", metavar="FILTER", help="count the items that match a filter, see docs/gallery.md"
    )
    action("verify", "read everything and check that it fits together")
    action("compact", "drop the rows of removed items and merge small files, while others read")
    action("remove", "remove items").add_argument("ids", nargs="+", metavar="ID")
    export = action(
        "export", "write all items to a .safetensors file, or to a folder as clip-retrieval has it"
    )
    export.add_argument("target", help="the file or folder; does not exist yet")
    export.add_argument("--overwrite", action="store_true", help="take the place of an earlier export")
    source = action("import", "make a gallery of a .safetensors file or a clip-retrieval folder")
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
        help="nobody knows of which bundle the rows are; only then needed, and only for rows of others",
    )
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


def _fingerprint(bundle: Path) -> str:
    from cir_infer.bundle import Bundle

    return Bundle(bundle).manifest.fingerprint


def _info(gallery: Any, options: argparse.Namespace) -> None:
    snapshot = gallery.snapshot()
    known = {
        "gallery": str(gallery.path),
        "items": snapshot.count,
        "rows": snapshot.rows.count,
        "dimension": snapshot.dimension,
        "dtype": str(snapshot.rows.dtype),
        "segments": snapshot.segment_count,
        "generation": snapshot.generation,
        "fingerprint": snapshot.fingerprint,
    }
    if options.where is not None:
        known["matching"] = snapshot.matching(options.where)
    width = max(map(len, known))
    _tell(options, known, "\n".join(f"{name:<{width}}  {value}" for name, value in known.items()))


def _tell(options: argparse.Namespace, known: dict[str, Any], text: str) -> None:
    if options.json:
        print_json(known)
    else:
        print(text)
