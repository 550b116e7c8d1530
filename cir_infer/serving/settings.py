"""What a service is told: by `cir-serve`'s flags, or the environment variables of the same names."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cir_infer.errors import UsageError, shown
from cir_infer.extras import require
from cir_infer.inputs.arguments import checked_seconds
from cir_infer.inputs.remote import checked_address

__all__ = ["THUMBNAILS", "Settings", "is_loopback"]

THUMBNAILS = (128, 256, 512, 1024, 2048)
"""Longest sides, in pixels, in which items' images are given: few, so that few are kept."""

_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")
_NAME = re.compile(r"\*|[^/:?#@\s]+")
_PATHS = ("bundle", "gallery", "images", "api_key_file")


@dataclass(frozen=True)
class Settings:
    """A service's settings. Sizes are in bytes, times in seconds.

    Attributes:
        bundle: path of the bundle.
        gallery: path of the gallery; None for the bundle's own.
        host: the address to listen on.
        port: the port; 0 takes any that is free.
        device: see `Engine`.
        threads: see `Engine`.
        workers: processes that answer.
        shard: whether it answers a `ShardedSearcher`, to which it gives rows and sources.
        writable: whether items may be put, changed and deleted.
        images: folder for the images of items that are put; None is the gallery's path and ".images".
        api_key_file: file of the keys that are accepted; None asks for none.
        no_auth: no key although others than this machine can connect.
        remote_images: addresses at and below which the images of items are read from stores; others are not.
        allow_hosts: names by which the service may be addressed, besides its address; "*" for any.
        allow_origins: origins of other sites' pages that may use the service.
        page: whether the page at / is there.
        max_upload: the largest body of a request.
        max_pixels: the largest image.
        max_k: the most hits.
        max_batch: queries that are computed together at most; 1 computes each by itself.
        batches: that are computed at the same time; None for two on a processor of several cores, one on
            a GPU.
        queue: queries that may be in work or wait; more are refused at once.
        max_wait: for what is before a query, judged by what queries took lately; more are refused at once.
        concurrency: requests of all kinds at one time; more are refused at once.
        per_key: of these, with one key, or without one from one address.
        timeout: for the answer to a request, from its last byte.
        read_timeout: for a request to arrive, its head and its body each.
        drain: how long a stop waits for what was accepted.
        access_log: whether each request is logged.
        log_queries: whether the log may hold what was asked: texts, filters, ids.
    """

    bundle: str
    gallery: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    device: str = "auto"
    threads: int | None = None
    workers: int = 1
    shard: bool = False
    writable: bool = False
    images: str | None = None
    api_key_file: str | None = None
    no_auth: bool = False
    remote_images: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    page: bool = True
    max_upload: int = 20 << 20
    max_pixels: int = 50_000_000
    max_k: int = 200
    max_batch: int = 32
    batches: int | None = None
    queue: int = 64
    max_wait: float = 2.0
    concurrency: int = 256
    per_key: int = 64
    timeout: float = 10.0
    read_timeout: float = 20.0
    drain: float = 30.0
    access_log: bool = True
    log_queries: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "max_upload", "max_pixels", "max_k", "max_batch", "queue", "concurrency"):
            self._at_least(name, 1)
        if self.batches is not None:
            self._at_least("batches", 1)
        self._at_least("per_key", 1)
        for name, least in (("timeout", 1), ("read_timeout", 1), ("max_wait", 0), ("drain", 0)):
            checked_seconds(f"--{name.replace('_', '-')}", getattr(self, name), least)
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port is {shown(self.port)}; expected 0 (any that is free) to 65535")
        if not is_loopback(self.host) and self.api_key_file is None and not self.no_auth:
            raise UsageError(
                f"--host {shown(self.host)} lets other machines connect, and nothing asks them for a key; "
                "give --api-key-file FILE, or say --no-auth if something in front of cir-serve asks"
            )
        if self.api_key_file is not None and self.no_auth:
            raise UsageError("--api-key-file and --no-auth contradict each other; leave one out")

        for name in self.allow_hosts:
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"--allow-host is {shown(name)}; expected a name alone, without what stands before and "
                    "behind it in an address, e.g. shop.example, or *"
                )
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--allow-origin is {shown(origin)}; expected what browsers say of a page, its address "
                    "in small letters and up to the path, e.g. https://shop.example or http://localhost:3000"
                )
        for address in self.remote_images:
            require(f"--remote-images {checked_address(address)}", "pyarrow")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not least <= value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} is {shown(value)}; expected at least {least}")

    @property
    def gallery_path(self) -> Path:
        """Where the gallery is."""
        return Path(self.bundle).with_suffix(".gallery") if self.gallery is None else Path(self.gallery)

    @property
    def images_path(self) -> Path:
        """Where the images of items that are put go."""
        return Path(f"{self.gallery_path}.images") if self.images is None else Path(self.images)

    def absolute(self) -> Settings:
        """The same with every path from the root, for processes that run in another folder."""
        given: dict[str, Any] = {name: getattr(self, name) for name in _PATHS}
        return Settings.of(
            asdict(self) | {n: str(Path(path).absolute()) for n, path in given.items() if path}
        )

    def to_json(self) -> str:
        """For a worker's command line. No secrets: keys stay in their file."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Settings:
        """The inverse of `to_json`."""
        return Settings.of(json.loads(text))

    @staticmethod
    def of(told: Mapping[str, Any]) -> Settings:
        """Those of the same names among some values; the others are as they are by default.

        Raises:
            UsageError: one is out of its bounds, or they contradict each other.
        """
        chosen = {entry.name: told[entry.name] for entry in fields(Settings) if entry.name in told}
        lists = {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
        return Settings(**{**chosen, **lists})


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
