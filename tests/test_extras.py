"""What is not installed is said in one way; the extras that are named exist and bring what they should."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cir_infer.errors import DatasetError, UsageError
from cir_infer.extras import EXTRAS, install_hint, require

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
        UsageError,
        match=re.escape("torch and onnx, which are not installed: pip install 'cir-infer[export]'"),
    ):
        require("this", "torch", "onnx")
    require("nothing", "numpy")
    assert install_hint("onnx") == "pip install 'cir-infer[precision]'"


def test_many_missing_packages_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fastapi", "uvicorn", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"^it needs fastapi, uvicorn and torch, which are not installed: "):
        require("it", "fastapi", "uvicorn", "torch")
