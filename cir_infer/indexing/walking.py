"""Walking over folders: every entry is an item, or is counted as left out, or is broken by itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cir_infer.errors import UsageError
from cir_infer.indexing.formats import describe_left_out, ending_of, file_looks_like_image, image_endings
from cir_infer.indexing.items import Broken, Survey
from cir_infer.inputs.locations import link_away
from cir_infer.inputs.opening import why

__all__ = [
    "AWAY",
    "HIDDEN",
    "LINKED_FOLDERS",
    "NOT_REGULAR",
    "Found",
    "examine",
    "images_below",
    "listing",
    "walk",
]

HIDDEN = "hidden"
LINKED_FOLDERS = "links to folders"
AWAY = "links to what is not there"
NOT_REGULAR = "no regular files"


class Found(NamedTuple):
    """A regular file, or a link to one: its path and what `os.stat` says of it."""

    path: str
    status: os.stat_result


def walk(folder: str, endings: frozenset[str], survey: Survey) -> Iterator[Found | Broken]:
    """The images below a folder, folder by folder, in the order of their names.

    Links to files are followed, links to folders are not, so there are no cycles; names that begin with a
    dot are left out. Nothing is recursive, so any depth is fine that the system has paths for.

    Args:
        folder: its path.
        endings: of files that are images; files without any ending are looked into.
        survey: is told what is left out.
    """
    waiting: list[os.DirEntry[str] | Broken] = listing(folder, survey)[::-1]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, Broken):
            yield entry
        elif _is_folder(entry):
            waiting += listing(entry.path, survey)[::-1]
        elif (found := examine(entry, endings, survey)) is not None:
            yield found


def images_below(folder: str | os.PathLike[str], features: bool = False) -> list[Path]:
    """The files of a folder that `cir-index` would index, by name, for what is judged or measured with them.

    Args:
        folder: its path. What cannot be seen below it is left out.
        features: see `image_endings`.

    Raises:
        UsageError: there are none; it says what is there.
    """
    survey = Survey()
    entries = walk(os.fspath(folder), image_endings(features), survey)
    found = sorted(Path(entry.path) for entry in entries if isinstance(entry, Found))
    if not found:
        beside = f"; left out: {describe_left_out(survey.left_out)}" if survey.left_out else ""
        raise UsageError(f"{folder} holds no {'.npy file' if features else 'image'}{beside}")
    return found


def listing(folder: str, survey: Survey) -> list[os.DirEntry[str] | Broken]:
    """The entries of a folder in the order of their names, or why they cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            kept = []
            for entry in entries:
                if entry.name.startswith("."):
                    survey.leave_out(HIDDEN)
                else:
                    kept.append(entry)
    except OSError as error:
        survey.unseen.append(folder)
        return [Broken(folder, folder, f"{folder}: cannot be listed ({why(error)})")]
    kept.sort(key=lambda entry: entry.name)
    return [*kept]


def examine(
    entry: os.DirEntry[str],
    endings: frozenset[str],
    survey: Survey,
    wanted: Callable[[str], bool] | None = None,
) -> Found | Broken | None:
    """An entry that is no folder: an image, a broken one, or None where it is left out and counted.

    Args:
        entry: of a folder.
        endings: see `walk`.
        survey: see `walk`.
        wanted: says by its name whether an entry is taken for an image; by default its ending does.
    """
    ending = ending_of(entry.name)
    image = ending in endings if wanted is None else wanted(entry.name)
    try:
        status = entry.stat()
    except (OSError, ValueError) as error:
        # The next pass may find what this one cannot see.
        survey.unseen.append(entry.path)
        away = isinstance(error, FileNotFoundError)
        if not image and away:
            survey.leave_out(AWAY)
            return None
        if away and not link_away(entry.path):
            return None  # removed since the folder was listed
        reason = "a link whose target is not there; is a drive not mounted?" if away else ""
        reason = reason or f"cannot be examined ({why(error)})"
        return Broken(entry.path, entry.path, f"{entry.path}: {reason}")
    if stat.S_ISDIR(status.st_mode):
        survey.unseen.append(entry.path)
        survey.leave_out(LINKED_FOLDERS)
    elif not stat.S_ISREG(status.st_mode):
        survey.leave_out(NOT_REGULAR)
    elif image or (wanted is None and not ending and file_looks_like_image(entry.path)):
        return Found(entry.path, status)
    else:
        survey.leave_out(ending or "without an ending")
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # `examine` finds out why
