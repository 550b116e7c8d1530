"""Fetching packages: what is interrupted goes on, what is not as published is refused, archives too."""

from __future__ import annotations

import base64
import functools
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cir_eval.datasets.emoji import tarballs
from cir_eval.datasets.emoji.fetching import fetched
from cir_eval.datasets.emoji.packages import STYLES, Package
from cir_eval.datasets.emoji.tarballs import pictures_of
from cir_infer.errors import DatasetError
from tests.datasets.emoji_packages import packed, tarball

CONTENT = bytes(range(256)) * 1024


class Registry(HTTPServer):
    """Serves `CONTENT` at every path but /missing, and breaks off the first answers after so many bytes."""

    def __init__(self, breaks: list[int], ranges: bool = True) -> None:
        self.breaks, self.ranges = breaks, ranges
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/it.tgz"


class Answer(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        rest = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks.pop(0)] if self.server.breaks else rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator:
    started: list[tuple[Registry, threading.Thread]] = []

    def start(*breaks: int, ranges: bool = True) -> Registry:
        registry = Registry(list(breaks), ranges)
        thread = threading.Thread(target=functools.partial(registry.serve_forever, 0.01))
        thread.start()
        started.append((registry, thread))
        return registry

    yield start
    for registry, thread in started:
        registry.shutdown()
        thread.join()
        registry.server_close()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    path = tmp_path / "published"
    path.write_bytes(CONTENT)
    return packed(path, Package("it", "1.0.0", 0, ""))


def plain(done, *_):
    return done


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_package_goes_on(serve, package: Package, tmp_path: Path, ranges: bool) -> None:
    registry = serve(100_000, 50_000, ranges=ranges)
    counted: list[int] = []

    def progress(done, total, name):
        assert (total, name) == (256, "it-1.0.0.tgz")
        for one in done:
            counted.append(one)
            yield one

    path = fetched(package, tmp_path / "cache", None, progress, registry.url)
    assert path.read_bytes() == CONTENT
    assert registry.asked[0] is None and len(registry.asked) == 3
    if ranges:
        assert registry.asked[1:] == ["bytes=100000-", "bytes=150000-"]
    assert counted == sorted(set(counted)) and counted[-1] <= 256
    fetched(package, tmp_path / "cache", None, plain, registry.url)
    assert len(registry.asked) == 3  # what is there is not fetched again


def test_a_full_disk_is_no_fault_of_the_network(serve, package: Package, tmp_path: Path) -> None:
    cache, registry = tmp_path / "cache", serve()
    cache.mkdir()
    (cache / f"{package.file}.part").symlink_to("/dev/full")
    with pytest.raises(DatasetError, match=r"cannot be written .*No space left.*see to the disk"):
        fetched(package, cache, None, plain, registry.url)
    assert len(registry.asked) == 1


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(serve, package: Package, tmp_path: Path) -> None:
    registry = serve(*([1000] * 5))
    with pytest.raises(DatasetError, match="try again and it goes on where it ended"):
        fetched(package, tmp_path, None, plain, registry.url)
    assert fetched(package, tmp_path, None, plain, registry.url).read_bytes() == CONTENT
    assert registry.asked[-1] == "bytes=5000-"


def test_what_is_not_as_published_is_refused_and_not_kept(serve, package: Package, tmp_path: Path) -> None:
    other = Package(package.name, package.version, package.size, "A" * 86 + "==")
    with pytest.raises(DatasetError, match=r"is not it 1\.0\.0 as it was published"):
        fetched(other, tmp_path / "cache", None, plain, serve().url)
    assert list((tmp_path / "cache").iterdir()) == []
    given = tmp_path / package.file
    given.write_bytes(CONTENT[:-1])
    with pytest.raises(DatasetError, match="size or sha512 differ"):
        fetched(package, tmp_path / "cache", tmp_path, plain)
    assert given.exists()  # it is somebody else's


def test_what_cannot_be_fetched_is_said_in_one_line(serve, package: Package, tmp_path: Path) -> None:
    registry = serve()
    with pytest.raises(DatasetError, match=r"missing cannot be fetched \(Not Found\)"):
        fetched(package, tmp_path, None, plain, registry.url.replace("it.tgz", "missing"))
    assert len(registry.asked) == 1  # that answer does not change
    with pytest.raises(DatasetError, match="name its folder with --from"):
        fetched(package, tmp_path, None, plain, "http://127.0.0.1:1/it.tgz")


def test_the_packages_are_the_registrys() -> None:
    for style in STYLES.values():
        assert style.package.url.startswith("https://registry.npmjs.org/")
        assert len(base64.b64decode(style.package.sha512, validate=True)) == 64


def test_only_pictures_with_code_points_for_names_are_read(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/1f600.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("a/1f601.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/1f602.png"
    path = tarball(
        tmp_path / "it.tgz",
        {
            "a/1F602-FE0F.png": b"yes",
            "a/../1f603.png": b"no",
            "/a/1f604.png": b"no",
            "a/1f605.svg": b"no",
            "a/..png": b"no",
            "a/fe0f.png": b"no",
            "b/1f606.png": b"no",
        },
        [link, hard],
    )
    assert list(pictures_of(path, "a", ".png")) == [("1f602", b"yes")]


def test_an_archive_that_is_damaged_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tarball(tmp_path / "it.tgz", {"a/1f602.png": b"x" * 5000, "a/1f603.png": b"y" * 5000})
    for content in (path.read_bytes()[:60], b"no archive", b""):
        (tmp_path / "bad.tgz").write_bytes(content)
        with pytest.raises(DatasetError, match="cannot be read"):
            list(pictures_of(tmp_path / "bad.tgz", "a", ".png"))
    for limit, words in (
        ("_LARGEST", "of 5000 bytes"),
        ("_ALL", "files or 0 MB"),
        ("_MOST", "more than 1 files"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tarballs, limit, 1)
            with pytest.raises(DatasetError, match=words):
                list(pictures_of(path, "a", ".png"))
