"""`cir-serve`: a bundle and its gallery behind HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cir_infer.console.common import CirParser, print_json, run_command
from cir_infer.console.environment import take_environment
from cir_infer.extras import modules_of, require
from cir_infer.runtime.device_names import DEVICES

if TYPE_CHECKING:
    import socket

    from cir_infer.serving.settings import Settings

__all__ = ["main"]

_PARTS = {"megabytes": 1 << 20, "megapixels": 1_000_000}


@run_command
def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until it is told to stop."""
    parser = _parser()
    take_environment(parser, "CIR_SERVE")
    options = parser.parse_args(arguments)
    from cir_infer.serving.settings import Settings

    settings = Settings.of(vars(options))
    require("cir-serve", *modules_of("serve"))
    _check(settings)
    from cir_infer.serving.server import listen

    _serve(settings, listen(settings.host, settings.port), options)


def _check(settings: Settings) -> None:
    """What is wrong with files is said before anything listens, and once, however many workers there are."""
    from cir_infer.bundle import Bundle
    from cir_infer.gallery import Gallery
    from cir_infer.serving.keys import Keys, tell_of_readers
    from cir_infer.shards.layout import ShardedGallery
    from cir_infer.shards.listing import is_sharded

    if settings.api_key_file is not None:
        Keys.read(settings.api_key_file)
        tell_of_readers(settings.api_key_file)
    Bundle(settings.bundle)
    kind = ShardedGallery if is_sharded(settings.gallery_path) else Gallery.open
    with kind(settings.gallery_path, read_only=True):
        pass


def _serve(settings: Settings, opened: socket.socket, options: argparse.Namespace) -> None:
    from cir_infer.serving.server import address_of, serve
    from cir_infer.serving.supervisor import supervise

    address = address_of(opened)

    def ready(*_: object) -> None:
        known = {"address": address, "bundle": settings.bundle, "gallery": str(settings.gallery_path)}
        if options.json:
            print_json(known)
        else:
            print(f"{known['bundle']} over {known['gallery']}: {address}")
        sys.stdout.flush()  # whoever started this waits for it

    if settings.workers == 1:
        serve(settings, opened, ready)
    else:
        supervise(settings, opened, options.verbose, ready)


def _parser() -> CirParser:
    parser = CirParser(
        "cir-serve",
        "Answer queries over HTTP, with a page to use at /. It listens on this machine only unless --host "
        "says otherwise. SIGHUP opens the bundle and the gallery again without dropping a request.",
        "cir-serve artemis.cir\n"
        "  cir-serve artemis.cir --gallery shop.gallery --writable --port 9000\n"
        "  cir-serve artemis.cir --host 0.0.0.0 --api-key-file keys.txt --workers 4",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the exported model (.cir)")
    parser.add_argument(
        "--gallery",
        metavar="FOLDER",
        help="or that of a sharded one (default: BUNDLE with the ending .gallery)",
    )
    _add_place(parser)
    _add_safety(parser)
    _add_limits(parser)
    return parser


def _add_place(parser: CirParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes any that is free (default 8080)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where graphs run (default auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="processors to use (default: all available)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that answer; they share the rows",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="answer a ShardedSearcher elsewhere too; it is given rows and the paths of images",
    )
    parser.add_argument("--no-page", dest="page", action="store_false", help="no page at /")
    parser.add_argument(
        "--access-log", action=argparse.BooleanOptionalAction, default=True, help="log each request on stderr"
    )
    parser.add_argument(
        "--log-queries",
        action="store_true",
        help="the log may hold texts, filters and ids (by default it does not)",
    )


def _add_safety(parser: CirParser) -> None:
    writing = parser.add_mutually_exclusive_group()
    writing.add_argument("--writable", action="store_true", help="let items be put, changed and deleted")
    writing.add_argument(
        "--read-only", dest="writable", action="store_false", help="refuse every change (the default)"
    )
    parser.set_defaults(writable=False)
    parser.add_argument(
        "--images", metavar="FOLDER", help="for images that are put (default: the gallery's path and .images)"
    )
    parser.add_argument(
        "--remote-images",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="read items' images from stores below it, e.g. s3://shop/photos (repeatable; default none)",
    )
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="API keys, one a line; needed where other machines can connect"
    )
    parser.add_argument("--no-auth", action="store_true", help="ask for no key although others can connect")
    parser.add_argument(
        "--allow-host",
        dest="allow_hosts",
        metavar="NAME",
        action="append",
        default=[],
        help="a name of this service besides its address; * for any (repeatable)",
    )
    parser.add_argument(
        "--allow-origin",
        dest="allow_origins",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="another site whose pages may use it, e.g. https://shop.example (repeatable)",
    )


def _add_limits(parser: CirParser) -> None:
    limits = parser.add_argument_group("limits")
    whole: tuple[tuple[str, str, int, str], ...] = (
        ("--max-upload", "megabytes", 20, "largest body of a request"),
        ("--max-pixels", "megapixels", 50, "largest image"),
        ("--max-k", "N", 200, "most hits"),
        ("--max-batch", "N", 32, "queries computed together at most; 1 computes each by itself"),
        ("--queue", "N", 64, "queries in work or waiting; more get 503 at once"),
        ("--concurrency", "N", 256, "requests of all kinds at a time; more get 503 at once"),
        ("--per-key", "N", 64, "of these, with one key or from one address; more get 429"),
    )
    for flag, unit, value, text in whole:
        many = _PARTS.get(unit, 1)
        shown = f"{text}, in {unit} (default {value})" if many > 1 else f"{text} (default {value})"
        limits.add_argument(flag, type=_times(many), default=value * many, metavar="N", help=shown)
    limits.add_argument(
        "--batches",
        type=int,
        metavar="N",
        help="computed at the same time (default 2 on a processor of several cores, 1 on a GPU)",
    )
    for flag, seconds, text in (
        ("--timeout", 10.0, "for an answer, from the request's last byte"),
        ("--max-wait", 2.0, "for the queries before one, judged by the last; with more it gets 503 at once"),
        ("--read-timeout", 20.0, "for a request to arrive"),
        ("--drain", 30.0, "how long a stop waits for what was accepted"),
    ):
        limits.add_argument(
            flag, type=float, default=seconds, metavar="SECONDS", help=f"{text} (default {seconds:g})"
        )


def _times(many: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            return int(text) if many == 1 else round(float(text) * many)
        except OverflowError as error:  # infinity
            raise ValueError from error

    read.__name__ = "number"  # what argparse calls it when it is none
    return read
