"""Wheels and sources that were built of another tree are named, whatever their version says."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.tools.cuda.test_cuda_sources import fatbins
from tools.release import wheel_contents

ROOT = Path(__file__).parents[3]

WHEEL = "cir_infer-1-cp312-abi3-manylinux_2_28_x86_64.whl"


@pytest.fixture(scope="module")
def tracked() -> dict[str, bytes]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a checkout of git")
    folders = (*wheel_contents.PACKAGES, *wheel_contents.COMPILED)
    names = [name for name in done.stdout.split("\0") if name.startswith(folders)]
    return {name: (ROOT / name).read_bytes() for name in names}


@pytest.fixture
def held(tracked: dict[str, bytes]) -> dict[str, bytes]:
    """What a wheel of this tree holds."""
    packages = {name: data for name, data in tracked.items() if name.startswith(wheel_contents.PACKAGES)}
    held = {name[name.index("cir_") :]: data for name, data in packages.items()}
    held["cir_infer/scoring/_kernels.abi3.so"] = b"\x7fELF " + wheel_contents.kernels_hash().encode() + b"\0"
    return held


def wheel(folder: Path, held: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return folder / WHEEL


def with_fatbins(folder: Path, held: dict[str, bytes], *architectures: int) -> dict[str, bytes]:
    made = fatbins(folder, architectures) if architectures else fatbins(folder)
    return {**held, **{f"cir_infer/gpu/{path.name}": path.read_bytes() for path in made.glob("*.fatbin*")}}


def test_the_hash_is_what_the_build_puts_into_the_module() -> None:
    from cir_infer.scoring.cpu import kernels_hash

    assert wheel_contents.kernels_hash() == kernels_hash()


def test_a_wheel_of_this_tree_is_taken_with_fatbins_or_without(
    tmp_path: Path, held: dict[str, bytes]
) -> None:
    assert wheel_contents.unlike_the_tree(wheel(tmp_path, held)) == []
    assert not wheel_contents.has_fatbins(tmp_path / WHEEL)
    assert wheel_contents.unlike_the_tree(wheel(tmp_path, with_fatbins(tmp_path, held))) == []
    assert wheel_contents.has_fatbins(tmp_path / WHEEL)


@pytest.mark.parametrize("there", [True, False])
def test_a_file_of_another_tree_is_named(tmp_path: Path, held: dict[str, bytes], there: bool) -> None:
    held["cir_infer/engine.py"] += b"\n"
    if not there:
        del held["cir_infer/engine.py"]
    (said,) = wheel_contents.unlike_the_tree(wheel(tmp_path, held))
    assert "cir_infer/engine.py" in said and said.startswith("1 of ")


def test_kernels_of_other_sources_are_named(tmp_path: Path, held: dict[str, bytes]) -> None:
    held["cir_infer/scoring/_kernels.abi3.so"] = b"\x7fELF " + b"0" * 64
    (said,) = wheel_contents.unlike_the_tree(wheel(tmp_path, held))
    assert "scoring kernels" in said


def test_fatbins_for_some_gpus_are_no_release(tmp_path: Path, held: dict[str, bytes]) -> None:
    said = wheel_contents.unlike_the_tree(wheel(tmp_path, with_fatbins(tmp_path, held, 90)))
    assert len(said) == 2 and all("lacks sm_75" in reason for reason in said)


@pytest.mark.parametrize("changed", [None, "kernels/score/neon.cpp", "cir_infer/engine.py"])
def test_sources_are_held_to_the_tree_too(
    tmp_path: Path, tracked: dict[str, bytes], changed: str | None
) -> None:
    path = tmp_path / "cir_infer-1.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in tracked.items():
            member = tarfile.TarInfo(f"cir_infer-1/{name}")
            content = data + b"\n" if name == changed else data
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    said = wheel_contents.unlike_the_tree(path)
    assert said == [] if changed is None else changed in said[0]
