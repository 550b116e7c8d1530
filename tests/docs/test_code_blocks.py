"""What our documents show runs as pasted: Python is executed, commands exist with the flags shown."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from cir_eval.datasets.emoji import drawing as emoji_drawing
from cir_eval.datasets.emoji.building import build
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_infer import Engine, Gallery
from cir_infer.console.common import CirParser
from tests.bundles import write_tiny_bundle
from tests.datasets.emoji_packages import style_of
from tests.test_documents import DOCUMENTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FILES = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # which tells of what was
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:(?: {4,}[^\n]*)?\n)+")
INLINE = re.compile(r"`(cir-[a-z]+ [^`]*)`")
SAVED = re.compile(r"[Ss]ave this as `([\w.]+)`")


class Block(NamedTuple):
    """A block of code with the prose before it."""

    language: str
    code: str
    before: str


def blocks(file: Path) -> Iterator[Block]:
    text = file.read_text(encoding="utf-8")
    for match in FENCED.finditer(text):
        yield Block(match[1], match[2], text[: match.start()].rstrip().rpartition("\n")[2])
    for match in INDENTED.finditer(FENCED.sub("", text)):
        code = "\n".join(line[4:] for line in match[0].split("\n")).strip("\n")
        if re.match(r"(import|from) \w", code):
            yield Block("python", code, "")
        elif code:
            yield Block("sh", code, "")


def python_of(file: Path) -> list[Block]:
    return [block for block in blocks(file) if block.language == "python"]


WITH_PYTHON = [file for file in FILES if python_of(file)]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of emoji in one style."""
    folder = tmp_path_factory.mktemp("emoji")
    build(folder / "data", [style_of("noto", folder)], emoji_drawing.Plan(train_families=2), folder)
    return folder / "data"


@pytest.fixture
def folder(tmp_path: Path, emoji: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the examples take for granted: a bundle, its gallery, pictures."""
    bundle = write_tiny_bundle(tmp_path / "artemis.cir")
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    names = ["a.jpg", "b.jpg", "beach.jpg", "dress.jpg", *(f"photos/{number}.jpg" for number in range(12))]
    for name in names:
        Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / name)
    plan = Plan(train_families=2, validation_queries=2, test_queries=2, gallery=20, image_size=32)
    generate(tmp_path / "data" / "scenes", plan, jobs=1)
    shutil.copytree(emoji, tmp_path / "data" / "emoji")
    with Gallery.create(tmp_path / "artemis.gallery", Engine(bundle, device="cpu")) as gallery:
        gallery.add([tmp_path / name for name in names], ids=names)
    shutil.copy(bundle, tmp_path / "photos.cir")
    shutil.copytree(tmp_path / "artemis.gallery", tmp_path / "photos.gallery")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("file", WITH_PYTHON, ids=lambda file: str(file.relative_to(ROOT)))
def test_python_runs_as_pasted(file: Path, folder: Path) -> None:
    """Block after block, as one would paste them into one session."""
    namespace: dict[str, object] = {"__name__": "pasted"}
    for block in python_of(file):
        saved = SAVED.search(block.before)
        if saved:
            (folder / saved[1]).write_text(block.code, encoding="utf-8")
            sys.modules.pop(Path(saved[1]).stem, None)
        exec(compile(block.code, f"{file.name}: {block.code[:40]!r}", "exec"), namespace)


def test_blocks_are_found() -> None:
    names = {str(file.relative_to(ROOT)) for file in WITH_PYTHON}
    assert {"README.md", "CONTRIBUTING.md", "docs/gallery.md", "docs/systems.md"} <= names
    assert sum(len(list(commands(file))) for file in FILES) > 30


# ---- commands


class Command(NamedTuple):
    """A command with what follows it on its line."""

    name: str
    words: tuple[str, ...]


def commands(file: Path) -> Iterator[Command]:
    yield from shown_in(lines_of(file))
    yield from shown_in(inline_of(file))


def lines_of(file: Path) -> list[str]:
    return [
        line
        for block in blocks(file)
        if block.language == "sh"
        for line in block.code.replace("\\\n", " ").split("\n")
    ]


def inline_of(file: Path) -> list[str]:
    found: list[str] = INLINE.findall(re.sub(r"\s+", " ", FENCED.sub("", file.read_text(encoding="utf-8"))))
    return found


def shown_in(lines: Iterable[str]) -> Iterator[Command]:
    for line in lines:
        start = re.match(r"\s*(cir-\w+)\b(?!\.)(.*)", line)
        if start is None or start[1] not in scripts():
            continue
        # "verify|compact" stands for several commands, and brackets for what may be left out.
        rest = start[2].replace("[", " ").replace("]", " ")
        with contextlib.suppress(ValueError):
            yield Command(start[1], tuple(shlex.split(rest, comments=True)))


@functools.cache
def scripts() -> dict[str, str]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content["project"]["scripts"]


@functools.cache
def help_of(name: str, *parts: str) -> str:
    module, _, function = scripts()[name].partition(":")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), pytest.raises(SystemExit):
        getattr(importlib.import_module(module), function)([*parts, "--help"])
    return printed.getvalue()


def has_parts(name: str) -> list[str]:
    """The commands inside a command, as its help lists them."""
    listed = re.search(r"(?:positional arguments:\n  ACTION|\ncommands:)\n((?: {2,4}.*\n)+)", help_of(name))
    return re.findall(r"^ {2,4}([a-z][\w-]*)", listed[1], re.MULTILINE) if listed else []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_exist_with_the_flags_that_are_shown(file: Path) -> None:
    for command in commands(file):
        parts: list[tuple[str, ...]] = [()]
        if has_parts(command.name) and command.words and not command.words[0].startswith("-"):
            parts = [(part,) for part in command.words[0].split("|")]
            assert all(part in has_parts(command.name) for (part,) in parts), command
        flags = [word.split("=")[0] for word in command.words if re.match(r"--?[a-z]", word)]
        for part in parts:
            known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(command.name, *part)))
            unknown = [flag for flag in flags if flag not in known]
            assert len(parts) > 1 or not unknown, f"{command} has no {unknown}"


def parsed(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace | str:
    """What a command understands of its arguments, or what it says is wrong; it does nothing."""
    understood: list[argparse.Namespace] = []
    parse = CirParser.parse_args

    def only_parse(self: CirParser, args: Any = None, namespace: Any = None) -> Any:
        understood.append(parse(self, args, namespace))
        raise SystemExit(0)

    module, _, function = scripts()[command.name].partition(":")
    told = io.StringIO()
    with (
        monkeypatch.context() as patched,
        contextlib.redirect_stderr(told),
        contextlib.redirect_stdout(told),
        pytest.raises(SystemExit),
    ):
        patched.setattr(CirParser, "parse_args", only_parse)
        getattr(importlib.import_module(module), function)(list(command.words))
    return understood[0] if understood else told.getvalue().strip().rpartition("\n")[2]


def whole_commands(file: Path) -> Iterator[Command]:
    """Those that are given as they stand: on lines of their own, or of a file of this repository."""
    for command in shown_in(lines_of(file)):
        if "|" not in "".join(command.words[:1]):
            yield command
    for command in shown_in(inline_of(file)):
        if any("/" in word and (ROOT / word).exists() for word in command.words):
            yield command


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_are_understood_as_they_stand(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in whole_commands(file):
        assert isinstance(found := parsed(command, monkeypatch), argparse.Namespace), (command, found)


def trained_here(folder: Path) -> Iterator[Command]:
    """The commands that made what a folder of models holds, as its files say."""
    for line in (folder / "config.toml").read_text(encoding="utf-8").splitlines():
        yield from shown_in([line.removeprefix("# ")] if line.startswith("# cir-") else [])
    for page in folder.glob("*.md"):
        yield from whole_commands(page)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ROOT.glob("models/*/config.toml")), ids=lambda path: path.name
)
def test_the_commands_that_made_a_model_make_it_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list(trained_here(folder))
    assert len(made) >= 3, "what makes the data, what trains, and what a page says"
    for command in made:
        options = parsed(command, monkeypatch)
        assert isinstance(options, argparse.Namespace), (command, options)
        if command.name == "cir-train":
            output = options.output or options.config.parent
            there = (ROOT / output / "model.pt").exists()
            assert options.restart or not there, f"{command}: {output} holds a finished model"


@pytest.mark.parametrize("name", sorted(scripts()))
def test_the_examples_of_help_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [help_of(name), *(help_of(name, part) for part in has_parts(name))]
    lines = [line for page in pages for line in page.partition("example:\n")[2].splitlines()]
    examples = list(shown_in(lines))
    assert len(examples) >= len(pages)
    for command in examples:
        assert isinstance(found := parsed(command, monkeypatch), argparse.Namespace), (command, found)


def test_the_makes_that_are_shown_exist() -> None:
    targets = set(
        re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        shown = re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE)
        assert set(shown) <= targets, file.name


def test_python_blocks_are_python() -> None:
    for file in FILES:
        for block in python_of(file):
            ast.parse(block.code, f"{file.name}")
