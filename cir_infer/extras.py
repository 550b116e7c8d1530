"""What is not installed or does not import, said in one way: which package, what for, what brings it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cir_infer.errors import CirError, DeviceError, PackageError, interrupt_in, lack, shown

__all__ = ["EXTRAS", "importing", "install_hint", "is_installed", "modules_of", "require"]

EXTRAS = {
    "aiohttp": "ray-serve",
    "faiss": "bench",
    "fastapi": "serve",
    "huggingface_hub": "hub",
    "onnx": "precision",
    "onnxscript": "export",
    "openvino": "openvino",
    "pillow_heif": "heic",
    "prometheus_client": "serve",
    "pyarrow": "parquet",
    "pycuda": "gpu",
    "python_multipart": "serve",
    "ray": "ray",
    "resvg_py": "emoji",
    "safetensors": "export",
    "tensorrt": "gpu",
    "tomli": "export",
    "torch": "export",
    "usearch": "bench",
    "uvicorn": "serve",
}
"""The extra of cir-infer that brings a module, by the module's name."""

_WIDER = {"precision": "export", "ray": "ray-serve", "serve": "ray-serve"}
"""An extra that holds another whole: where both are missing, the wider one does for both."""


def modules_of(extra: str) -> tuple[str, ...]:
    """The modules that an extra brings, for `require`."""
    return tuple(module for module, brought_by in EXTRAS.items() if brought_by == extra)


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it.

    Raises:
        DeviceError: folders cannot be looked into, for want of open files.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except OSError as error:
        raise DeviceError(f"{module} cannot be looked for: {lack(error) or shown(error)}") from error
    except (ImportError, ValueError):  # a parent that is broken, or a module without a spec
        return False


def install_hint(*modules: str) -> str:
    """The command that installs modules of `EXTRAS`: `pip install 'cir-infer[export]'`."""
    extras = {EXTRAS[module] for module in modules}
    extras -= {small for small, wide in _WIDER.items() if wide in extras}
    return f"pip install 'cir-infer[{','.join(sorted(extras))}]'"


def require(purpose: str, *modules: str, error: type[CirError] = PackageError) -> None:
    """Refuses now what would fail later for want of a package.

    Args:
        purpose: what needs them, the beginning of the message, e.g. "reading parquet".
        modules: names of modules, all of `EXTRAS`.
        error: what to raise.

    Raises:
        CirError: of the type `error`: one is not installed; the message names the missing ones and the
            command that installs them.
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        *others, last = missing
        named, verb = (f"{', '.join(others)} and {last}", "are") if others else (last, "is")
        raise error(f"{purpose} needs {named}, which {verb} not installed: {install_hint(*missing)}")


@contextmanager
def importing(what: str, broken: Callable[[str], CirError]) -> Iterator[None]:
    """Tell why a package that is there cannot be imported.

    Args:
        what: the package, as a message calls it.
        broken: makes the error of an installation that does not work, of the reason.

    Raises:
        CirError: what `broken` makes of an ImportError or AttributeError, which is what is left of a package
            that was half removed.
        DeviceError: memory or open files ran out.
        KeyboardInterrupt: as it was, where a compiled module made an ImportError of it.
    """
    try:
        yield
    except Exception as error:
        interrupt = interrupt_in(error)
        if interrupt is not None:
            raise type(interrupt) from None
        if lacking := lack(error):
            raise DeviceError(f"{what} cannot be imported: {lacking}") from error
        if not isinstance(error, (ImportError, AttributeError)):
            raise
        raise broken(shown(error, 300)) from error
