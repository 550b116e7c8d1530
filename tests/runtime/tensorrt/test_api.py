"""Our use of TensorRT against the real API of every version that we name: types, names, arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.runtime.tensorrt.conftest import VERSIONS
from tests.runtime.tensorrt.stubs import VERSIONS as RECORDED
from tests.runtime.tensorrt.stubs import stub_of, table_of

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "cir_infer" / "runtime" / "tensorrt"


def test_the_tables_are_those_of_the_versions_that_are_tested() -> None:
    assert set(VERSIONS) == set(RECORDED)
    flags = {version: table_of(version)["BuilderFlag"]["values"] for version in VERSIONS}
    assert "FP16" in flags["8.6.0"] and "FP16" not in flags["11.4.0.106"]
    assert "IProgressMonitor" not in table_of("8.6.0")


def check_types(version: str, folder: Path, *modules: Path) -> subprocess.CompletedProcess[str]:
    stubs = folder / version / "tensorrt"
    stubs.mkdir(parents=True, exist_ok=True)
    (stubs / "__init__.pyi").write_text(stub_of(version))
    configuration = folder / "mypy.ini"
    configuration.write_text("[mypy]\nstrict = True\npython_version = 3.10\nexplicit_package_bases = True\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(configuration),
            "--cache-dir",
            str(folder / "cache"),
            "--follow-imports=silent",
            *map(str, modules),
        ],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(stubs.parent), str(ROOT)])},
        capture_output=True,
        text=True,
    )


def test_types_fit_every_version(tmp_path: Path) -> None:
    for version in VERSIONS:
        typed = PACKAGE / ("typed_by_flags.py" if version.startswith("8.") else "typed_by_graph.py")
        done = check_types(version, tmp_path, typed, PACKAGE / "api.py")
        # api.py imports both variants; only the version's own one can be right.
        other = "typed_by_graph" if version.startswith("8.") else "typed_by_flags"
        wrong = [line for line in done.stdout.splitlines() if "error" in line and other not in line]
        assert not [line for line in wrong if not line.startswith("Found")], done.stdout
    wrong_use = tmp_path / "wrong_use.py"
    wrong_use.write_text("import tensorrt as trt\nprint(trt.BuilderFlag.FP16, trt.Builder(1))\n")
    done = check_types("11.4.0.106", tmp_path, wrong_use)
    assert 'has no attribute "FP16"' in done.stdout and "incompatible type" in done.stdout
