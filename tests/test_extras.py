"""What is not installed is said in one way; the extras that are named exist and bring what they should."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cir_bench.commands import main as cir_bench
from cir_export.commands.export import main as cir_export
from cir_export.commands.train import main as cir_train
from cir_infer.commands.cluster import main as cir_cluster
from cir_infer.commands.index import main as cir_index
from cir_infer.commands.serve import main as cir_serve
from cir_infer.errors import CirError, DatasetError, DeviceError, PackageError
from cir_infer.extras import EXTRAS, importing, install_hint, require
from tests.bundles import write_tiny_bundle

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "faiss": "faiss-cpu",
    "pillow_heif": "pillow-heif",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "resvg_py": "resvg-py",
}
EXTRA = re.compile(r"cir-infer\[([a-z,-]+)\]|pip install (?:-e )?[\"']?\.\[([a-z,-]+)\]")


def extras() -> dict[str, list[str]]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content["project"]["optional-dependencies"]


def test_every_hint_names_an_extra_that_brings_the_package() -> None:
    for module, extra in EXTRAS.items():
        brought = [re.split(r"[<>=;\s]", package)[0] for package in extras()[extra]]
        assert PACKAGES.get(module, module) in brought, module


def test_docs_and_messages_name_extras_that_exist() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for part in ("cir_infer", "evaluation", "export", "benchmarks"):
        files += (ROOT / part).rglob("*.py")
    for file in files:
        for found in EXTRA.findall(file.read_text(encoding="utf-8")):
            for extra in "".join(found).split(","):
                assert extra in extras(), f"{file.name}: {extra}"


def test_the_page_about_installing_has_every_extra_of_users() -> None:
    page = (
        (ROOT / "docs" / "installing.md").read_text(encoding="utf-8").split("## Extras")[1].split("\n## ")[0]
    )
    assert set(extras()) - set(re.findall(r"[\w-]+", page)) == {"docs", "dev"}


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DatasetError, match=re.escape("parquet needs pyarrow, which is not installed: pip install")
    ):
        require("parquet", "pyarrow", error=DatasetError)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        PackageError,
        match=re.escape("torch and onnx, which are not installed: pip install 'cir-infer[export]'"),
    ):
        require("this", "torch", "onnx")
    require("nothing", "numpy")
    assert install_hint("onnx") == "pip install 'cir-infer[precision]'"


def test_many_missing_packages_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fastapi", "uvicorn", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        PackageError, match=r"^it needs fastapi, uvicorn and torch, which are not installed: "
    ):
        require("it", "fastapi", "uvicorn", "torch")


@pytest.mark.parametrize(
    ("module", "extra", "main", "arguments"),
    [
        ("torch", "export", cir_export, ["model.pt"]),
        ("onnxscript", "export", cir_export, ["model.pt"]),
        ("onnx", "precision", cir_export, ["b.cir", "--precision", "float16"]),
        ("huggingface_hub", "hub", cir_export, ["somebody/model"]),
        ("torch", "export", cir_train, ["config.toml"]),
        ("openvino", "openvino", cir_index, ["b.cir", "x", "--gallery", "g", "--device", "openvino-gpu"]),
        ("pyarrow", "parquet", cir_index, ["b.cir", "s3://bucket/x", "--gallery", "g"]),
        ("uvicorn", "serve", cir_serve, ["b.cir", "--gallery", "g"]),
        ("ray", "ray", cir_cluster, ["status", "name"]),
        ("torch", "export", cir_bench, ["ablation", "config.toml", "-o", "out"]),
        ("torch", "export", cir_bench, ["systems", "config.toml", "-o", "out"]),
        ("torch", "export", cir_bench, ["compare", "--seeded", "resnet18"]),
        ("torch", "export", cir_bench, ["table7"]),
        ("torch", "export", cir_bench, ["explain", "scenes", "--model", "m.pt", "--bundle", "b.cir"]),
        ("onnx", "precision", cir_bench, ["latency", "b.cir", "g"]),
        ("usearch", "bench", cir_bench, ["scoring", "--linearised", "usearch"]),
        ("faiss", "bench", cir_bench, ["scoring", "--linearised", "faiss"]),
        ("fastapi", "serve", cir_bench, ["serve", "b.cir", "g"]),
        ("resvg_py", "emoji", cir_bench, ["emoji", "out", "--from", "."]),
    ],
)
def test_a_missing_extra_is_a_failure_of_every_command_and_no_wrong_usage(
    module: str,
    extra: str,
    main: Callable[[list[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "b.cir")
    monkeypatch.setitem(sys.modules, module, None)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"pip install 'cir-infer[{extra}]'" in said and said.count("\n") == 1


def test_what_is_installed_is_asked_in_one_place() -> None:
    asking = {
        str(path.relative_to(ROOT))
        for part in ("cir_infer", "evaluation", "export", "benchmarks")
        for path in (ROOT / part).rglob("*.py")
        if "find_spec(" in path.read_text(encoding="utf-8")
    }
    assert asking == {"cir_infer/extras.py", "cir_infer/processes/children.py"}  # where a child finds its own


def of_a_compiled_module(error: BaseException) -> ImportError:
    """What the modules of pybind11 and nanobind make of whatever ends their making."""
    made = ImportError("initialization failed")
    made.__cause__ = error
    return made


def broken(reason: str) -> CirError:
    return DeviceError(f"the library is broken ({reason}); install it again")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), of_a_compiled_module(KeyboardInterrupt())])
def test_an_interrupted_import_is_an_interrupt(error: BaseException) -> None:
    with pytest.raises(KeyboardInterrupt), importing("the library", broken):
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "no memory left"),
        (of_a_compiled_module(MemoryError()), "no memory left"),
        (OSError(errno.EMFILE, "Too many open files", "x.py"), "ulimit -n"),
        (ImportError("libx.so: cannot open shared object file: Too many open files"), "ulimit -n"),
        (ImportError("libx.so: failed to map segment: Cannot allocate memory"), "no memory left"),
        (ImportError("libx.so: failed to map segment from shared object"), "no memory left"),
        (RuntimeError('Cannot load library "libx.so": std::bad_alloc'), "no memory left"),
        (ImportError("libx.so: cannot open: Too many open files in system"), "machine has too many"),
    ],
)
def test_what_a_machine_lacks_at_an_import_is_told_as_that(error: Exception, said: str) -> None:
    with (
        pytest.raises(DeviceError, match=f"^the library cannot be imported: .*{said}"),
        importing("the library", broken),
    ):
        raise error


def test_what_cannot_be_looked_for_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(name: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "site-packages")

    monkeypatch.setattr("importlib.util.find_spec", exhausted)
    with pytest.raises(DeviceError, match=r"^uvicorn cannot be looked for: .*ulimit -n"):
        require("cir-serve", "uvicorn")


def test_a_package_that_does_not_import_is_told_as_broken_and_a_fault_stays_one() -> None:
    forbidden = ImportError("libx.so: failed to map segment from shared object: Operation not permitted")
    for error in (ImportError("libx.so: no such file"), AttributeError("no Session"), forbidden):
        with pytest.raises(DeviceError, match="install it again"), importing("the library", broken):
            raise error
    with pytest.raises(ZeroDivisionError), importing("the library", broken):
        raise ZeroDivisionError
