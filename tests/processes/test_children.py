"""Children import what their parent imports, and nothing of the folder in which it was started."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import cir_infer
from cir_infer.errors import DeviceError
from cir_infer.processes.children import child_command, child_environment, import_path

TRAPS = (
    *(
        "numpy",
        "json",
        "PIL",
        "os",
        "socket",
        "pickle",
        "struct",
        "runpy",
        "site",
        "importlib",
        "random",
        "io",
    ),
    *(
        "sitecustomize",
        "usercustomize",
        "cir_infer",
        "cir_export",
        "cir_bench",
        "pillow_heif",
        "onnxruntime",
        "tqdm",
    ),
)
"""Modules that a child might import, some of them absent where it runs."""


def trapped(folder: Path) -> Path:
    """A folder with a file for each of these, which leaves a trace when it is run."""
    folder.mkdir(exist_ok=True)
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write({name!r} + ' ')\n")
    return folder


def sprung(folder: Path) -> str:
    ran = folder / "ran"
    return ran.read_text() if ran.exists() else ""


def ask(module: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    settings: dict[str, object] = {"env": child_environment(), **options}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        child_command(module, *arguments), capture_output=True, text=True, timeout=120, **settings
    )


TOLD = """
import json, sys, cir_infer
told = {"arguments": sys.argv[1:], "name": __name__}
told |= {"cir_infer": cir_infer.__file__, "utf8": sys.flags.utf8_mode}
print(json.dumps(told))
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with a module that says what it sees."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "told.py").write_text(TOLD)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_child_runs_a_module_with_its_arguments(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trapped(tmp_path / "here")
    monkeypatch.chdir(here)
    done = ask("told", "a b", "")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "arguments": ["a b", ""],
        "name": "__main__",
        "cir_infer": cir_infer.__file__,
        "utf8": sys.flags.utf8_mode,
    }
    assert sprung(here) == ""


@pytest.mark.parametrize("blank", ["", ".", os.pathsep, f"{os.pathsep}."])
def test_blank_entries_of_pythonpath_are_not_passed_on(tmp_path: Path, blank: str) -> None:
    """The parent's own imports are its user's affair; here it has made them before it enters the folder."""
    here = trapped(tmp_path / "here")
    other = tmp_path / "other"
    other.mkdir()
    (other / "extra_module.py").write_text("VALUE = 5\n")
    program = (
        "import os, sys\nfrom cir_infer.processes.children import child_command, child_environment\n"
        f"import runpy, site, subprocess, json, socket, pickle, random\nos.chdir({str(here)!r})\n"
        f"sys.path[:0] = ['', '.', os.getcwd(), {str(other)!r}]\n"
        "print(subprocess.run(child_command('extra_module_user'), env=child_environment(), "
        "capture_output=True, text=True))\n"
    )
    (other / "extra_module_user.py").write_text("import extra_module, random\nprint(extra_module.VALUE)\n")
    environment = {**os.environ, "PYTHONPATH": blank}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert "stdout='5\\n'" in done.stdout, done.stdout + done.stderr
    assert sprung(here) == ""


def test_the_path_keeps_the_order_of_the_parent() -> None:
    entries = ["/a", "", "/b", ".", "relative", "/a", str(Path.cwd()), "/c"]
    assert import_path(entries) == ["/a", "/b", "/c"]


def test_a_folder_of_installed_packages_may_be_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(Path(json.__file__).parents[1])
    monkeypatch.chdir(folder)
    assert folder in import_path([folder])


def test_a_package_that_only_the_parents_folder_holds_is_found_alone(tmp_path: Path) -> None:
    """A source tree on the path, with the program started in it: the package is found, its neighbours not."""
    tree = trapped(tmp_path / "tree")
    (tree / "cir_infer.py").unlink()
    (tree / "cir_infer").symlink_to(Path(cir_infer.__file__).parent)
    program = (
        "import ctypes, importlib.util, json, os, pathlib, site, subprocess, sys\n"
        "sys.path.insert(0, sys.argv[1]); os.chdir(sys.argv[1])\n"
        "import cir_infer\n"
        "from cir_infer.processes.children import child_command, child_environment\n"
        "command = child_command('cir_infer.processes.cpus')\n"
        "print(cir_infer.__file__); print(subprocess.run(command, env=child_environment()).returncode)"
    )
    # A Python without the package: the environment's own site-packages are left out.
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    done = subprocess.run(
        [str(bare / "bin" / "python"), "-c", program, str(tree)], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.splitlines() == [str(tree / "cir_infer" / "__init__.py"), "0"], done.stderr
    assert sprung(tree) == ""


@pytest.mark.parametrize("mode", ["0", "1"])
def test_names_are_decoded_as_in_the_parent(told: Path, mode: str) -> None:
    program = (
        "import subprocess, sys\nfrom cir_infer.processes.children import child_command, child_environment\n"
        f"sys.path.append({str(told)!r})\n"
        "print(subprocess.check_output(child_command('told'), env=child_environment(), text=True))"
    )
    environment = {**os.environ, "PYTHONUTF8": mode, "LC_ALL": "C.UTF-8"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout)["utf8"] == int(mode), done.stderr


def test_children_of_a_child_are_not_told_other_places() -> None:
    environment = child_environment(CIR_TEST="1")
    assert environment["CIR_TEST"] == "1"
    assert "PYTHONPATH" not in environment


def test_a_frozen_program_has_no_python_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DeviceError, match="workers=0"):
        child_command("cir_infer.indexing.worker")
