"""Each kind of child that the product starts, in a folder full of files that bear the names of modules."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cir_infer
from cir_bench.latency.cold_start import time_cold_start
from cir_bench.latency.workload import Workload
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_infer import Gallery, Searcher
from cir_infer.bundle import Bundle
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.items import Item, Location
from cir_infer.processes.children import child_command, child_environment
from tests.bundles import write_tiny_bundle
from tests.processes.test_children import sprung, trapped


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = trapped(tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def test_decoding_workers(here: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(picture)
    manifest = Bundle(write_tiny_bundle(tmp_path / "tiny.cir")).manifest
    with Decoders(manifest, 1) as decoders:
        (batch,) = decoders.batches([Item("a", Location(str(picture)), "")], 4)
    assert [item.id for item in batch.items] == ["a"]
    assert sprung(here) == ""


def test_plan_builders(here: Path) -> None:
    # As `building` starts it. Without TensorRT the process says so; its imports are what counts here.
    job = {"task": "try", "name": "image", "plan": str(here / "no plan")}
    done = subprocess.run(
        child_command("cir_infer.runtime.tensorrt.worker"),
        input=json.dumps(job),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error" in json.loads(done.stdout.splitlines()[-1]), done.stderr
    assert sprung(here) == ""


def test_renderers(here: Path, tmp_path: Path) -> None:
    plan = Plan(
        train_families=1, validation_queries=0, test_queries=0, gallery=70, image_size=32, views=("flat",)
    )
    generate(tmp_path / "scenes", plan, jobs=2)
    assert sprung(here) == ""


def test_cold_starts(here: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    with Gallery.create(
        tmp_path / "tiny.gallery", dimension=8, fingerprint=Bundle(bundle).manifest.fingerprint
    ) as g:
        g.add_vectors(ids=["a"], vectors=np.ones((1, 8), np.float32))
    searcher = Searcher(bundle, device="cpu")
    workload = Workload([np.zeros((9, 12, 3), np.uint8)], ["is red"], "a picture")
    told = time_cold_start(searcher, workload, 1, "cpu", starts=1)
    assert told["to_first_answer_ms"] > 0
    assert sprung(here) == ""


@pytest.mark.parametrize(
    "command", ["cir-index", "cir-query", "cir-gallery", "cir-export", "cir-train", "cir-bench"]
)
def test_the_commands_themselves(here: Path, command: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sprung(here) == ""


def test_indexing_from_a_folder_of_photos(here: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(here / "a.png")
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    program = str(Path(sys.executable).with_name("cir-index"))
    command = [
        program,
        str(bundle),
        ".",
        "--gallery",
        str(tmp_path / "g"),
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 added" in done.stdout
    assert sprung(here) == ""


def test_no_thread_of_the_runtime_rests_on_an_executor() -> None:
    """`concurrent.futures` refuses work once the main thread has ended; `processes.threads` does not."""
    folder = Path(cir_infer.__file__).parent
    found = [path.name for path in folder.rglob("*.py") if "ThreadPoolExecutor" in path.read_text("utf-8")]
    assert found == []


def test_no_child_is_started_in_another_way() -> None:
    """Whatever names the interpreter, or multiprocessing, goes through `child_command`."""
    root = Path(cir_infer.__file__).parents[1]
    folders = [root / "cir_infer", root / "evaluation", root / "export", root / "benchmarks"]
    allowed = {"children.py", "cold_start.py", "decoding.py"}
    found = {
        path.name
        for folder in folders
        for path in folder.rglob("*.py")
        for text in [path.read_text("utf-8")]
        if any(
            word in text
            for word in (
                "sys.executable",
                "import multiprocessing",
                "from multiprocessing",
                "ProcessPoolExecutor",
            )
        )
    }
    assert found <= allowed
    # What is allowed: the mechanism, a Python that runs `pass` in isolation, an error message.
    assert (
        '[sys.executable, "-I", "-c", "pass"]'
        in (root / "benchmarks/cir_bench/latency/cold_start.py").read_text()
    )
