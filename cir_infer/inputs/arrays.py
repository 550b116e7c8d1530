"""Arrays that are no images, and what to do about each kind; arrays in files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, shown
from cir_infer.foreign import no_file

__all__ = ["array_of", "image_fault", "is_masked", "loaded_array", "mapped_array", "save_array", "unmasked"]

_CHANNELS = (1, 3, 4)
_WANTED = "expected uint8 (height, width, 3), values 0..255"
_MAGIC = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"


def image_fault(array: npt.NDArray[Any]) -> str | None:
    """Why an array is no image, with the remedy; None for uint8 (H, W, C) with C = 1, 3 or 4."""
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        return f"is a batch of one; {_WANTED}: pass its image, array[0]"
    if array.ndim == 4:
        return f"is a batch of {shape[0]} images; {_WANTED}: pass them as a list of images"
    if array.ndim == 2:
        return f"has no axis of channels; {_WANTED}: pass array[:, :, None] for a grey image"
    if array.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        return f"has its channels first; {_WANTED}: pass array.transpose(1, 2, 0)"
    if array.ndim != 3 or shape[2] not in _CHANNELS:
        return f"is not an image; {_WANTED}"
    if array.dtype != np.uint8:
        return _type_fault(array)
    if is_masked(array):
        return "is masked in part; pass array.filled(value), with the value that is to stand there"
    return None


def _type_fault(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind == "b":
        return f"holds true and false; {_WANTED}: pass array.astype(numpy.uint8) * 255"
    if array.dtype.kind not in "iuf":
        return f"does not hold numbers; {_WANTED}"
    least, most = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    found = f"has values from {least:.4g} to {most:.4g}; {_WANTED}"
    if not (np.isfinite(least) and np.isfinite(most)):
        return f"holds NaN or infinity; {_WANTED}"
    if least < 0:
        return f"{found}: undo its normalisation first (the model does its own)"
    if most <= 1 and array.dtype.kind == "f":
        return f"{found}: pass (array * 255).round().astype(numpy.uint8)"
    if most <= 255:
        return f"{found}: pass array.round().astype(numpy.uint8)"
    return f"{found}: scale it to 0..255 and convert it"


def is_masked(values: Any) -> bool:
    """Whether NumPy has masked some of it; nothing is imported to find out, for then nothing is.

    Nor is anything while another thread is at importing it, which leaves a module without contents meanwhile.
    """
    asked = getattr(sys.modules.get("numpy.ma"), "is_masked", None)
    return asked is not None and bool(asked(values))


def array_of(values: Any) -> npt.NDArray[Any]:
    """An array of NumPy, a column of pandas or a tensor as an array; what is masked stays so."""
    return values if is_masked(values) else np.asarray(values)


def unmasked(values: Any) -> npt.NDArray[Any]:
    """What somebody passed as an array; what lies under a mask was never meant to be used.

    Raises:
        Exception: whatever arrays and tensors of others raise where they are none.
    """
    if is_masked(values):
        raise ValueError("some are masked")
    return np.asarray(values)


def loaded_array(file: IO[bytes], path: Path | None = None) -> npt.NDArray[Any]:
    """The array of a `.npy` file; nothing is unpickled.

    Args:
        file: its contents, from the beginning.
        path: where it lies, to map it into memory.

    Raises:
        Exception: what NumPy raises where it is damaged; a ValueError says what else it is. NumPy takes
            whatever it does not know for a pickle, and says how to trust it.
    """
    head = file.read(len(_MAGIC))
    file.seek(0)
    if head.startswith(_ZIP):
        raise ValueError("it is an archive of several arrays")
    if head != _MAGIC:
        raise ValueError(f"it begins with {head!r}" if head else "it is empty")
    array: npt.NDArray[Any]
    try:
        array = np.load(file if path is None else path, "r" if path else None, allow_pickle=False)
    except ValueError as error:
        if "bject" in str(error):
            raise ValueError("it holds Python objects, no numbers") from error
        raise
    return array


def save_array(file: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Write an array as `numpy.save` does, which says of a full disk only how much it could not write.

    Raises:
        OSError: it cannot be written, with the system's number.
    """
    plain = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
    file.write(plain.reshape(-1).view(np.uint8).data)


def mapped_array(path: Path) -> npt.NDArray[Any]:
    """The array of a `.npy` file, memory-mapped; nothing is unpickled.

    Raises:
        GalleryError: there is no such file (a pipe is none), or it holds something else.
    """
    # No name makes that raise; and to open a pipe would wait for somebody who writes.
    if not os.path.isfile(path):  # noqa: PTH113
        raise GalleryError(f"{shown(path)} {no_file(path)}; expected a .npy array")
    try:
        with path.open("rb") as file:
            return loaded_array(file, path)
    except Exception as error:
        raise GalleryError(
            f"{shown(path)}: cannot be read as a .npy array ({shown(error)}); expected what numpy.save writes"
        ) from error
