"""The images and texts that int8 is calibrated with, and those that it is then judged on: never the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cir_export.samples import (
    ReadableFiles,
    Samples,
    draw_images,
    draw_texts,
    evenly,
    image_files,
)
from cir_infer.bundle import Bundle
from cir_infer.errors import UsageError
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.texts import Text, TextReader
from cir_infer.inputs.unknown_words import UNSAID
from cir_infer.runtime.graph import Array

__all__ = [
    "Calibration",
    "calibration_images",
    "calibration_texts",
    "check_calibration",
    "check_samples",
    "samples_for",
    "texts_read",
]

_CALIBRATED = 256
_JUDGED = 128
_FEWEST = 32
_FEWEST_JUDGED = 8


@dataclass(frozen=True)
class Calibration:
    """Images and texts whose extremes become int8's ranges.

    Attributes:
        images: as `cir_infer.inputs.preprocess.preprocess` takes them.
        held_out: images of the same kind that int8 is judged on.
        source: where they come from.
        unreadable: files of the folder that were left out because they cannot be read.
        copies: files that were left out because another shows the model the same.
        texts: as `cir_infer.inputs.texts.TextReader.read` takes them; without any, texts stay float32.
    """

    images: Sequence[ImageLike]
    held_out: Sequence[ImageLike]
    source: str
    unreadable: int = 0
    copies: int = 0
    texts: Sequence[Text] = ()

    def to_json(self, with_texts: bool) -> dict[str, Any]:
        """Plain values, for a manifest: the folder's name, not its place on this machine."""
        found = {"unreadable": self.unreadable, "copies": self.copies}
        left_out = {what: count for what, count in found.items() if count}
        texts = {"texts": len(self.texts)} if with_texts else {}
        return {"images": len(self.images), "source": Path(self.source).name, **left_out, **texts}


def calibration_images(bundle: Bundle, folder: str | os.PathLike[str], progress: bool = False) -> Calibration:
    """The user's images, at most 256 to calibrate with and 128 to judge by, evenly from the whole folder.

    Args:
        bundle: of the model that reads them.
        folder: of images.
        progress: say how far it is.

    Raises:
        UsageError: there are fewer than 32 that can be read and differ from each other.
    """
    files = image_files(folder, _image(bundle))
    readable = ReadableFiles(folder, files, bundle.manifest.image)
    usable = readable.evenly(files, 4 * _JUDGED, progress)
    held_out = usable[::4]
    rest = evenly([file for number, file in enumerate(usable) if number % 4], _CALIBRATED)
    broken, copies = len(readable.reasons), readable.copies
    _check_enough(folder, len(files), len(usable), broken, copies)
    readable.tell()
    return Calibration(rest, held_out, str(folder), broken, copies, calibration_texts(bundle))


def calibration_texts(bundle: Bundle) -> Sequence[Text]:
    """Texts for a bundle's text encoder, none of which it is judged on; none where it has no such encoder."""
    return _drawn(bundle)[1]


def _drawn(bundle: Bundle) -> tuple[Sequence[Text], Sequence[Text]]:
    """Texts to judge by, and to calibrate with."""
    text = json.loads(bundle.manifest.to_json())["text"]
    return ((), ()) if text is None else draw_texts(text, Tokenizer.from_str(bundle.tokenizer().decode()))


def texts_read(bundle: Bundle, texts: Sequence[Text]) -> Iterator[Mapping[str, Array]]:
    """What a bundle's text graph reads of each text, one by one: padding would widen ranges."""
    spec = bundle.manifest.text
    assert spec is not None
    reader = TextReader(bundle.tokenizer(), spec)
    for text in texts:
        tokens, lengths = reader.read([text], UNSAID)
        yield {"tokens": tokens, "lengths": lengths}


def check_calibration(folder: str | os.PathLike[str], image: dict[str, Any]) -> None:
    """Whether a folder could calibrate, by its files' names: before anything takes time.

    Args:
        folder: of images.
        image: what a model reads, as in a bundle's manifest.

    Raises:
        UsageError: there are too few.
    """
    found = len(image_files(folder, image))
    _check_enough(folder, found, found)


def check_samples(images: int, source: str) -> None:
    """Whether so many different images could refuse a precision: the order of a few says nothing.

    Raises:
        UsageError: they could not.
    """
    if images < _FEWEST_JUDGED:
        raise UsageError(
            f"there are {images} different images in {source}; a precision is judged on at least "
            f"{_FEWEST_JUDGED}; give a folder of more with --images, or judge by recall (--labelled DATA "
            "--protocol NAME)"
        )


def _check_enough(
    folder: str | os.PathLike[str], files: int, usable: int, broken: int = 0, copies: int = 0
) -> None:
    if usable < _FEWEST:
        unread = f", {broken} of which cannot be read" if broken else ""
        copied = f", {copies} of which show the model what another shows" if copies else ""
        raise UsageError(
            f"{folder} holds {files} images{unread}{copied}; int8 needs at least {_FEWEST} to be calibrated "
            "and judged, better some hundreds"
        )


def samples_for(
    bundle: Bundle, folder: str | os.PathLike[str] | None, calibration: Calibration | None
) -> Samples:
    """Images and texts to compare two precisions on.

    The images are the user's own (`folder`), else those held out of the calibration, else generated.
    """
    images, source = draw_images(_image(bundle), folder)
    texts = _drawn(bundle)[0]
    if folder is not None:  # its name; its place on this machine is nobody's business
        return Samples(images, texts, Path(folder).name)
    if calibration is not None:
        source = f"{len(calibration.held_out)} images of {Path(calibration.source).name} held out"
        return Samples(calibration.held_out, texts, source)
    return Samples(images, texts, source)


def _image(bundle: Bundle) -> dict[str, Any]:
    image: dict[str, Any] = json.loads(bundle.manifest.to_json())["image"]
    return image
