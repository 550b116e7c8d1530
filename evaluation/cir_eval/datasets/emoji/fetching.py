"""Fetches a package's tarball: goes on where an earlier attempt ended, believes only the pinned digest."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cir_eval.datasets.emoji.packages import Package
from cir_infer.errors import DatasetError
from cir_infer.foreign import opened_file

__all__ = ["Progress", "fetched"]

_CHUNK = 1 << 16
_ATTEMPTS = 5
_TIMEOUT_S = 30

Progress = Callable[[Iterable[int], int, str], Iterable[int]]
"""Wraps an iterator over what was done of a total, under a name."""


def fetched(
    package: Package, folder: Path, given: Path | None, progress: Progress, url: str | None = None
) -> Path:
    """A package's tarball, on the disk and as it was published.

    Args:
        package: which.
        folder: where to put it; what an interrupted attempt left there is continued.
        given: a folder that holds tarballs which were fetched otherwise; nothing is fetched then.
        progress: see `Progress`; counts kB.
        url: another place to fetch it from than the registry.

    Raises:
        DatasetError: it cannot be fetched, is not in `given`, or is not the one that was published.
    """
    if given is not None:
        path = given / package.file
        if not path.is_file():
            raise DatasetError(f"{path} is missing; fetch it from {package.url}, or leave --from out")
        _check(package, path)
        return path
    path, part = folder / package.file, folder / f"{package.file}.part"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for _ in progress(_download(package, part, url or package.url), package.size // 1024, package.file):
            pass
        part.replace(path)
    try:
        _check(package, path)
    except DatasetError:
        path.unlink()  # or every later attempt would end here
        raise
    return path


def _download(package: Package, part: Path, url: str) -> Iterator[int]:
    """Fetch what is still missing; yields each kB."""
    reported = 0
    failed = ""
    for _ in range(_ATTEMPTS):
        done = part.stat().st_size if part.exists() else 0
        if done > package.size:
            part.unlink()
            done = 0
        if done == package.size:
            break
        try:
            for position in _rest(url, part, done, package.size):
                while reported < position // 1024:
                    reported += 1
                    yield reported
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            failed = str(getattr(error, "reason", error))[:200] or type(error).__name__
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                break
    if not part.exists() or part.stat().st_size != package.size:
        raise DatasetError(
            f"{url} cannot be fetched ({failed or 'the connection ended early'}); try again and it goes on "
            "where it ended, or fetch it otherwise and name its folder with --from"
        )


def _rest(url: str, part: Path, done: int, size: int) -> Iterator[int]:
    """Append what the server sends behind the first `done` bytes, up to `size`; yields how far it is."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        if done and answer.status != http.HTTPStatus.PARTIAL_CONTENT:  # it sends all of it again
            done = 0
        with _opened(part, done) as file:
            while done < size and (chunk := answer.read(min(_CHUNK, size - done))):
                _write(file, chunk, part)
                done += len(chunk)
                yield done


def _opened(part: Path, done: int) -> io.FileIO:
    try:
        file = io.FileIO(part, "r+" if done else "w")
    except OSError as error:
        raise _unwritable(part, error) from error
    file.seek(done)
    return file


def _write(file: io.FileIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[file.write(rest) or 0 :]
        except OSError as error:  # not the network's: to ask again would change nothing
            raise _unwritable(part, error) from error


def _unwritable(part: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"{part} cannot be written ({error}); see to the disk, then try again: it goes on there"
    )


def _check(package: Package, path: Path) -> None:
    digest = hashlib.sha512()
    if path.stat().st_size == package.size:
        with opened_file(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    if base64.b64encode(digest.digest()).decode() != package.sha512:
        raise DatasetError(
            f"{path} is not {package.name} {package.version} as it was published (size or sha512 differ); "
            f"remove it and fetch it again from {package.url}"
        )
