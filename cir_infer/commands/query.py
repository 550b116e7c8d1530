"""`cir-query`: one query on the command line."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cir_infer.commands.filtered import nothing_matches
from cir_infer.console.common import CirParser, check_order, complain, print_json, run_command
from cir_infer.errors import CirError, UsageError, shown
from cir_infer.processes.outputs import check_apart, check_replaceable, replacing
from cir_infer.runtime.device_names import DEVICES

if TYPE_CHECKING:
    from cir_infer.engine import Engine
    from cir_infer.hits import Hits
    from cir_infer.searcher import Reference

__all__ = ["main"]

_NEEDED = "BUNDLE, IMAGE and TEXT are needed, or --vector FILE.npy"


@run_command
def main(arguments: Sequence[str] | None = None) -> None:
    """Answer one query as a table, as JSON, as a contact sheet."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.vector is not None:
        _search_vectors(parser, args)
        return
    if args.bundle is None or args.image is None:
        parser.error(_NEEDED)
    for flag in ("fingerprint", "metric"):
        if getattr(args, flag) is not None:
            parser.error(f"--{flag} belongs to --vector")
    balance = _balance(args.balance)
    _check_sheet(args.sheet)
    if args.sheet is not None and not args.refine:
        check_apart(args.sheet, [args.image])
    _check_order(args)
    from cir_infer.searcher import Searcher

    with Searcher(
        args.bundle,
        args.gallery,
        args.device,
        threads=args.threads,
        exif_orientation=args.exif_orientation,
    ) as searcher:
        image, captions = _asked(searcher.engine, args)
        if searcher.engine.needs_text and not captions:
            parser.error(_NEEDED)
        reference: Reference = searcher.item(image) if args.refine and image is not None else image
        text = None if not captions else captions[0] if len(captions) == 1 else captions
        hits = searcher.query(
            reference, text, args.k, args.where, args.exclude, args.exclude_reference, balance
        )
        explain = args.explain and len(hits) > 0
        if not args.json:
            print(hits)
        if args.sheet is not None:
            _save_sheet(args.sheet, reference, text, hits, explain)
        if args.json:
            print_json(
                {
                    "bundle": args.bundle,
                    "gallery": searcher.gallery.path,
                    "reference": image,
                    "reference_id": hits.reference_id,
                    "text": text,
                    "unknown_words": list(hits.unknown_words),
                    "balance": hits.balance,
                    "hits": [hit.as_dict() for hit in hits],
                    **({"explanations": _explanations(hits)} if args.explain else {}),
                    "sheet": args.sheet,
                }
            )
            return
        if explain:
            print(f"\nwhy {shown(hits[0].id)}:\n{hits.explain(0, progress=True)}")
        if not hits and args.where is not None:
            complain(nothing_matches(searcher.gallery))
    if hits.reference_id is not None and not args.exclude_reference:
        complain(f"{shown(hits.reference_id)} is the reference itself; --exclude-reference leaves it out")
    if args.sheet is not None:
        print(f"\ncontact sheet: {args.sheet}")


def _parser() -> CirParser:
    parser = CirParser(
        "cir-query",
        "Find the items of a gallery that look like a reference image changed as a text says.",
        'cir-query artemis.cir dress.jpg "is cream in color" -k 5 --sheet answer.png\n'
        '  cir-query artemis.cir sku-17 "but with longer sleeves" --refine --where "price < 50"\n'
        "  cir-query --vector queries.npy --gallery shop.gallery",
    )
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help="the exported model (.cir)")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="the reference image")
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="*",
        help="how the result should differ; several captions are joined as the system's authors do. A system "
        "that reads images or texts alone is asked with that alone",
    )
    parser.add_argument(
        "--gallery", metavar="FOLDER", type=Path, help="default: BUNDLE with the ending .gallery"
    )
    parser.add_argument("-k", "--k", type=int, default=10, metavar="N", help="how many hits (default 10)")
    parser.add_argument(
        "--where", metavar="EXPRESSION", help='filter on metadata, e.g. "category = dress and price < 50"'
    )
    parser.add_argument(
        "--exclude", metavar="ID", action="append", default=[], help="leave an id out (repeatable)"
    )
    parser.add_argument(
        "--exclude-reference",
        action="store_true",
        help="leave out items that show the reference image itself, by their row or their file",
    )
    parser.add_argument(
        "--refine", action="store_true", help="IMAGE is the id of an item in the gallery; no image is encoded"
    )
    parser.add_argument(
        "--balance",
        metavar="TERM=FACTOR",
        action="append",
        default=[],
        help="multiply a term of the score, e.g. implicit_similarity=1.5 for more of the picture; 0 leaves "
        "it out, below 0 asks for its opposite (repeatable)",
    )
    parser.add_argument(
        "--vector",
        metavar="FILE.npy",
        type=Path,
        help="instead of BUNDLE, IMAGE and TEXT: vectors of any model, (D,) or (queries, D); needs --gallery",
    )
    parser.add_argument(
        "--metric",
        choices=("cosine", "dot"),
        help="of --vector: cosine (default), or dot product as the rows are",
    )
    parser.add_argument(
        "--fingerprint", metavar="NAME", help="of --vector: refuse a gallery whose rows are of another model"
    )
    parser.add_argument("--sheet", metavar="PNG", type=Path, help="write a contact sheet")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say why: what parts of both images and which words made the terms; of the first hit as a "
        "table, of all on the sheet and as arrays in --json",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where graphs run (default auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="processors to use (default: all available)")
    parser.add_argument(
        "--exif-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn photos upright as their EXIF tag says (default: as the gallery was indexed)",
    )
    return parser


def _check_order(args: argparse.Namespace) -> None:
    """Refuse arguments that stand in each other's place, and say what a text without quotes has become."""
    check_order(args.bundle, args.image, *args.text)
    last = args.text[-1] if args.text else ""
    # A text may be longer than names are, which pathlib's answers with an exception.
    if not args.refine and not os.path.lexists(args.image) and os.path.isfile(last):  # noqa: PTH113
        raise UsageError(
            f"there is no image {shown(args.image)}, and {shown(last)} in the place of the text is a file; "
            "expected BUNDLE IMAGE TEXT"
        )
    if len(args.text) > 1 and not any(" " in text for text in args.text):
        complain(
            f"{len(args.text):,} captions, {', '.join(map(shown, args.text[:4]))}"
            f"{', ...' if len(args.text) > 4 else ''}; a text of several words stands in quotes"
        )


def _asked(engine: Engine, args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The image and the captions; a system that reads one of them alone is asked with that alone.

    What it does not read is said to be left out.
    """
    image, captions = args.image, list(args.text)
    if not engine.needs_text and captions:
        complain(f"this model reads no text; {', '.join(map(shown, captions[:4]))} is left out")
        captions = []
    elif not engine.needs_reference and not args.refine:
        if not captions or not os.path.isfile(image):  # noqa: PTH113 - a text may be longer than names are
            captions.insert(0, image)
        else:
            complain(f"this model reads no image; {shown(image)} is left out")
        image = None
    return image, captions


def _balance(given: Sequence[str]) -> dict[str, float] | None:
    """Factors by the names of terms, of "TERM=FACTOR" each."""
    factors: dict[str, float] = {}
    for one in given:
        name, separator, number = one.partition("=")
        try:
            factor = float(number)
        except ValueError:
            separator = ""
        if not separator:
            raise UsageError(f"--balance {shown(one)}: expected TERM=FACTOR, e.g. implicit_similarity=1.5")
        if name in factors:
            raise UsageError(f"--balance names {shown(name)} twice")
        factors[name] = factor
    return factors or None


def _search_vectors(parser: CirParser, args: argparse.Namespace) -> None:
    """Answer the vectors of a file, one table each."""
    alone = (
        "bundle",
        "text",
        "refine",
        "sheet",
        "explain",
        "exclude_reference",
        "exif_orientation",
        "balance",
    )
    for name in alone:
        if getattr(args, name):
            parser.error(f"--vector takes the place of BUNDLE, IMAGE and TEXT; leave out {name}")
    if args.gallery is None:
        parser.error("--vector needs --gallery FOLDER")
    if args.device not in ("auto", "cpu", "cuda"):
        parser.error(f"--vector runs no graph; expected --device auto, cpu or cuda, not {args.device}")
    from cir_infer.searching.vectors import METRICS, read_vectors
    from cir_infer.vector_searcher import VectorSearcher

    backend = "cuda" if args.device == "cuda" else "auto"
    metric = args.metric or METRICS[0]
    with VectorSearcher(args.gallery, backend, args.threads, fingerprint=args.fingerprint) as searcher:
        answers = searcher.search_vectors(
            read_vectors(args.vector), args.k, args.where, args.exclude, metric=metric
        )
        if args.json:
            print_json(
                {
                    "gallery": searcher.gallery.path,
                    "vectors": args.vector,
                    "metric": metric,
                    "answers": [{"hits": [hit.as_dict() for hit in hits]} for hits in answers],
                }
            )
            return
    for number, hits in enumerate(answers):
        if len(answers) > 1:
            print(f"{'' if number == 0 else chr(10)}vector {number}")
        print(hits)


def _explanations(hits: Hits) -> list[dict[str, Any]]:
    """Of every hit, or why there is none."""
    found = hits.explain_all(errors="return", progress=True)
    return [
        {"id": hit.id, "error": str(one)} if isinstance(one, CirError) else one.as_dict()
        for hit, one in zip(hits, found, strict=True)
    ]


def _check_sheet(path: Path | None) -> None:
    """Refuse a place where the contact sheet cannot be, before anything is asked."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise UsageError(f"--sheet is {shown(path)}; the contact sheet is a PNG, so name it with .png")
    try:
        check_replaceable(path)
        there = path.absolute().parent.is_dir()
    except OSError:
        there = False
    if not there:
        raise UsageError(f"--sheet is {shown(path)}; expected a file in a folder that is there")


def _save_sheet(path: Path, reference: Any, text: Any, hits: Hits, explain: bool) -> None:
    from cir_infer.drawing.sheet import contact_sheet

    drawn = io.BytesIO()
    contact_sheet(reference, text, hits, explain=explain).save(drawn, "PNG", dpi=(144, 144))
    target = Path(os.path.realpath(path))  # a circle of links is told when it is written to
    try:
        with replacing(target) as file:
            file.write(drawn.getvalue())
    except OSError as error:
        raise CirError(f"the contact sheet {path} cannot be written: {error.strerror or error}") from error
