"""TensorRT's stand-in on streams of the emulated driver, for the tests that run on it with PyCUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cir_infer.errors import DeviceError
from tests.emulation.driver.host_work import run_on_streams
from tests.runtime.conftest import bundle, engine, gallery_path, pictures, searcher
from tests.runtime.tensorrt.conftest import tensorrt, version

__all__ = ["bundle", "engine", "gallery_path", "pictures", "searcher", "tensorrt", "version"]


def missing() -> str:
    """Why tests cannot run on the emulated driver, or ""."""
    from cir_infer.gpu.context import open_device

    try:
        name = open_device().name
    except DeviceError as error:
        return str(error)
    return "" if name.startswith("Emulated") else "this is a real GPU"


@pytest.fixture
def real_device(tensorrt: Path) -> Any:
    """The `_CudaDevice` that PyCUDA gives; TensorRT's stand-in puts its runs on the driver's streams."""
    import tensorrt as fake

    from cir_infer.gpu.context import open_device

    work = run_on_streams(fake)
    yield open_device()
    assert work.failures == []
