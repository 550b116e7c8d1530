"""Glob patterns: `*`, `?`, `[...]`, `{a,b}`, and `**` for folders at any depth.

The standard library's `glob` passes over what it cannot read without a word and knows no braces; here each
folder is listed as for any other source.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cir_infer.errors import DatasetError, UsageError, shown
from cir_infer.indexing.formats import IMAGE_ENDINGS
from cir_infer.indexing.items import Broken, Item, Survey, file_item
from cir_infer.indexing.source import Named
from cir_infer.indexing.walking import LINKED_FOLDERS, Found, examine, listing
from cir_infer.inputs.locations import absolute

__all__ = ["GlobSource", "is_pattern"]

_MAGIC = re.compile(r"[*?\[]|\{[^{}]*,[^{}]*\}")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 256
"""So many patterns may come of one with braces."""

_State = tuple[int, int]
"""Which of the patterns, and how many of its parts have been matched."""


def is_pattern(text: str) -> bool:
    """Whether a text has signs of a pattern in it."""
    return _MAGIC.search(text) is not None


class GlobSource(Named):
    """The files that match a pattern; ids are relative to its fixed part.

    Parts of the pattern that exist as they are written are those folders, also with brackets in their
    names. If the last part names no ending (`photos/*`), files are taken by their endings as in a folder.
    """

    def __init__(self, pattern: str, suffixes: frozenset[str] = IMAGE_ENDINGS) -> None:
        super().__init__(pattern)
        self._suffixes = suffixes
        parts = list(Path(pattern).parts)
        base = parts.pop(0) if parts and os.path.isabs(parts[0]) else "."  # noqa: PTH117
        while len(parts) > 1 and _is_fixed(base, parts[0]):
            base = os.path.join(base, parts.pop(0))  # noqa: PTH118
        self._base = os.path.realpath(base)
        self._patterns = [
            [None if part == "**" else re.compile(fnmatch.translate(part)) for part in Path(text).parts]
            for text in _expanded("/".join(parts), pattern)
        ]
        self._by_ending = not _has_ending(parts[-1])

    def count(self) -> int | None:
        """How many files match now."""
        return sum(isinstance(entry, Found) for entry in self._found(Survey()))

    def items(self) -> Iterator[Item | Broken]:
        """The files, folder by folder, in the order of their names.

        Raises:
            DatasetError: the folder that the pattern begins with is not there.
        """
        self._survey.clear()
        root = self._base.rstrip(os.sep) + os.sep
        for entry in self._found(self._survey):
            if isinstance(entry, Found):
                yield file_item(entry.path[len(root) :], absolute(entry.path), status=entry.status)
            elif entry.id == self._base:
                raise DatasetError(f"{entry.reason}; the pattern is {shown(self.name)}")
            else:
                yield replace(entry, id=entry.id[len(root) :])

    def _found(self, survey: Survey) -> Iterator[Found | Broken]:
        start = self._closed({(number, 0) for number in range(len(self._patterns))})
        waiting = self._entries(self._base, start, survey)
        while waiting:
            entry, states = waiting.pop()
            if isinstance(entry, Broken):
                yield entry
                continue
            after = self._step(states, entry.name)
            last = any(at == len(self._patterns[number]) for number, at in after)
            inside = self._inside(entry, states, after, survey)
            if inside:
                waiting += self._entries(entry.path, inside, survey)
            elif last and not _is_folder(entry, follow=True):
                found = examine(entry, self._suffixes, survey, None if self._by_ending else lambda _: True)
                if found is not None:
                    yield found
            elif last:
                survey.leave_out("folders that a pattern matches (name them, or add /**)")

    def _entries(
        self, folder: str, states: set[_State], survey: Survey
    ) -> list[tuple[os.DirEntry[str] | Broken, set[_State]]]:
        return [(entry, states) for entry in listing(folder, survey)[::-1]]

    def _inside(
        self, entry: os.DirEntry[str], states: set[_State], after: set[_State], survey: Survey
    ) -> set[_State]:
        """With which states to look into an entry, none if it is no folder or nothing in it can match.

        Links to folders are entered only by a part that names them, so there are no cycles.
        """
        inside = {(n, at) for n, at in after if at < len(self._patterns[n])}
        if not inside or _is_folder(entry, follow=False):
            return inside
        if not _is_folder(entry, follow=True):
            return set()
        named = self._closed(
            {
                (n, at + 1)
                for n, at in states
                if at + 1 < len(self._patterns[n])
                and (part := self._patterns[n][at]) is not None
                and part.match(entry.name)
            }
        )
        if not named:
            survey.leave_out(LINKED_FOLDERS)
        return named

    def _step(self, states: set[_State], name: str) -> set[_State]:
        after: set[_State] = set()
        for number, at in states:
            parts = self._patterns[number]
            if at == len(parts):
                continue
            part = parts[at]
            if part is None:
                after.add((number, at))
                if at == len(parts) - 1:
                    after.add((number, len(parts)))
            elif part.match(name):
                after.add((number, at + 1))
        return self._closed(after)

    def _closed(self, states: set[_State]) -> set[_State]:
        """`**` also stands for no folder at all."""
        closed = set(states)
        for number, at in states:
            parts = self._patterns[number]
            while at < len(parts) - 1 and parts[at] is None:
                at += 1
                closed.add((number, at))
        return closed


def _is_fixed(base: str, part: str) -> bool:
    return not is_pattern(part) or os.path.isdir(os.path.join(base, part))  # noqa: PTH112, PTH118


def _expanded(text: str, pattern: str) -> list[str]:
    """The texts that come of one with braces."""
    done: list[str] = []
    waiting = [text]
    while waiting:
        if len(done) + len(waiting) > _MOST:
            raise UsageError(f"{shown(pattern)}: more than {_MOST} patterns come of its braces; use several")
        text = waiting.pop(0)
        match = _BRACES.search(text)
        if match is None:
            done.append(text)
        else:
            waiting += [
                text[: match.start()] + choice + text[match.end() :] for choice in match[1].split(",")
            ]
    return list(dict.fromkeys(done))


def _has_ending(part: str) -> bool:
    """Whether a part of a pattern says which ending it wants."""
    return "." in part


def _is_folder(entry: os.DirEntry[str], follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False
