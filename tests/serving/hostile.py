"""Requests that nobody sends by mistake: bytes, multipart tricks, odd Unicode, huge heads, slow clients.

    python -m tests.serving.hostile --requests 100000

starts a service over a tiny gallery and sends them. Only 4xx may come back (or, to a request that is sound by
chance, an answer), and the service has to answer afterwards.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.serving.support import make_gallery, png, running

_TEXTS = (
    "is red",
    "",
    "\0",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "a" * 6000,
    "‮red",
    "🟥" * 300,
    "é́́́",
    "%00",
    "{}",
    "' or 1=1 --",
    "../../etc/passwd",
)
_PATHS = (
    *(
        "/v1/search",
        "/v1/search/batch",
        "/v1/items",
        "/v1/items/sku-1",
        "/v1/items/sku-1/image",
        "/v1/fields",
    ),
    *("/v1/items/%2e%2e%2f%2e%2e%2fetc%2fpasswd/image", "/assets/../app.py", "/assets/%00", "/v1/items/%ff"),
    *(
        "/" + "a" * 9000,
        "//",
        "/..",
        "/v1/items?after=99999999999999999999",
        "/v1/items?where=%7b%7b",
        "/?%",
        "*",
    ),
    *(
        "/v1/items?where=a+=+1+and+" * 40,
        "/v1/items/sku-1/image?size=99999999999",
        "http://127.0.0.1:1/",
        "/v1/search#",
    ),
)
_METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"HEAD",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"\xff",
    b"",
)
_TYPES = (
    "application/json",
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "text/plain",
    "image/png",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=" + "x" * 300,
    "",
)


def request_of(random_: random.Random) -> bytes:
    """One request, or what takes its place."""
    kind = random_.random()
    if kind < 0.1:
        return random_.randbytes(random_.choice((1, 20, 500, 5000)))
    body = _body(random_)
    path = random_.choice(_PATHS) if random_.random() < 0.6 else "/v1/search"
    method = b"POST" if random_.random() < 0.6 else random_.choice(_METHODS)
    head = [method + b" " + path.encode() + b" HTTP/" + _mostly(random_, b"1.1", b"1.0", b"9.9", b"")]
    head.append(b"Host: " + _mostly(random_, b"localhost", b"evil.example", b"", b"\xff"))
    natural = _TYPES[1] if body.startswith(b"--b") else _TYPES[0]
    head.append(b"Content-Type: " + (natural if random_.random() < 0.7 else random_.choice(_TYPES)).encode())
    length = random_.random()
    if length < 0.8:
        head.append(b"Content-Length: %d" % len(body))
    elif length < 0.85:
        head.append(
            b"Content-Length: " + random_.choice((b"-1", b"99999999999", b"x", b"1\r\nContent-Length: 2"))
        )
    elif length < 0.95:
        head.append(b"Transfer-Encoding: chunked")
        body = (
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            if random_.random() < 0.7
            else b"ffffffffff\r\n" + body
        )
    for _ in range(random_.choice((0, 0, 1, 3, 120))):
        noise = random_.randbytes(random_.choice((0, 9, 400)))
        odd = random_.random() < 0.02
        value = noise.replace(b"\n", b"") if odd else noise.hex().encode()
        head.append(b"X-%d: %s" % (random_.randrange(99), value))
    if random_.random() < 0.1:
        head.append(b"Authorization: Bearer " + random_.randbytes(30).hex().encode())
    if random_.random() < 0.1:
        head.append(
            b"Origin: " + random_.choice((b"null", b"https://evil.example", b"\x00", b"http://localhost"))
        )
    made = b"\r\n".join(head) + b"\r\n\r\n" + body
    if random_.random() < 0.15:  # a few bytes are others
        changed = bytearray(made)
        for _ in range(random_.randrange(1, 6)):
            changed[random_.randrange(len(changed))] = random_.randrange(256)
        made = bytes(changed)
    return made


def _mostly(random_: random.Random, usual: bytes, *odd: bytes) -> bytes:
    return usual if random_.random() < 0.9 else random_.choice(odd)


def _body(random_: random.Random) -> bytes:
    text = random_.choice(_TEXTS)
    kind = random_.random()
    if kind < 0.35:
        name = random_.choice(
            ("text", "image", "k", "where", "exclude", "other", "text\r\nX: y", "a" * 200, "")
        )
        value = random_.choice(
            (text.encode(), png(1), png(1)[: random_.randrange(200)], b"9" * 50, b"\xff\xfe")
        )
        part = f'Content-Disposition: form-data; name="{name}"; filename="../../x"\r\n\r\n'.encode() + value
        ends = random_.choice((b"\r\n--b--\r\n", b"\r\n--b--", b"\r\n--b", b""))
        return (b"--b\r\n" + part + b"\r\n") * random_.choice((1, 1, 2, 400)) + b"--b\r\n" + part + ends
    if kind < 0.7:
        value = random_.choice(
            (
                '"is red"',
                "5",
                "null",
                "[]",
                '{"a":1}',
                "1e999",
                "-0",
                "true",
                '"\\ud800"',
                '["a","b","c"]',
                "[" * 3000,
            )
        )
        member = random_.choice(
            ("text", "item", "image", "k", "where", "exclude", "queries", "__proto__", "exclude_reference")
        )
        return f'{{"item":"sku-1","text":"is red","{member}":{value}}}'.encode()
    if kind < 0.8:
        return (
            b'{"queries":['
            + b",".join([b'{"item":"sku-1","text":"is red"}'] * random_.choice((0, 2, 500)))
            + b"]}"
        )
    return random_.choice((b"", b"{", b"null", b"[" * 5000, random_.randbytes(300), text.encode(), png(2)))


def send(port: int, data: bytes, slow: bool = False) -> list[int]:
    """The statuses that come back, of the first answer that is whole; none if the service just closes."""
    said = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as connection:
        if slow:
            for at in range(0, min(len(data), 40), 8):
                connection.sendall(data[at : at + 8])
                time.sleep(0.01)
        else:
            connection.sendall(data)
        connection.settimeout(3)
        while not _whole(said) and (chunk := connection.recv(65536)):
            said += chunk
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


def _whole(said: bytes) -> bool:
    head, found, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(found) and len(body) >= (int(length[1]) if length else 0)


def attack(port: int, count: int, seed: int) -> Counter[int]:
    """Send so many; statuses and how often they came, 0 for none.

    Raises:
        AssertionError: the service failed.
    """
    chance, told = random.Random(seed), Counter[int]()
    for number in range(count):
        data = request_of(chance)
        statuses = send(port, data, slow=number % 500 == 499)
        assert all(status < 500 for status in statuses), (seed, number, statuses, data[:2000])
        told.update(statuses or [0])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=48)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # of each request that is none
    with (
        tempfile.TemporaryDirectory() as folder,
        running(make_gallery(Path(folder)), read_timeout=2) as found,
    ):
        before, told, at_once = memory(), Counter[int](), options.clients
        for start in range(0, options.requests, 100 * at_once):
            seeds = range(options.seed + start, options.seed + start + at_once)
            with ThreadPoolExecutor(at_once) as threads:
                for part in threads.map(lambda seed: attack(found.client.port, 100, seed), seeds):
                    told += part
            told_so_far = f"{dict(sorted(told.items()))}, {memory():.0f} MiB"
            print(f"{start + 100 * at_once:,}: {told_so_far}", file=sys.stderr, flush=True)
        answer = found.client("POST", "/v1/search", {"item": "sku-1", "text": "is red"})
        assert answer.status == 200
        sent, came = f"{options.requests:,} requests", dict(sorted(told.items()))
        print(f"{sent}, {came}; {before:.0f} MiB before, {memory():.0f} after")


def memory() -> float:
    """MiB of this process that nothing else shares."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
