"""A service over a tiny gallery, on a socket, in a thread; and a client that hides nothing."""

from __future__ import annotations

import http.client
import io
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from cir_infer import Engine, Gallery, Searcher
from cir_infer.serving.server import listen, make_server
from cir_infer.serving.service import Service
from cir_infer.serving.settings import Settings
from tests.bundles import write_tiny_bundle

COUNT = 40
ODD_IDS = ("a/b.png", "ä ö/%2F?#.png", "..", "nul\0nul")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        assert self.headers["content-type"] == "application/problem+json", self
        return str(self.json["type"].rpartition(":")[2])


class Client:
    """One request a connection, unless `connection` is used."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self.port, self.key = port, key

    def __call__(
        self, method: str, path: str, body: Any = None, timeout: float = 30, **headers: str
    ) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.key is not None:
            named.setdefault("Authorization", f"Bearer {self.key}")
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            named.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, told, response.read())
        finally:
            connection.close()

    def form(
        self, path: str, fields: list[tuple[str, str]], image: bytes | None = None, **headers: str
    ) -> Answer:
        body, kind = form(fields, image)
        return self("POST", path, body, Content_Type=kind, **headers)

    def search(self, **query: Any) -> Answer:
        return self("POST", "/v1/search", query)


def address(item: str) -> str:
    return f"/v1/items/{quote(item, safe='')}"


def form(fields: list[tuple[str, str]], image: bytes | None = None) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    if image is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + image + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def png(seed: int, size: tuple[int, int] = (24, 30)) -> bytes:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def make_gallery(folder: Path, system: str = "artemis") -> Path:
    """A tiny bundle and its gallery; returns the bundle."""
    bundle = write_tiny_bundle(folder / "artemis.cir", system)
    images = []
    for number in range(COUNT):
        images.append(folder / f"picture{number:02}.png")
        images[-1].write_bytes(png(number))
    ids = [f"sku-{number}" for number in range(COUNT - len(ODD_IDS))] + list(ODD_IDS)
    metadata = [{"colour": "red" if n % 2 else "blue", "price": n} for n in range(COUNT)]
    with (
        Engine(bundle, device="cpu", threads=1) as engine,
        Gallery.create(folder / "artemis.gallery", engine, dtype="float32") as gallery,
    ):
        gallery.add(images, ids=ids, metadata=metadata)
    return bundle


class Running(NamedTuple):
    client: Client
    service: Service
    server: Any


@contextmanager
def running(bundle: Path, key: str | None = None, **changes: Any) -> Iterator[Running]:
    """A service, as `cir-serve` runs it but for the process; as patient as a busy machine needs."""
    patient = {"timeout": 120.0, "read_timeout": 120.0}
    settings = replace(
        Settings(str(bundle), device="cpu", threads=1, port=0, access_log=False, drain=10, batches=1),
        **patient | changes,
    )
    opened = listen(settings.host, 0)
    service = Service(settings)
    server = make_server(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    port = opened.getsockname()[1]
    thread.start()
    try:
        yield Running(Client(port, key), service, server)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


class Gated(Searcher):
    """A searcher whose batches wait at a gate, and which counts them."""

    gate: threading.Event
    arrived: threading.Semaphore
    sizes: list[int]

    @staticmethod
    def under(service: Service) -> Gated:
        """Put one into a running service."""
        (opened,) = [service.current._opened]
        searcher = opened.searcher
        searcher.__class__ = Gated
        assert isinstance(searcher, Gated)
        searcher.gate, searcher.arrived, searcher.sizes = threading.Event(), threading.Semaphore(0), []
        return searcher

    def query_batch(self, images: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(images))
        self.arrived.release()
        assert self.gate.wait(120)
        return super().query_batch(images, texts, *args, **kwargs)


def together(calls: list[Any]) -> list[Any]:
    """What calls return that run at the same time."""
    results: list[Any] = [None] * len(calls)

    def run(at: int) -> None:
        results[at] = calls[at]()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results
