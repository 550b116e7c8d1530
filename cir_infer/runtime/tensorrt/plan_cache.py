"""The folder of plans: found by their key, written atomically, built by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cir_infer.errors import DeviceError
from cir_infer.processes.locked_files import locked_file
from cir_infer.runtime.kept.folder import is_news, kept_folder, not_only_ours, write_sealed
from cir_infer.runtime.tensorrt.plan_file import PlanFile, PlanKey, read_plan

__all__ = ["PlanCache", "cache_folder", "l4t_release"]

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$CIR_PLAN_CACHE, or cir-infer/plans in the user's cache folder.

    Raises:
        DeviceError: the user has no home folder.
    """
    try:
        return kept_folder("CIR_PLAN_CACHE", "plans")
    except OSError as error:
        raise DeviceError(f"there is no place for a plan cache: {error.strerror}") from error


def l4t_release(path: Path = Path("/etc/nv_tegra_release")) -> str | None:
    """The release of Jetson's system, e.g. "36.4.0"; None on other machines.

    Its first line reads `# R36 (release), REVISION: 4.0, GCID: ...`.
    """
    try:
        found = re.match(r"#\s*R(\d+).*?REVISION:\s*([\d.]+)", path.read_text("utf-8", "replace"))
    except OSError:
        return None
    return f"{found[1]}.{found[2]}" if found else None


class PlanCache:
    """Plans in one folder.

    Args:
        folder: made if it is not there.

    Raises:
        DeviceError: it cannot be made, or others may write to it: a plan holds programs, so whoever writes
            plans decides what runs on the GPU.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            others = not_only_ours(folder)
        except OSError as error:
            raise DeviceError(
                f"the plan cache {folder} cannot be made ({error.strerror}); set CIR_PLAN_CACHE to a folder "
                "that you may write to"
            ) from error
        if others:
            raise DeviceError(
                f"the plan cache {folder} is not trusted, for plans are programs: {others}, or set "
                "CIR_PLAN_CACHE to a folder of your own"
            )

    def path(self, name: str, key: PlanKey) -> Path:
        """Where the plan of a graph is or will be."""
        return self.folder / f"{name}-{key.digest[:32]}.plan"

    def find(self, name: str, key: PlanKey) -> PlanFile | str:
        """The plan of a graph, or in words why there is none to use."""
        path = self.path(name, key)
        found = read_plan(path)
        if found is None:
            return f"no plan was built yet{self._nearest(name, key)}"
        if isinstance(found, str):
            return f"the plan {path} cannot be used: {found}"
        if found.key != key.to_json():
            return f"the plan {path} was built for something else: {key.difference(found.key)}"
        return found

    def store(self, name: str, key: PlanKey, plan: PlanFile) -> Path:
        """Keep a plan; the file appears whole or not at all.

        Raises:
            DeviceError: it cannot be written, e.g. because the disk is full.
        """
        path = self.path(name, key)
        try:
            write_sealed(path, plan.to_bytes())
        except OSError as error:
            raise DeviceError(
                f"the plan {path} cannot be written ({error.strerror}); free some space or set "
                "CIR_PLAN_CACHE to another folder"
            ) from error
        return path

    @contextmanager
    def building(self, name: str, key: PlanKey) -> Iterator[None]:
        """Hold the lock of one plan; other processes wait, and find it built. It dies with the process.

        A folder that cannot be written to, e.g. in a read-only image, is read without a lock, and so is one
        on a file system that has none.
        """
        lock = self.path(name, key).with_suffix(".lock")
        try:
            file = locked_file(io.FileIO, lock, "r+", True, _opened)
        except OSError:
            yield
            return
        with file:
            with suppress(OSError):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.warning("waiting for another process that builds the plan of the %s graph", name)
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def timings(self, key: PlanKey) -> bytes:
        """The timing cache of a GPU and version, empty if there is none or it is damaged."""
        found = read_plan(self._timings_path(key))
        return found.plan if isinstance(found, PlanFile) else b""

    def store_timings(self, key: PlanKey, timings: bytes) -> None:
        """Keep a timing cache for the builds to come. Losing it costs time only, so nothing is raised."""
        try:
            write_sealed(self._timings_path(key), PlanFile({}, {}, timings).to_bytes())
        except OSError as error:
            if is_news(self._timings_path(key), error.errno):
                _log.warning("the timing cache cannot be written: %s", error)

    def checked_with(self, name: str, key: PlanKey) -> str | None:
        """The driver with which the plan was last tried in a process of its own."""
        try:
            return self.path(name, key).with_suffix(".driver").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def note_checked(self, name: str, key: PlanKey, driver: str) -> None:
        """Remember that the plan loads with this driver, where the folder can be written to."""
        with suppress(OSError):
            write_sealed(self.path(name, key).with_suffix(".driver"), driver.encode())

    def seconds_of_last_build(self, name: str, key: PlanKey) -> float | None:
        """How long the newest plan of such a graph took on this GPU; None if there is none."""
        return max(
            (
                (path.stat().st_mtime, float(found.built.get("seconds", 0)))
                for path, found in self._others(name)
                if found.key.get("gpu") == key.gpu
            ),
            default=(0.0, None),
        )[1]

    def _timings_path(self, key: PlanKey) -> Path:
        same = [key.tensorrt, key.compute_capability, key.gpu, key.l4t]
        digest = hashlib.sha256(json.dumps(same).encode()).hexdigest()
        return self.folder / f"timings-{digest[:32]}.cache"

    def _nearest(self, name: str, key: PlanKey) -> str:
        """What the newest plan of the same graph differs in: another GPU, another TensorRT."""
        others = [
            (path.stat().st_mtime, key.difference(found.key))
            for path, found in self._others(name)
            if found.key.get("graph") == key.graph
        ]
        return f" for these; the newest one has {max(others)[1]}" if others else ""

    def _others(self, name: str) -> Iterator[tuple[Path, PlanFile]]:
        """The plans of graphs of that name, of whatever bundle and GPU."""
        for path in self.folder.glob(f"{name}-*.plan"):
            found = read_plan(path)
            if isinstance(found, PlanFile):
                yield path, found


def _opened(lock: str, _: int) -> int:
    return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
