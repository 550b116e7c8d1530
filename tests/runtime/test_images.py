"""Everything that a user may hand over as an image, good and bad."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer.bundle.manifest import CenterCrop, PadSquare, PixelInput, Resize, ToRgb
from cir_infer.errors import ImageError
from cir_infer.inputs import images
from cir_infer.inputs import preprocess as preprocessing
from cir_infer.inputs.images import load_features, load_image
from cir_infer.inputs.preprocess import preprocess

SPEC = PixelInput(8, 8, (ToRgb(), Resize(8), CenterCrop(8)))
GRADIENT = np.add.outer(np.arange(12) * 9, np.arange(20) * 7).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(kind: str) -> None:
    picture = Image.fromarray(np.repeat(GRADIENT[:, :, None], 3, axis=2))
    loaded = load_image(encoded(picture, kind)).convert("RGB")
    assert loaded.size == (20, 12)
    difference = np.abs(np.asarray(loaded, np.int16) - np.asarray(picture, np.int16))
    assert difference.mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb_as_pillow_converts_them(mode: str) -> None:
    picture = Image.fromarray(GRADIENT).convert(mode)
    out = preprocess(picture, SPEC)
    expected = picture.convert("RGB").resize((13, 8), Image.Resampling.BILINEAR).crop((2, 0, 10, 8))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_alpha_is_dropped_not_composited() -> None:
    clear_red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    np.testing.assert_array_equal(preprocess(clear_red, SPEC), np.full((8, 8, 3), (255, 0, 0)))


def test_palette_with_transparency() -> None:
    picture = Image.fromarray(GRADIENT).convert("P")
    out = preprocess(encoded(picture, transparency=0), SPEC)
    np.testing.assert_array_equal(out, preprocess(picture.convert("RGB"), SPEC))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed_where_the_bundle_says_so(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(GRADIENT), exif=exif)
    assert load_image(data).size == (20, 12)
    upright = load_image(data, exif_orientation=True)
    assert upright.size == ((20, 12) if orientation <= 4 else (12, 20))
    # What each value means: where the corner of the stored picture with the value 0 ends up.
    corners = {1: (0, 0), 2: (-1, 0), 3: (-1, -1), 4: (0, -1), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}
    x, y = corners[orientation]
    assert np.asarray(upright)[y, x] == 0


def test_no_file_and_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="not a file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="nul"):
        load_image("nul\0byte.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ImageError, match="not an image"):
        load_image(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="not an image"):
        load_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="int"):
        load_image(3)  # type: ignore[arg-type]


def test_formats_that_would_start_a_program_are_not_read() -> None:
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n8 8 moveto showpage\n%%EOF\n"
    )
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    with pytest.raises(ImageError, match="not an image"):
        load_image(postscript)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError):
        load_image(data[: int(len(data) * part)])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # of EXIF that it reads anyway
@settings(max_examples=150)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), data=st.data())
def test_damaged_files_give_an_image_or_an_image_error(kind: str, data: st.DataObject) -> None:
    raw = bytearray(encoded(Image.fromarray(GRADIENT).convert("RGB"), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert preprocess(bytes(raw), SPEC).shape == (8, 8, 3)
    except ImageError as error:
        assert "\n" not in str(error).strip()


def test_a_hundred_megapixels_are_read() -> None:
    data = encoded(Image.new("1", (10_000, 10_000), 1))
    with pytest.warns(Image.DecompressionBombWarning):
        assert (preprocess(data, SPEC) == 255).all()


@pytest.mark.filterwarnings("error")
def test_whoever_makes_errors_of_warnings_hears_of_the_size_and_of_no_damage() -> None:
    with pytest.raises(ImageError, match="is too large") as caught:
        load_image(png_header(10_000, 10_000))
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("size", [(12_000, 12_000), (50_000, 50_000), (1 << 20, 1 << 20)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_larger_claims_are_refused_before_memory_is_taken(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="too large"):
        load_image(png_header(*size))


def test_zero_sized() -> None:
    with pytest.raises(ImageError):
        load_image(png_header(0, 0))
    with pytest.raises(ImageError, match="empty"):
        load_image(np.zeros((0, 4, 3), np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \(height, width, 3\)"):
        load_image(array)


def test_more_than_eight_bits_would_be_clipped_and_are_refused() -> None:
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 256)
    with pytest.raises(ImageError, match="8 bits"):
        load_image(encoded(deep))
    with pytest.raises(ImageError, match="8 bits"):
        load_image(Image.new("F", (8, 8)))


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(preprocess(data, SPEC), np.full((8, 8, 3), (255, 0, 0)))


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(encoded(Image.fromarray(GRADIENT), "GIF"))
    load_image(path)
    opened = [entry.resolve() for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert path not in opened


def opened(path: Path) -> Image.Image:
    return Image.open(path)


def of_closed_file(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file)


def left(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image


def closed(image: Image.Image) -> Image.Image:
    image.close()
    return image


def loaded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_closed_image_is_called_that_and_not_damaged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"dress.{kind.lower()}"
    Image.new("RGB", (64, 48), "red").save(path, kind)
    for image in (closed(opened(path)), closed(loaded(path)), closed(Image.new("RGB", (4, 4)))):
        with pytest.raises(ImageError, match="is closed; pass it before it is closed, or its path"):
            load_image(image)
    # Formats differ in what they read when they are opened: what is there is read.
    for image in (of_closed_file(path), left(path)):
        try:
            assert load_image(image).size == (64, 48)
        except ImageError as error:
            assert "is closed; " in str(error)
    assert load_image(loaded(path)).size == load_image(opened(path)).size == (64, 48)


def test_a_released_view_is_called_closed() -> None:
    view = memoryview(encoded(Image.new("RGB", (4, 4))))
    view.release()
    with pytest.raises(ImageError, match=r"^the memoryview is closed"):
        load_image(view)


def test_features(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float64)
    np.save(tmp_path / "f.npy", values)
    for given_ in (values, values.astype(np.float16), tmp_path / "f.npy", values[None]):
        loaded = load_features(given_, 4)
        assert loaded.dtype == np.float32
        assert loaded.tolist() == [0, 1, 2, 3]
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "junk.npy").write_bytes(b"\x93NUMPY junk")
    bad: list[object] = [
        values[:3],
        np.array([1, np.nan, 2, 3]),
        np.array(["a"] * 4),
        tmp_path / "pickle.npy",
        tmp_path / "junk.npy",
        tmp_path / "none.npy",
        b"bytes",
    ]
    for value in bad:
        with pytest.raises(ImageError):
            load_features(value, 4)  # type: ignore[arg-type]
    (tmp_path / "text.npy").write_text("0 1 2 3")
    for name, found in (("text.npy", "it begins with b'0 1 2"), ("pickle.npy", "it holds Python objects")):
        with pytest.raises(ImageError, match=found) as caught:
            load_features(tmp_path / name, 4)
        assert "allow_pickle" not in str(caught.value)


def test_a_name_that_no_file_can_have_is_told_once_and_short() -> None:
    for name in ("x" * 5000, "x/" * 3000):
        with pytest.raises(ImageError, match="is not a usable path") as caught:
            load_image(name)
        assert "(File name too long)" in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("size", [(1 << 20, 1), (1, 1 << 20), (65_535, 2)])
def test_a_line_takes_no_time_for_the_border_that_makes_it_a_square(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It has a step for each pixel of the border.
    monkeypatch.setattr(preprocessing, "resize_part", None)
    spec = PixelInput(32, 32, (ToRgb(), PadSquare(), Resize(40), CenterCrop(32)))
    line = Image.fromarray(np.full((size[1], size[0], 3), 200, np.uint8))
    pixels = preprocess(line, spec)
    assert pixels.shape == (32, 32, 3) and pixels.min() >= 200


@pytest.mark.parametrize("size", [(3000, 2), (37, 4001), (500, 400)])
def test_large_borders_give_the_same_bytes(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PixelInput(32, 32, (ToRgb(), PadSquare(), Resize(40), CenterCrop(32)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    at_once = preprocess(picture, spec)
    monkeypatch.setattr(preprocessing, "MAX_PIXELS", 10)
    np.testing.assert_array_equal(preprocess(picture, spec), at_once)


def test_the_limit_is_the_documented_one() -> None:
    assert images.MAX_PIXELS == 134_217_728


def test_decoders_are_imported_for_the_formats_that_need_them() -> None:
    """Those of all formats take as long to import as an encoder's run."""
    pictures = {kind: encoded(Image.new("RGB", (9, 7)), kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP")}
    program = f"""if True:
        import sys
        from cir_infer.inputs.images import image_size, load_image
        for kind, data in {pictures!r}.items():
            assert load_image(data).size == (9, 7) and image_size(data) == (9, 7), kind
            print(kind, "PIL.EpsImagePlugin" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["JPEG", "False", "PNG", "False", "TIFF", "True", "WEBP", "True"], done
