"""A store of objects that speaks as much of S3 as it takes to list and to read, for real clients to ask.

Requests are remembered, and keys can be forbidden.
"""

from __future__ import annotations

import contextlib
import email.utils
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from cir_infer.inputs import remote
from tests.indexing.support import png

__all__ = ["LONG", "TELLS_ITS_CHILD", "Store", "Together", "eight_photos", "served"]

LONG = 30.0
"""Seconds after which what does not come will not."""
_WRITTEN = 1_700_000_000

TELLS_ITS_CHILD = """\
import sys
from cir_infer.inputs import store_asking
start = store_asking.start_child
def told(*given, **more):
    child = start(*given, **more)
    print(child.pid, flush=True)
    return child
store_asking.start_child = told
try:
    {asks}
except KeyboardInterrupt:
    sys.exit(130)
"""
"""A program that asks a store, and prints the number of the process that does it."""


class Store:
    """The objects of one bucket.

    Attributes:
        objects: bytes by key, with the second in which they were written.
        forbidden: keys, or beginnings of them, that nobody may read or list.
        requests: what was asked, as (method, key or prefix).
        page: keys in one answer to a listing.
        excuse: what it says of what is forbidden.
        endless: it says with every page of a listing that there is more, and where this page began; a text
        for listings of what begins so.
        lazy: it sends an object a byte at a time, for as long as somebody reads.
        before: called with the method and key or prefix of every request before it is answered, however long
        that takes; a status to refuse it with, None to answer it.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.forbidden: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.page = 3
        self.excuse = "AccessDenied"
        self.lazy = False
        self.endless: bool | str = False
        self.before: Callable[[str, str], int | None] = lambda method, key: None

    def put(self, key: str, data: bytes, when: int = _WRITTEN) -> None:
        self.objects[key] = (data, when)

    def listed(self, prefix: str, delimiter: str, after: str) -> tuple[list[str], bool]:
        """Keys, and what they begin with up to the delimiter, and whether there are more."""
        found = set()
        for key in self.objects:
            if key.startswith(prefix):
                rest = key[len(prefix) :]
                cut = rest.find(delimiter) if delimiter else -1
                found.add(key if cut < 0 else prefix + rest[: cut + 1])
        # A key that ends with the delimiter stands for its folder, and is one of its beginnings.
        later = sorted(one for one in found if one > after)
        return later[: self.page], len(later) > self.page


class Together:
    """Holds requests back until as many are there.

    Args:
        count: of them.
        wanted: says of a method and key whether it is one of them.
        order: in which they are let go, 1 for that of their coming, -1 for the other.
    """

    def __init__(self, count: int, wanted: Callable[[str, str], bool], order: int = 1) -> None:
        self.count, self.wanted, self.order = count, wanted, order
        self.came: list[str] = []
        self.gone: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, method: str, key: str) -> None:
        if not self.wanted(method, key):
            return
        with self._changed:
            if key in self.came:
                return  # a client that waits for some seconds asks again
            self.came.append(key)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self.came) >= self.count, LONG)
            turns = sorted(self.came, reverse=self.order < 0)
            self._changed.wait_for(lambda: turns[len(self.gone) % len(turns)] == key, LONG)
            self.gone.append(key)
            self._changed.notify_all()


def _handler(store: Store) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else what follows a header waits for its acknowledgement

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, body: bool) -> None:
            url = urlsplit(self.path)
            bucket, _, key = unquote(url.path).lstrip("/").partition("/")
            given = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            asked = key or given.get("prefix", "")
            store.requests.append((self.command, asked))
            if (status := store.before(self.command, asked)) is not None:
                self._refused(status, "Refused", body)
            elif bucket != store.bucket:
                self._refused(404, "NoSuchBucket", body)
            elif any(asked.startswith(wrong) for wrong in store.forbidden):
                self._refused(403, "AccessDenied", body)
            elif not key:
                self._listing(given, body)
            elif key not in store.objects:
                self._refused(404, "NoSuchKey", body)
            else:
                self._object(key, body)

        def _object(self, key: str, body: bool) -> None:
            data, when = store.objects[key]
            whole, status = len(data), 200
            headers = {"Last-Modified": email.utils.formatdate(when, usegmt=True), "ETag": f'"{when}"'}
            if (span := self.headers.get("Range")) is not None:
                first, _, last = span.removeprefix("bytes=").partition("-")
                data = data[int(first) : int(last) + 1 if last else None]
                status, headers["Content-Range"] = 206, f"bytes {first}-{int(first) + len(data) - 1}/{whole}"
            self._send(status, headers, data, body)

        def _listing(self, given: dict[str, str], body: bool) -> None:
            prefix, delimiter = given.get("prefix", ""), given.get("delimiter", "")
            endless = store.endless is True or (store.endless and prefix.startswith(store.endless))
            after = "" if endless else given.get("continuation-token", "")
            keys, more = store.listed(prefix, delimiter, after)
            parts = [
                f"<Name>{store.bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>"
                f"<KeyCount>{len(keys)}</KeyCount>"
            ]
            if more:
                token = given.get("continuation-token", "0") if endless else keys[-1]
                parts.append(f"<NextContinuationToken>{escape(token)}</NextContinuationToken>")
            for key in keys:
                if key in store.objects and not (delimiter and key.endswith(delimiter) and key != prefix):
                    data, when = store.objects[key]
                    time = email.utils.formatdate(when).split()
                    stamp = f"{time[3]}-11-{int(time[1]):02d}T{time[4]}.000Z"
                    parts.append(
                        f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                        f"<LastModified>{stamp}</LastModified></Contents>"
                    )
                else:
                    parts.append(f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>")
            text = f'<?xml version="1.0"?><ListBucketResult>{"".join(parts)}</ListBucketResult>'
            self._send(200, {"Content-Type": "application/xml"}, text.encode(), body)

        def _refused(self, status: int, code: str, body: bool) -> None:
            said = f"<Code>{code}</Code><Message>{escape(store.excuse)}</Message>"
            text = f'<?xml version="1.0"?><Error>{said}</Error>'
            self._send(status, {"Content-Type": "application/xml"}, text.encode(), body)

        def _send(self, status: int, headers: dict[str, str], data: bytes, body: bool) -> None:
            with contextlib.suppress(OSError):  # nobody waits for more
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in (data[n : n + 1] for n in range(len(data))) if store.lazy else (data,):
                    if body:
                        self.wfile.write(part)
                        time.sleep(0.05 if store.lazy else 0)

    return Handler


@contextlib.contextmanager
def served(patch: pytest.MonkeyPatch, bucket: str) -> Iterator[Store]:
    """A bucket, served; the environment says where it is and who asks, as that of a user's machine does."""
    store = Store(bucket)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"),
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("no_proxy", "127.0.0.1"),
    ):
        patch.setenv(name, value)
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def eight_photos() -> Iterator[Store]:
    """A bucket "shop" with photos, which whoever is in it may ask."""
    with pytest.MonkeyPatch.context() as patch, served(patch, "shop") as there:
        for number in range(8):
            there.put(f"photos/{number}.png", png(number))
        remote.only(None)
        yield there
