"""`make release-check` names what is missing, and what it could not look at is not passed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.cuda import old_cuda_check
from tools.release import release_check as tool

ROOT = Path(__file__).parents[3]


def release_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "release" / "release_check.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_folder_without_wheels_says_which(tmp_path: Path) -> None:
    done = release_check("--only", "version", "wheels", "--dist", tmp_path)
    assert done.returncode == 1
    assert "no wheel of version" in done.stdout
    for tag in ("cp310-cp310", "cp311-cp311", "cp312-abi3"):
        assert f"of {tag} for x86_64, of {tag} for aarch64" in done.stdout
    states = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.endswith(" s")}
    assert states["wheels"] == "FAILED" and states["version"] in ("passed", "incomplete")


def test_what_nobody_asked_has_not_passed(tmp_path: Path) -> None:
    from cir_infer import __version__

    name = f"cir_infer-{__version__}-cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.whl"
    with zipfile.ZipFile(tmp_path / name, "w"):
        pass
    done = release_check("--only", "emulated", "--dist", tmp_path)
    assert done.returncode == 2
    assert "emulated   incomplete" in done.stdout and f"{name} was audited and not asked" in done.stdout


def test_a_wheel_that_takes_longer_than_is_promised_has_not_passed() -> None:
    assert tool.too_slow({"python": "3.12.1", "from_wheel_to_answer_s": 59.4}) == []
    (said,) = tool.too_slow({"python": "3.12.1", "from_wheel_to_answer_s": 118.3})
    assert said.startswith("Python 3.12.1: 118 s") and "60 are promised" in said


def test_a_tag_of_another_version_is_refused() -> None:
    done = release_check("--only", "version", "--tag", "v99.0")
    assert done.returncode == 1 and "the tag is v99.0" in done.stdout


NOTHING_ASKED = tool.Asked(None, Path("dist"), False, [])


def test_kernels_that_no_old_compiler_saw_have_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_cuda_check, "BUILD", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    left = tool.check_old_cuda(NOTHING_ASKED)
    for version, said in zip(old_cuda_check.VERSIONS, left, strict=True):
        assert f"not compiled by CUDA {version} (JetPack 6." in said and len(said) < 400


def test_every_old_compiler_that_is_here_sees_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = old_cuda_check.VERSIONS
    for version in old_cuda_check.VERSIONS:
        for part in ("cuda_nvrtc", "cuda_runtime", "cuda_nvcc"):
            (tmp_path / version / "nvidia" / part).mkdir(parents=True)
    monkeypatch.setattr(old_cuda_check, "BUILD", tmp_path)
    asked: list[str] = []

    def run(*command: str | Path) -> None:
        asked.append(str(command[-1]))
        if str(command[-1]) != first:
            sys.exit("a kernel uses local memory")

    monkeypatch.setattr(tool.build_wheels, "run", run)
    with pytest.raises(SystemExit, match="local memory"):
        tool.check_old_cuda(NOTHING_ASKED)
    assert asked == list(old_cuda_check.VERSIONS)
