"""What counts as an image, and how it is read: a path, bytes, a Pillow image or a uint8 array.

Formats are a fixed list of plain decoders; EPS, PDF and the like, for which Pillow would start other
programs, are not among them. An image that cannot be decoded completely is an `ImageError`.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ImageError, UsageError, lack, shown
from cir_infer.extras import install_hint
from cir_infer.inputs.arguments import plain_path
from cir_infer.inputs.arrays import image_fault, is_masked, loaded_array
from cir_infer.inputs.costs import MAX_BYTES, MAX_PIXELS, check_header, check_pixels, decoding, decoding_bytes
from cir_infer.inputs.locations import Location
from cir_infer.inputs.metadata import (
    check_end,
    check_sums,
    is_cluttered,
    orientation,
    stored_orientation,
    turned,
    without_metadata,
)
from cir_infer.inputs.open_files import check_open, contents, is_open_file
from cir_infer.inputs.remote import checked_address, is_url
from cir_infer.processes.memory import keep_freed_memory

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "Decoded",
    "ImageLike",
    "as_encoded",
    "check_pixels",
    "decode_image",
    "describe_image",
    "image_size",
    "load_features",
    "load_image",
    "ready_for_pictures",
]

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | npt.NDArray[Any]"
"""A path (or the `source` of a gallery's item), an encoded image as bytes or in an open binary file, a Pillow
image, or uint8 (H, W, C) with C = 1, 3 or 4. For a bundle on pre-extracted features: the features (F,), or
the path of a .npy file that holds them."""

Size = tuple[int, int]
"""Width and height."""

_ROTATED = (5, 6, 7, 8)
"""Values of EXIF's orientation that turn an image by a quarter."""

_FROM_LEFT, _FROM_TOP = (2, 3, 6, 7), (3, 4, 7, 8)
"""Those whose left, or upper, edge was stored as the right or the lower one."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "HEIF")

_CHECKS: dict[str, Callable[[IO[bytes]], None]] = {"PNG": check_sums, "JPEG2000": check_end}
"""What Pillow leaves unchecked of a whole file, by format."""

HEIC_REMEDY = f"{install_hint('pillow_heif')} for HEIC"
"""What to do where an image is HEIC and pillow-heif is not installed."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        image: the pixels.
        size: width and height of the whole picture.
        part: 1, or 2, 4, 8 where a JPEG was decoded at 1/2, 1/4, 1/8 of that; `image.size` is then
            rounded up.
        at: where the picture's left and top edge lie in `image`: what was rounded up stands on the right and
            below as it was stored, and wherever that has come to as it was turned.
    """

    image: Image.Image
    size: Size
    part: int = 1
    at: tuple[float, float] = (0.0, 0.0)


def load_image(image: ImageLike, exif_orientation: bool = False) -> Image.Image:
    """Decode an image completely, in its own mode; see `decode_image`."""
    return decode_image(image, exif_orientation).image


def decode_image(
    image: ImageLike, exif_orientation: bool = False, plan: Callable[[Size], int] | None = None
) -> Decoded:
    """Decode an image, in its own mode.

    Args:
        image: see `ImageLike`.
        exif_orientation: turn it upright as its EXIF tag says.
        plan: called with its upright size before it is decoded, to refuse it or to say at which part of it
            a JPEG may be decoded: 1, 2, 4 or 8 for 1, 1/2, 1/4, 1/8. A Pillow image is the caller's and is
            decoded whole.

    Raises:
        ImageError: no such file, not an image, truncated, above `MAX_PIXELS` or `MAX_BYTES`, more than 8
            bits a channel, or an array of another type or shape.
    """
    if isinstance(image, np.ndarray):
        array = _from_array(image)
        return Decoded(array, array.size)
    from PIL import Image, UnidentifiedImageError

    name = describe_image(image)
    check_open(image, name)
    try:
        if isinstance(image, Image.Image):
            return _decode(_Opened(image, name), exif_orientation, plan)
        with _stream(image) as stream:
            return _read(stream, name, exif_orientation, plan)
    except ImageError:
        raise
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # made an error by a filter
        raise ImageError(f"{name} is too large ({shown(error)}); scale it down first") from error
    except UnidentifiedImageError as error:
        if "HEIF" not in _formats() and _is_heic(image):
            raise ImageError(f"{name} is HEIC, which is not read here; {HEIC_REMEDY}") from error
        raise ImageError(
            f"{name} is not an image that can be read; expected one of {', '.join(_formats())}"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory; scale it down first") from error
    except Exception as error:  # decoders answer damage with OSError, SyntaxError, struct.error, ...
        if lacking := lack(error):
            raise ImageError(f"{name} cannot be read now: {lacking}") from error
        raise ImageError(
            f"{name} is truncated or damaged ({shown(error)}); save it again or leave it out"
        ) from error


def as_encoded(image: Image.Image) -> Image.Image:
    """An image in RGB as every bundle's `to_rgb` makes it, and so as it is drawn: alpha is dropped.

    What lies below transparency comes out, as in the training, and is neither white nor the page's colour.
    """
    return image if image.mode == "RGB" else image.convert("RGB")


def load_features(image: ImageLike, size: int) -> npt.NDArray[np.float32]:
    """Pre-extracted features as float32 (size,).

    Args:
        image: an array of numbers, or the path of a .npy file that holds one.
        size: F, the number of features that the bundle takes.

    Raises:
        ImageError: not such an array, another size, or a value that is not finite.
    """
    what = f"this bundle takes pre-extracted features: {size} numbers, as an array or a .npy file"
    if isinstance(image, (str, os.PathLike)):
        try:
            with _stream(image) as stream:
                array: object = loaded_array(stream)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(
                f"{describe_image(image)} is not a .npy file ({shown(error)}); {what}"
            ) from error
    else:
        array = image
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ImageError(f"{describe_image(image)} is not an array of numbers; {what}")
    if array.shape not in ((size,), (1, size)):
        raise ImageError(f"{describe_image(image)} has shape {array.shape}; {what}")
    if is_masked(array):
        raise ImageError(f"{describe_image(image)} is masked in part; {what}")
    features = array.reshape(size).astype(np.float32)
    if not np.isfinite(features).all():
        raise ImageError(f"{describe_image(image)} holds NaN or infinity; {what}")
    return features


def describe_image(image: object) -> str:
    """The image's name in a message: its path, or what it is."""
    if isinstance(image, (str, os.PathLike)):
        return shown(Path(plain_path(image)))
    if isinstance(image, np.ndarray):
        return f"the {image.dtype} array {image.shape}"
    if isinstance(image, (bytes, bytearray, memoryview)):
        with suppress(ValueError):  # of a view that was released
            return f"the image of {len(image):,} bytes"
        return "the memoryview"
    filename = getattr(image, "filename", None)
    return shown(Path(filename)) if filename and isinstance(filename, str) else f"the {type(image).__name__}"


def _stream(image: object) -> IO[bytes]:
    if isinstance(image, (bytes, bytearray, memoryview)):
        # Of a view with gaps, which is no buffer, what it shows.
        return io.BytesIO(
            image.tobytes() if isinstance(image, memoryview) and not image.contiguous else image
        )
    if isinstance(image, (str, os.PathLike)):
        place = Location.parse(plain_path(image))
        local = place.whole and not place.remote
        return _opened_file(_existing(image)) if local else io.BytesIO(place.read())
    if is_open_file(image):
        return io.BytesIO(contents(image))
    raise ImageError(
        "an image is a path, bytes, an open binary file, a Pillow image or a uint8 (height, width, 3) array; "
        f"got {shown(image)}"
    )


def _opened_file(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:  # which says nothing of the picture
        raise ImageError(f"{shown(path)} cannot be read ({lack(error) or error.strerror})") from error


def image_size(data: bytes) -> Size | None:
    """Width and height of an encoded image by its header; None where they cannot be told.

    Raises:
        ImageError: already its header would take too much to read.
    """
    with io.BytesIO(data) as stream:
        check_header(stream, "the image")
        try:
            with _identified(stream) as image:
                return image.width, image.height
        except Exception:  # what decodes it says what is wrong
            return None


class _Opened(NamedTuple):
    """An opened image.

    Attributes:
        image: not decoded yet, unless it is the caller's.
        name: for messages.
        stream: its file; None for the caller's image.
        stored: its orientation, where it was read already.
    """

    image: Image.Image
    name: str
    stream: IO[bytes] | None = None
    stored: int | None = None


def _read(
    stream: IO[bytes], name: str, exif_orientation: bool, plan: Callable[[Size], int] | None
) -> Decoded:
    """Decodes a file; what stands beside the pixels is left out where a decoder stumbles over it."""
    from PIL import Image

    check_header(stream, name)
    sound = (ImageError, Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
    try:
        if is_cluttered(stream):
            raise ValueError("it has more notes than pictures")
        return _decode(_Opened(_identified(stream), name, stream), exif_orientation, plan)
    except sound:  # which say nothing of damage
        raise
    except Exception as error:
        plain = without_metadata(stream)
        if plain is None:
            raise
        with io.BytesIO(plain) as picture:
            try:
                opened = _Opened(_identified(picture), name, picture, stored_orientation(stream))
                return _decode(opened, exif_orientation, plan)
            except sound:
                raise
            except Exception:
                raise error from None  # the picture itself is damaged


def _decode(opened: _Opened, exif_orientation: bool, plan: Callable[[Size], int] | None) -> Decoded:
    image, name, stream, stored = opened
    check_pixels(image.width, image.height, name)
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip these at 255 on the way to RGB: a white picture, and no error.
        raise ImageError(f"{name} has more than 8 bits a channel (mode {image.mode}); save it as 8-bit")
    if stream is None:
        # Others may pass it, too, and its notes may stand behind its pixels, where only Pillow reads them.
        stored = decoding(decoding_bytes(image, None, False, 1, name), name, lambda: _loaded(image), image)
    how = (orientation(image, stream) if stored is None else stored) if exif_orientation else 1
    size = (image.height, image.width) if how in _ROTATED else image.size
    part = 1 if plan is None else plan(size)
    if stream is None or image.format not in ("JPEG", "MPO"):
        part = 1

    def load() -> Image.Image:
        check = _CHECKS.get(image.format or "")
        if stream is not None and check is not None:
            place = stream.tell()
            check(stream)
            stream.seek(place)
        if part > 1:
            image.draft(None, (image.width // part, image.height // part))
        _load(image)
        # Pillow turns a TIFF while it decodes it.
        return image if image.format == "TIFF" else turned(image, how)

    loaded = decoding(decoding_bytes(image, stream, how != 1, part, name), name, load)
    if part == 1:
        return Decoded(loaded, loaded.size)
    across, down = loaded.width - size[0] / part, loaded.height - size[1] / part
    return Decoded(loaded, size, part, (across * (how in _FROM_LEFT), down * (how in _FROM_TOP)))


def _loaded(image: Image.Image) -> int:
    """Decode it, and say how it is stored."""
    _load(image)
    return orientation(image)


def _load(image: Image.Image) -> None:
    """Decode it, and leave it as it was where that fails: Pillow would take it for decoded from then on."""
    pieces = list(getattr(image, "tile", ()))
    try:
        image.load()
    except BaseException:
        if pieces:
            image.tile = pieces  # type: ignore[attr-defined]
        raise


def _existing(path: str | os.PathLike[str]) -> Path:
    if not plain_path(path):
        raise ImageError("the path of an image is empty; expected an image file")
    file = Path(plain_path(path))
    try:
        if file.is_file():
            return file
        found = "is not a file" if file.exists() else "does not exist"
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        why = getattr(error, "strerror", None) or error  # an OSError itself repeats the whole path
        raise ImageError(f"{shown(path)} is not a usable path ({why})") from error
    if is_url(plain_path(path)):
        try:
            checked_address(plain_path(path))
        except UsageError as error:  # it says what is read instead, and no secret
            raise ImageError(str(error)) from None
    raise ImageError(f"{shown(file)} {found}; expected an image file")


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    from PIL import Image

    fault = image_fault(array)
    if fault is not None:
        raise ImageError(f"{describe_image(array)} {fault}")
    check_pixels(array.shape[1], array.shape[0], describe_image(array))
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _is_heic(image: object) -> bool:
    try:
        with _stream(image) as stream:
            head = stream.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


def ready_for_pictures() -> None:
    """Do what the first picture would: import the usual decoders; and have memory kept from one to the next.

    Where an import fails, the first picture says so.
    """
    keep_freed_memory()
    with suppress(ImportError):
        from PIL import Image

        Image.preinit()


def _identified(stream: IO[bytes]) -> Image.Image:
    """A picture of one of the formats that are read, its header read.

    Those that Pillow has at hand come first: importing the decoders of all takes as long as an encoder's run.
    """
    from PIL import Image, UnidentifiedImageError

    Image.preinit()
    try:
        return Image.open(stream, formats=tuple(name for name in _FORMATS if name in Image.OPEN))
    except UnidentifiedImageError:
        stream.seek(0)
        return Image.open(stream, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
