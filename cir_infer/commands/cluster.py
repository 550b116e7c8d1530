"""`cir-cluster`: the shards of a gallery as actors of a Ray cluster: started, looked after, ended."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cir_infer.commands.cluster_changing import add_change, add_rebalance, change, rebalance
from cir_infer.commands.cluster_indexing import add_index, index
from cir_infer.commands.cluster_serving import add_serve, serve, unserve
from cir_infer.console.common import CirParser, print_json, printable, run_command
from cir_infer.console.figures import counted
from cir_infer.console.tables import format_table
from cir_infer.errors import CirError
from cir_infer.extras import require

if TYPE_CHECKING:
    from cir_infer.shards.ray import RayShards

__all__ = ["main"]

Options = argparse.Namespace
_SECONDS = 30.0


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a replica does not answer, or a verification found problems."""
    options = _parser().parse_args(arguments)
    require("cir-cluster", "ray")
    if options.action in _WITHOUT_ACTORS:
        return _WITHOUT_ACTORS[options.action](options)
    from cir_infer.shards.ray import RayShards

    if options.action == "create":
        shards = RayShards.create(
            options.name,
            options.folder,
            options.replicas,
            address=options.address,
            scorer=options.scorer,
            threads=options.threads,
            processors=options.processors,
        )
        return _status(shards, options)
    return _ACTIONS[options.action](RayShards.attach(options.name, address=options.address), options)


def _status(shards: RayShards, options: Options) -> int:
    told = shards.each(lambda s: (s.about(_SECONDS).size, s.pid(_SECONDS), s.machine(_SECONDS)[:8]))
    rows = [
        {
            "shard": number,
            "replica": replica,
            "items": None if isinstance(said, CirError) else said[0],
            "process": None if isinstance(said, CirError) else said[1],
            "machine": None if isinstance(said, CirError) else said[2],
            "problem": str(said) if isinstance(said, CirError) else None,
        }
        for number, group in enumerate(told)
        for replica, said in enumerate(group)
    ]
    return _tell(options, {"name": shards.name, "version": shards.version, "replicas": rows}, rows)


def _verify(shards: RayShards, options: Options) -> int:
    told = shards.each(lambda shard: shard.verify(24 * 3600.0))
    none: list[str | None] = [None]
    rows = [
        {"shard": number, "replica": replica, "problem": problem}
        for number, group in enumerate(told)
        for replica, said in enumerate(group)
        for problem in ([str(said)] if isinstance(said, CirError) else said or none)
    ]
    return _tell(options, {"name": shards.name, "replicas": rows}, rows)


def _stop(options: Options) -> int:
    from cir_infer.shards.ray import RayShards

    count = RayShards.end(options.name, address=options.address)
    if options.json:
        print_json({"name": options.name, "stopped": count})
    else:
        print(f"{counted(count, 'actor')} ended; the galleries stay as they are")
    return 0 if count else 1


def _tell(options: Options, known: dict[str, Any], rows: Sequence[dict[str, Any]]) -> int:
    if options.json:
        print_json(known)
    else:
        header = list(rows[0])
        cells = [["" if row[name] is None else printable(str(row[name])) for name in header] for row in rows]
        print(format_table(header, cells, right=range(len(header) - 1)))
    return int(any(row["problem"] for row in rows))


def _restart(shards: RayShards, options: Options) -> int:
    shards.restart()
    return _status(shards, options)


def _renew(shards: RayShards, options: Options) -> int:
    return _status(shards.renewed(options.grace), options)


_WITHOUT_ACTORS: dict[str, Callable[[Options], int]] = {
    "change": change,
    "index": index,
    "rebalance": rebalance,
    "serve": serve,
    "stop": _stop,
    "unserve": unserve,
}
_ACTIONS: dict[str, Callable[[RayShards, Options], int]] = {
    "status": _status,
    "verify": _verify,
    "restart": _restart,
    "renew": _renew,
}


def _parser() -> CirParser:
    parser = CirParser(
        "cir-cluster",
        "The shards of a gallery on a Ray cluster: encoded there, and as actors that other programs ask "
        "through cir_infer.shards.ray.RayShards.attach. Start Ray with `ray start --head` first.",
        "cir-cluster index artemis.cir photos/ --gallery shop.shards --shards 8\n"
        "  cir-cluster create shop shop.shards --replicas 2\n"
        "  cir-cluster status shop --json\n"
        "  cir-cluster stop shop",
    )
    add = parser.actions()

    def placed(name: str, text: str, example: str) -> argparse.ArgumentParser:
        made = add(name, text, example)
        made.add_argument(
            "--address",
            default="auto",
            help="of Ray's cluster (default auto: this machine's; local: one that ends with the command)",
        )
        return made

    def action(name: str, text: str, example: str) -> argparse.ArgumentParser:
        made = placed(name, text, example)
        made.add_argument("name", metavar="NAME", help="of the actors: letters, digits, - and _")
        return made

    add_index(
        placed(
            "index",
            "encode images into a sharded gallery on every machine of the cluster; run again, it goes on",
            "artemis.cir photos/ 'more/*.tar' --gallery shop.shards --shards 8",
        )
    )

    for name, text, add_arguments, example in (
        ("rebalance", "change the number of shards while they answer and are written to", add_rebalance,
         "shop.shards --into 16 --name shop"),
        ("change", "encode all images with another bundle, then let its rows answer, all at once", add_change,
         "shop.shards better.cir --name shop"),
    ):  # fmt: skip
        made = placed(name, text, example)
        made.add_argument("folder", metavar="FOLDER", help="the sharded gallery")
        add_arguments(made)

    create = action("create", "start the actors", "shop shop.shards --replicas 2")
    create.add_argument("folder", metavar="FOLDER", help="the sharded gallery, at this path on every machine")
    create.add_argument("--replicas", type=int, default=1, metavar="N", help="of each shard (default 1)")
    create.add_argument(
        "--scorer", choices=("auto", "cpu", "cuda", "reference"), default="cpu", help="default cpu"
    )
    create.add_argument("--threads", type=int, default=1, metavar="N", help="of an actor's call (default 1)")
    create.add_argument(
        "--processors",
        type=float,
        default=0,
        metavar="N",
        help="that Ray keeps for each actor (default 0: none)",
    )
    action("status", "which replicas answer", "shop")
    action("verify", "read every file of every replica's gallery", "shop")
    add_serve(
        action(
            "serve",
            "serve the routes of cir-serve on Ray Serve, with one deployment a shard",
            "shop shop.shards --host 0.0.0.0 --api-key-file keys.txt --queries 1-4 --replicas 2",
        )
    )
    action("unserve", "end such a service", "shop")
    action("restart", "start the actors anew, one after the other, while the others answer", "shop")
    renew = action(
        "renew", "start actors for the shards that the folder has now, then end the old ones", "shop"
    )
    renew.add_argument(
        "--grace", type=float, default=10.0, metavar="SECONDS", help="see rebalance (default 10)"
    )
    action("stop", "end the actors", "shop")
    return parser
