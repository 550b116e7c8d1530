"""What is asked while latency is measured: images and texts, different from query to query."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import FeatureInput
from cir_infer.errors import ImageError, UsageError
from cir_infer.foreign import lines_in, text_of
from cir_infer.gallery import Snapshot
from cir_infer.indexing.walking import images_below
from cir_infer.inputs.images import ImageLike, image_size
from cir_infer.inputs.locations import Location
from cir_infer.inputs.opening import why
from cir_infer.inputs.texts import Text

__all__ = ["Workload", "draw_workload", "photograph"]

_QUERIES = 64
_PHOTOGRAPH = (1000, 750)


@dataclass(frozen=True)
class Workload:
    """Queries to ask, over and over.

    Attributes:
        images: references: paths, or encoded images as bytes (features for a bundle on features).
        texts: as many modifier texts.
        source: where both come from, in words.
    """

    images: Sequence[ImageLike]
    texts: Sequence[Text]
    source: str


def draw_workload(
    bundle: Bundle, snapshot: Snapshot, folder: Path | None = None, texts: Path | None = None, seed: int = 0
) -> Workload:
    """Queries for a bundle over a gallery.

    Args:
        bundle: its tokenizer's words make the texts.
        snapshot: its items' own images are the references, where they are still on the disk.
        folder: images to take instead.
        texts: a file with one text a line to take instead.
        seed: of the draw.

    Raises:
        UsageError: the gallery holds nothing, the folder no image, or the file no text.
    """
    if not snapshot.count:
        raise UsageError("the gallery holds no item; index some images first, cir-index BUNDLE IMAGES")
    random = np.random.default_rng(seed)
    images, origin = _images(bundle, snapshot, folder, random)
    if texts is not None:
        lines = _lines(texts)
        chosen: list[Text] = list(itertools.islice(itertools.cycle(lines), len(images)))
        return Workload(images, chosen, f"{origin}; texts of a file")
    return Workload(images, _texts(bundle, len(images), random), f"{origin}; texts of 4 to 12 known words")


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in lines_in(text_of(path)) if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as text ({why(error)}); expected one text a line") from error
    if not found:
        raise UsageError(f"{path} holds no text; expected one a line")
    return found


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG with a photograph's spectrum and grain, at quality 88: it costs what a photograph costs.

    1000 x 750 take some 146 kB, 1.6 bits a pixel; decoding time follows the bits.

    Args:
        width: pixels.
        height: pixels.
        seed: of the picture.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / max(height, width)) ** 1.5
    phases = np.exp(2j * np.pi * random.uniform(size=(3, *amplitude.shape)))
    planes = np.fft.irfft2(amplitude * phases, s=(height, width))
    grain = random.normal(0, 2, planes.shape[1:])
    planes = 128 + 48 * planes / planes.std((1, 2), keepdims=True) + grain
    pixels = np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _images(
    bundle: Bundle, snapshot: Snapshot, folder: Path | None, random: np.random.Generator
) -> tuple[Sequence[ImageLike], str]:
    spec = bundle.manifest.image
    if folder is not None and isinstance(spec, FeatureInput):
        return images_below(folder, features=True)[:_QUERIES], "features of a folder"
    if folder is not None:
        found = images_below(folder)[:_QUERIES]
        return found, f"images of a folder, {_measured(found)}"
    if isinstance(spec, FeatureInput):
        features = np.abs(random.standard_normal((_QUERIES, spec.size))).astype(np.float32)
        return list(features), "generated features"
    live = snapshot.live_rows()
    rows = random.choice(live, min(_QUERIES, len(live)), replace=False)
    sources = [source for source in snapshot.sources(rows) if source is not None and _is_there(source)]
    if len(sources) == len(rows):
        return sources, f"images of the gallery, {_measured(sources)}"
    width, height = _PHOTOGRAPH
    pictures = [photograph(width, height, seed) for seed in range(8)]
    return pictures * (_QUERIES // 8), f"generated photographs, {width} x {height} JPEG"


def _is_there(source: str) -> bool:
    return Path(Location.parse(source).path).is_file()


def _measured(images: Sequence[ImageLike]) -> str:
    """Pixels and bytes of files, at their medians."""
    sizes = []
    for image in images:
        place = Location.parse(str(image))
        try:
            data = place.read()
            pixels = image_size(data)
        except (ImageError, OSError) as error:
            raise UsageError(f"{place} cannot be read as an image ({why(error)}); leave it out") from error
        if pixels is None:
            raise UsageError(f"{place} cannot be read as an image; leave it out")
        sizes.append((*pixels, len(data)))
    width, height, size = np.median(sizes, axis=0)
    return f"{width:.0f} x {height:.0f}, {size / 1e3:.0f} kB"


def _texts(bundle: Bundle, count: int, random: np.random.Generator) -> list[Text]:
    text = bundle.manifest.text
    if text is None:
        return [""] * count
    tokenizer = Tokenizer.from_str(bundle.tokenizer().decode())
    # BPE marks the end of a word, Unigram its beginning; word-level vocabularies hold whole words.
    plain = {
        word.removesuffix("</w>").removeprefix("\N{LOWER ONE EIGHTH BLOCK}") for word in tokenizer.get_vocab()
    }
    words = sorted(word for word in plain if word.isascii() and word.isalpha() and len(word) > 2)
    if not words:
        words = ["longer", "darker", "sleeves"]

    def drawn() -> Text:
        chosen = random.choice(words, random.integers(4, 13)).tolist()
        while len(chosen) > 1 and len(tokenizer.encode(" ".join(chosen)).ids) > text.max_tokens:
            chosen.pop()
        return " ".join(chosen)

    return [drawn() for _ in range(count)]
