"""`cir-cluster serve`: a sharded gallery behind HTTP on Ray Serve."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cir_infer.console.common import print_json
from cir_infer.console.figures import counted
from cir_infer.errors import UsageError
from cir_infer.runtime.device_names import DEVICES

if TYPE_CHECKING:
    from cir_infer.cluster.serving import Replicas

__all__ = ["add_serve", "serve", "unserve"]

Options = argparse.Namespace


def add_serve(made: argparse.ArgumentParser) -> None:
    """The arguments of the action. What is not here is as for `cir-serve` without flags."""
    made.add_argument("folder", metavar="FOLDER", help="the sharded gallery, at this path on every machine")
    made.add_argument(
        "--bundle", default="", help="the exported model (default: what the gallery says made its rows)"
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    made.add_argument("--port", type=int, default=8000, help="on every machine (default 8000)")
    made.add_argument("--device", choices=DEVICES, default="auto", help="where graphs run (default auto)")
    made.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of an engine and of a shard's call"
    )
    made.add_argument("--api-key-file", metavar="FILE", help="API keys, at this path on every machine")
    made.add_argument("--no-auth", action="store_true", help="ask for no key although others can connect")
    made.add_argument(
        "--allow-host", dest="allow_hosts", metavar="NAME", action="append", default=[], help="see cir-serve"
    )
    made.add_argument("--remote-images", metavar="ADDRESS", action="append", default=[], help="see cir-serve")
    made.add_argument("--no-page", dest="page", action="store_false", help="no page at /")
    made.add_argument("--max-batch", type=int, default=32, metavar="N", help="see cir-serve")
    made.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="see cir-serve")
    made.add_argument("--gpus", type=float, default=0, metavar="N", help="that Ray keeps for each engine")
    for flag, what in (("--queries", "engines with the routes in front"), ("--replicas", "of each shard")):
        made.add_argument(
            flag, default="1", metavar="N|A-B", help=f"{what}; A-B lets Ray Serve scale (default 1)"
        )


def _replicas(text: str, flag: str, gpus: float = 0) -> Replicas:
    from cir_infer.cluster.serving import Replicas

    least, _, most = text.partition("-")
    try:
        found = Replicas(int(least), int(most or least), gpus)
    except ValueError:
        found = Replicas(0)
    if not 1 <= found.least <= found.most:
        raise UsageError(f"{flag} is {text[:40]!r}; expected a number such as 2, or bounds such as 1-8")
    return found


def serve(options: Options) -> int:
    """Run the action."""
    from cir_infer.cluster.serving import deploy
    from cir_infer.serving.settings import Settings

    settings = Settings.of({**vars(options), "gallery": options.folder, "access_log": False})
    deploy(
        options.name,
        settings,
        queries=_replicas(options.queries, "--queries", options.gpus),
        shards=_replicas(options.replicas, "--replicas"),
        address=options.address,
    )
    address = f"http://{options.host}:{options.port}"
    if options.json:
        print_json({"name": options.name, "address": address})
    else:
        print(f"{options.name} over {options.folder}: {address}, until `cir-cluster unserve {options.name}`")
    return 0


def unserve(options: Options) -> int:
    """Run the action; returns 1 if there was nothing of the name."""
    from cir_infer.cluster.serving import remove

    ended = remove(options.name, address=options.address)
    if options.json:
        print_json({"name": options.name, "ended": ended})
    else:
        print(f"{counted(len(ended), 'application')} ended; the gallery stays as it is")
    return 0 if ended else 1
