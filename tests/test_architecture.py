"""The import rules of docs/architecture.md, read from the source; and what `import cir_infer` loads."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "cir_infer": ROOT / "cir_infer",
    "cir_export": ROOT / "export" / "cir_export",
    "cir_eval": ROOT / "evaluation" / "cir_eval",
    "cir_bench": ROOT / "benchmarks" / "cir_bench",
    "tools": ROOT / "tools",
}
GALLERY = (
    "disk",
    "metadata",
    "sqlite",
    "rows",
    "catalogue",
    "filters",
    "arguments",
    "snapshot",
    "store",
    "changes",
    "inspection",
    "copies",
    "opened",
    "gallery",
)
"""The rooms and files of `cir_infer.gallery`, from the bottom up: each imports only those before it."""
MAY_NOT_IMPORT = {
    "cir_infer": ("torch", "torchvision", "cir_eval", "cir_export", "cir_bench", "tools"),
    "cir_eval": ("torch", "torchvision", "cir_export", "cir_bench", "tools"),
    "cir_export": ("cir_bench", "tools"),
    "cir_bench": ("tools",),
    "cir_infer.gpu": ("cir_infer.scoring", "cir_infer.runtime", "cir_infer.gallery"),
    "cir_infer.scoring": (
        "cir_infer.runtime",
        "cir_infer.gallery",
        "cir_infer.engine",
        "cir_infer.searcher",
        "cir_infer.vector_searcher",
    ),
    "cir_infer.machine": (
        "cir_infer.gallery",
        "cir_infer.engine",
        "cir_infer.searcher",
        "cir_infer.commands",
    ),
    "cir_infer.bundle": ("cir_infer.inputs", "cir_infer.runtime", "cir_infer.engine"),
    "cir_infer.console": (
        "cir_infer.commands",
        "cir_infer.engine",
        "cir_infer.gallery",
        "cir_infer.searcher",
        "cir_infer.vector_searcher",
    ),
    "cir_infer.inputs": (
        "cir_infer.runtime",
        "cir_infer.gallery",
        "cir_infer.engine",
        "cir_infer.searcher",
        "cir_infer.vector_searcher",
    ),
    "cir_infer.runtime": ("cir_infer.gallery", "cir_infer.indexing", "cir_infer.engine", "cir_infer.hits"),
    "cir_infer.explaining": ("cir_infer.commands", "cir_infer.drawing", "cir_infer.searcher"),
    "cir_infer.gallery": ("cir_infer.indexing", "cir_infer.searcher", "cir_infer.vector_searcher"),
    **{
        f"cir_infer.gallery.{lower}": (
            "cir_infer.gallery.Gallery",
            *(f"cir_infer.gallery.{above}" for above in GALLERY[number:]),
        )
        for number, lower in enumerate(GALLERY[:-1], 1)
    },
    **{
        f"cir_infer.{lower}": ("cir_infer.serving", "cir_infer.cluster")
        for lower in (
            "engine",
            "hits",
            "searcher",
            "searching",
            "indexing",
            "foreign",
            "processes",
            "drawing",
        )
    },
    "cir_infer.shards": ("cir_infer.cluster", "cir_infer.indexing", "cir_infer.serving"),
    "cir_infer.serving": ("cir_infer.cluster",),
    "tools.packages": (
        "tools.cuda",
        "tools.release",
        "tools.tensorrt",
        "tools.golden",
        "tools.demos",
        "tools.docs",
    ),
    "tools.cuda": ("tools.release", "tools.tensorrt", "tools.golden", "tools.demos", "tools.docs"),
}
"""What stands below what: packages and what they import nowhere, not even inside a function."""
HEAVY = ("torch", "onnxruntime", "tokenizers", "PIL", "numpy", "tqdm", "pycuda", "tensorrt", "sqlite3")


def modules() -> list[tuple[str, Path]]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append((".".join([package, *(part for part in parts if part != "__init__")]), path))
    return found


def imports(tree: ast.AST, module: str, top_level: bool = False) -> Iterator[str]:
    """Names of the modules that are imported; relative imports made absolute."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(other, module, top_level)
        else:
            yield from imports(node, module, top_level)


def every_import(module: str, path: Path) -> Iterator[str]:
    """Also those that only annotations need."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(ast.Module([node], []), module)


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


ALL = modules()
CODE = {".py", ".h", ".cpp", ".cu", ".cuh", ".c"}


def of(*packages: str) -> list[tuple[str, Path]]:
    return [(module, path) for module, path in ALL if below(module, *packages)]


@functools.cache
def imported(module: str, path: Path, top_level: bool = False) -> tuple[str, ...]:
    return tuple(imports(ast.parse(path.read_text("utf-8")), module, top_level))


def test_there_is_something_to_check() -> None:
    assert {module for module, _ in ALL} >= {"cir_infer.engine", "cir_export", "cir_bench"}
    tree = ast.parse("from . import a\ndef f():\n    import torch\n")
    assert list(imports(tree, "p.m")) == ["p.a", "torch"]
    assert list(imports(tree, "p.m", top_level=True)) == ["p.a"]


def test_no_arrow_points_up() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in ALL
        for name in imported(module, path)
        for lower, above in MAY_NOT_IMPORT.items()
        if below(module, lower) and below(name, *above)
    ]
    assert wrong == []


def test_files_import_each_other_in_no_circle() -> None:
    """Nor for annotations: who is named in a signature is known to its reader."""
    files = dict(ALL)

    def file_of(name: str) -> str | None:
        """The file that a name stands for: a module, or the one that defines it."""
        return name if name in files else file_of(name.rpartition(".")[0]) if "." in name else None

    rest = {
        module: {
            other for name in every_import(module, path) if (other := file_of(name)) not in (None, module)
        }
        for module, path in files.items()
        if path.name != "__init__.py"  # a package's face shows what stands in it
    }
    # What imports nothing that is left is taken away, until only circles and what leads to them are there.
    while free := {module for module, others in rest.items() if not others & rest.keys()}:
        rest = {module: others for module, others in rest.items() if module not in free}
    assert rest == {}, f"import each other, or what does: {sorted(rest)}"


def commands() -> list[str]:
    """The modules that the commands begin in."""
    text = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.scripts]\n")[1].split("\n\n")[0]
    return [line.split('"')[1].removesuffix(":main") for line in text.splitlines()]


def test_bench_imports_torch_and_export_inside_functions() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in of("cir_bench")
        for name in imported(module, path, top_level=True)
        if below(name, "torch", "cir_export")
    ]
    assert wrong == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = f"import sys, cir_infer; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", commands())
def test_a_command_begins_before_anything_heavy_is_loaded(command: str) -> None:
    """Until then a Ctrl-C is a stack, and a flag that is typed wrongly waits for its answer."""
    program = (
        f"import sys, importlib; importlib.import_module({command!r})\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_of_the_gallery_has_its_place() -> None:
    here = {module.split(".")[2] for module, _ in of("cir_infer.gallery") if module != "cir_infer.gallery"}
    assert here == set(GALLERY)


def test_answering_a_query_loads_no_torch() -> None:
    program = "import sys, cir_infer.searcher, cir_infer.commands.query; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_tree_for_newcomers_has_every_room() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## The tree")[1].split("\n## ")[0]
    rooms = {path.parent.name for path in (ROOT / "cir_infer").glob("*/__init__.py")}
    assert {room for room in rooms if f" {room}/" not in tree} == set()


@pytest.mark.parametrize("decided", [None, "0", "1"])
def test_telemetry_is_off_unless_the_user_decided(decided: str | None) -> None:
    import os

    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if decided is not None:
        environment["ORT_DISABLE_TELEMETRY"] = decided
    program = "import cir_infer.runtime.onnx, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == (decided or "1")


def test_every_public_name_resolves() -> None:
    import cir_infer

    assert all(getattr(cir_infer, name) is not None for name in cir_infer.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        cir_infer.nothing  # noqa: B018


def test_the_picture_of_the_rooms_is_of_this_code() -> None:
    tool = ROOT / "tools" / "docs" / "draw_architecture.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SOURCES = sorted(
    {
        path
        for folder in ("kernels", "tools", "tests")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in CODE
    }
    - {path for _, path in ALL}
)


def test_no_file_is_long_without_saying_why() -> None:
    texts = {path: path.read_text("utf-8") for path in [*(path for _, path in ALL), *SOURCES]}
    lines = {str(path.relative_to(ROOT)): text.count("\n") for path, text in texts.items()}
    explained = {str(path.relative_to(ROOT)) for path, text in texts.items() if "Long because" in text}
    assert {name: count for name, count in lines.items() if count > 450 and name not in explained} == {}


def test_the_types_of_all_packages_are_checked() -> None:
    """`make lint` looks at what mypy's settings name, and says nothing of a package that they leave out."""
    settings = (ROOT / "pyproject.toml").read_text("utf-8").partition("[tool.mypy]")[2]
    (named,) = re.findall(r"^packages = \[(.*)\]$", settings.partition("\n[")[0], re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files", "*/__init__.py"], cwd=ROOT, capture_output=True, text=True)
    folders = {Path(line).parent for line in tracked.stdout.splitlines()}
    outermost = {f.name for f in folders if f.parent not in folders and f.parts[0] != "tests"}
    assert set(re.findall(r'"(\w+)"', named)) == outermost == set(PACKAGES)


DATES = {
    "cir_infer/machine/findings.py",  # when a machine was looked at
    "cir_infer/runtime/kept/graphs.py",  # how old a file is that a killed process left
    "benchmarks/cir_bench/machine.py",  # when something was measured
}


def test_no_wall_clock_decides_how_long_anything_takes() -> None:
    """It may be set back by an hour, or forth: deadlines, ages and rates are of `time.monotonic`."""
    kinds = (
        r"\btime\.time(_ns)?\(",
        "CLOCK_REALTIME",
        r"datetime\.(utc)?now\(",
        r"date\.today\(",
        "from time import",
    )
    asked = re.compile("|".join(kinds))
    found = {str(path.relative_to(ROOT)) for _, path in ALL if asked.search(path.read_text("utf-8"))}
    assert {name for name in found if not name.startswith("tools/")} == DATES
