"""`cir-export BUNDLE --triton FOLDER`: what is written, against Triton's own schema, and in Triton itself.

The schema is that of `tritonclient` (one file of it), the server that of `nvidia-pytriton`; `make
triton-check` gets both. Its Triton has the Python backend alone, so the graphs, which are for ONNX Runtime's,
are checked by schema only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cir_export.commands.export import main
from cir_export.triton import write_repository
from cir_infer import Engine, Gallery, Searcher
from cir_infer.errors import CirError, ExportError, UsageError
from cir_infer.hits import Hits
from cir_infer.serving.triton import answered, padded, read_queries
from tests.bundles import write_tiny_bundle
from tests.ports import held_port

COUNT = 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    path = write_tiny_bundle(folder / "artemis.cir")
    random = np.random.default_rng(0)
    images = [folder / f"{number}.png" for number in range(COUNT)]
    for image in images:
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(image)
    with (
        Engine(path, device="cpu", threads=1) as engine,
        Gallery.create(folder / "artemis.gallery", engine) as gallery,
    ):
        gallery.add(images, ids=[f"sku-{n}" for n in range(COUNT)], metadata=[{"n": n} for n in range(COUNT)])
    return path


@pytest.fixture(scope="module")
def repository(bundle: Path) -> Path:
    folder = bundle.parent / "models"
    assert write_repository(bundle, folder) == [
        *("artemis_image", "artemis_text", "artemis_compose"),
        "artemis",
    ]
    return folder


@pytest.fixture
def searcher(bundle: Path) -> Iterator[Searcher]:
    with Searcher(bundle, device="cpu", threads=1) as opened:
        yield opened


# ---- what is written


def schema() -> ModuleType:
    """Triton's ModelConfig; the package around it would ask for gRPC."""
    pytest.importorskip("google.protobuf", reason="needs protobuf")
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs tritonclient, see `make triton-check`")
    path = Path(next(iter(found.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configurations_are_tritons(repository: Path, bundle: Path) -> None:
    import onnxruntime
    from google.protobuf import text_format

    types: Any = schema()
    names = {
        1: "tensor(bool)",
        2: "tensor(uint8)",
        8: "tensor(int32)",
        9: "tensor(int64)",
        11: "tensor(float)",
    }
    for folder in repository.iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), types.ModelConfig())
        assert config.name == folder.name
        assert config.max_batch_size == 32
        assert config.HasField("dynamic_batching")
        assert config.version_policy.latest.num_versions == 1
        if config.backend == "python":
            assert [tensor.name for tensor in config.input] == ["IMAGE", "ITEM", "TEXT", "K", "WHERE"]
            assert [list(tensor.dims) for tensor in config.output] == [[-1], [-1], [-1, 2]]
            assert config.parameters["gallery"].string_value == str(bundle.with_suffix(".gallery"))
            continue
        assert config.backend == "onnxruntime"
        graph = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))
        for told, real in ((config.input, graph.get_inputs()), (config.output, graph.get_outputs())):
            assert [tensor.name for tensor in told] == [tensor.name for tensor in real]
            for tensor, entry in zip(told, real, strict=True):
                assert names[tensor.data_type] == entry.type
                shape = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
                assert shape == [length if isinstance(length, int) else -1 for length in entry.shape[1:]]


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--triton", str(tmp_path / "m"), "--gallery", "g", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][-1] == "artemis"
    assert str(Path("g").absolute()) in (tmp_path / "m" / "artemis" / "config.pbtxt").read_text()
    assert main([str(bundle), "--triton", str(tmp_path / "o"), "--gallery", str(tmp_path / "none")]) == 0
    assert f"no gallery is at '{tmp_path / 'none'}' yet" in capsys.readouterr().out
    assert main([str(bundle), "--triton", str(tmp_path / "o2"), "--gallery", str(tmp_path)]) == 0
    assert "yet" not in capsys.readouterr().out
    assert main([str(bundle), "--triton", str(tmp_path / "m")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([str(bundle), "--gallery", "g"]) == 2
    assert main(["model.pt", "--triton", str(tmp_path / "m")]) == 2
    with pytest.raises(UsageError, match="no name"):
        write_repository(shutil.copy(bundle, tmp_path / "a b.cir"), tmp_path / "n")
    with pytest.raises(ExportError, match="cannot be written"):
        write_repository(bundle, bundle / "below")


# ---- what it answers


def column(*values: Any) -> np.ndarray[Any, Any]:
    return np.array([[value] for value in values], dtype=object)


def test_requests_become_queries(searcher: Searcher, bundle: Path) -> None:
    image = (bundle.parent / "3.png").read_bytes()
    inputs = {
        "IMAGE": column(image, image),
        "TEXT": column(b"is red", b"longer"),
        "K": np.array([[3], [5]], np.int32),
        "WHERE": column(b"", b'{"n": {"<": 4}}'),
    }
    found = answered(searcher, read_queries(inputs, 200))
    assert all(isinstance(hits, Hits) for hits in found)
    first, second = found
    assert first == searcher.query(image, "is red", 3)
    assert second == searcher.query(image, "longer", 5, "n < 4")
    arrays = padded([first, second], 5, 2)  # type: ignore[list-item]
    assert arrays["IDS"].shape == (2, 5)
    assert list(arrays["IDS"][0]) == [*(item.encode() for item in first.ids), b"", b""]  # type: ignore[union-attr]
    assert arrays["TERMS"].sum(2) == pytest.approx(arrays["SCORES"], abs=1e-5)
    (failed,) = answered(searcher, read_queries({"ITEM": column(b"gone"), "TEXT": column(b"is red")}, 200))
    assert isinstance(failed, CirError)
    for wrong in (
        {**inputs, "ITEM": column(b"a", b"b")},
        {**inputs, "K": np.array([[0], [1]], np.int32)},
        {**inputs, "TEXT": column(b"\xff", b"a")},
        {**inputs, "WHERE": column(b"{", b"")},
        {**inputs, "WHERE": column(b'{"n": 1, "n": 2}', b"")},
        {**inputs, "WHERE": column(b'{"$and": [' * 50_000, b"")},
    ):
        with pytest.raises(UsageError):
            read_queries(wrong, 200)


@contextmanager
def triton(repository: Path, folder: Path) -> Iterator[int]:
    """Triton with the search alone; its port."""
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs nvidia-pytriton, see `make triton-check`")
    home = Path(next(iter(found.submodule_search_locations))) / "tritonserver"
    stub = home / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has no stub for Python 3.{sys.version_info.minor}")
    shutil.copytree(home / "backends", folder / "backends")
    shutil.copy(stub, folder / "backends" / "python")
    shutil.copy(home / "bin" / "tritonserver", folder)
    for binary in (folder / "tritonserver", folder / "backends" / "python" / stub.name):
        binary.chmod(0o755)
    libraries = [home.parent.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or "")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
    }
    # Triton's Python is isolated: it knows nothing of this virtual environment, nor of PYTHONPATH.
    # The stubs of nvidia-pytriton 0.7 misread texts under NumPy 2, which their pybind11 does not know.
    older = [path for path in [os.environ.get("TRITON_NUMPY")] if path]
    if not older and int(np.__version__.partition(".")[0]) >= 2:
        pytest.skip("needs a NumPy below 2 for Triton's stub, see `make triton-check`")
    packages = [path for path in sys.path if path.endswith("-packages")]
    lines = [
        "import site, sys",
        f"sys.path[:0] = {older!r}",
        f"for folder in {packages!r}: site.addsitedir(folder)",
    ]
    lines.append(f"sys.path += [path for path in {sys.path!r} if path and path not in sys.path]")
    shutil.copytree(repository / "artemis", folder / "models" / "artemis")
    model = folder / "models" / "artemis" / "1" / "model.py"
    model.write_text("\n".join(lines) + "\n" + model.read_text())
    flags = [
        *(f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"),
        *("--model-control-mode=explicit", "--load-model=artemis", "--http-address=127.0.0.1"),
        *("--reuse-http-port=1", "--allow-grpc=false", "--allow-metrics=false"),
    ]
    with held_port() as port, (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(folder / "tritonserver"), *flags, f"--http-port={port}"],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            end = time.monotonic() + 90
            while not ready(port):
                told = (folder / "log").read_text()[-3000:]
                assert process.poll() is None, told
                assert time.monotonic() < end, told
                time.sleep(0.2)
            yield port
        finally:
            process.kill()
            process.wait(30)


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/artemis/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def infer(port: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask as KServe's protocol has it; values travel as bytes behind the JSON."""
    told, binary = [], b""
    for name, value in inputs.items():
        if isinstance(value, int):
            kind, data = "INT32", value.to_bytes(4, "little")
        else:
            raw = value.encode() if isinstance(value, str) else value
            kind, data = "BYTES", len(raw).to_bytes(4, "little") + raw
        size = {"binary_data_size": len(data)}
        told.append({"name": name, "datatype": kind, "shape": [1, 1], "parameters": size})
        binary += data
    head = json.dumps({"inputs": told}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/artemis/infer",
        head + binary,
        {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        outputs = json.load(answer)["outputs"]
    return {output["name"]: output["data"] for output in outputs}


def test_triton_answers(repository: Path, searcher: Searcher, bundle: Path, tmp_path: Path) -> None:
    with triton(repository, tmp_path) as port:
        image = (bundle.parent / "5.png").read_bytes()
        told = infer(port, {"IMAGE": image, "TEXT": "is red", "K": 4})
        hits = searcher.query(image, "is red", 4)
        assert told["IDS"] == hits.ids
        assert told["SCORES"] == pytest.approx(hits.scores, abs=1e-5)
        told = infer(port, {"ITEM": "sku-3", "TEXT": "longer", "K": 4, "WHERE": "n < 6"})
        assert told["IDS"] == searcher.query(searcher.item("sku-3"), "longer", 4, "n < 6").ids
        with pytest.raises(urllib.error.HTTPError) as raised:
            infer(port, {"ITEM": "gone", "TEXT": "longer"})
        assert "holds no item" in raised.value.read().decode()
