"""Images and texts to verify an export with, the same on every run.

Images are the user's own, or rendered scenes and photograph-like pictures in many sizes; texts have
every length from one word up and are mixed, so that batches hold short and long ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cir_eval.datasets.scenes.rendering import VIEWS, render
from cir_eval.datasets.scenes.scene import CELLS, COLOURS, SHAPES, SIZES, Object, Scene
from cir_export.preprocessing import check_inputs
from cir_infer.bundle.manifest import FeatureInput, PixelInput
from cir_infer.console.progress import progress_bar
from cir_infer.errors import ExportError, ImageError, UsageError, shown
from cir_infer.indexing.walking import images_below
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import Text

__all__ = ["ReadableFiles", "Samples", "draw_images", "draw_samples", "draw_texts", "evenly", "image_files"]

_log = logging.getLogger(__name__)

IMAGES = 48
TEXTS = 40
_LARGE = 100_000_000
"""Parameters from which on an image takes a second, and a third of the images has to do."""

_LONGEST = 96
_JUDGED_SHORT, _CALIBRATED_SHORT = 32, 256
"""Texts of one word beside those, and half as many of two."""

_WORDS = 4096
"""Of a vocabulary, from its whole length, so many at most are looked at."""

_SENTENCES = (
    "is cream in color and more formal",
    "Has longer sleeves, a V-neck & no belt!",
    "the small red cube moves to the top left",
    "replace the blue sphere with 2 green ones",
)
_OTHER_SENTENCES = (
    "is red",
    "not blue",
    "has short sleeves",
    "is longer and less formal",
    "the same dress in black with a belt",
    "Is darker; has a floral pattern.",
    "has fewer buttons and a round neckline",
    "is shinier and has higher heels",
    "more expensive looking, with gold details",
    "same style but for children",
    "with a dog instead of the cat",
    "zoom in on the animal and show its face",
    "the man is holding an umbrella",
    "shows only one of them, seen from behind",
    "has more people in it",
    "remove the tree on the left",
    "has no text on it",
    "is outdoors, at night",
    "what it looks like in winter",
    "the lighting is warmer and there is snow on the ground",
    "change the background to a beach at sunset",
    "a photo of two of them on a wooden table",
    "make it look like an oil painting",
    "a drawing of the same thing",
)


@dataclass(frozen=True)
class Samples:
    """What an export is verified with; query i is image i modulo their number with text i.

    Attributes:
        images: as `Engine.encode_images` takes them.
        texts: as `Engine.encode_texts` takes them.
        source: where the images come from, in words.
    """

    images: Sequence[ImageLike]
    texts: Sequence[Text]
    source: str


def draw_samples(
    image: dict[str, Any],
    text: dict[str, Any],
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str] | None = None,
    parameters: int = 0,
) -> Samples:
    """Images and texts for a model.

    Args:
        image: `image` of its manifest.
        text: `text` of its manifest.
        tokenizer: its tokeniser.
        folder: the user's images (of a model on features: .npy files); the first 48 by name that can be
            read.
        parameters: of the model; a large one is verified on a third of the images.

    Raises:
        UsageError: the folder holds no image, or none that can be read.
        ExportError: the tokeniser does not read every text.
    """
    images, source = draw_images(image, folder)
    if parameters >= _LARGE:
        images = images[::3]
    return Samples(images, _texts(text, tokenizer), source)


def draw_images(
    image: dict[str, Any], folder: str | os.PathLike[str] | None = None
) -> tuple[Sequence[ImageLike], str]:
    """The images of `draw_samples`, and where they come from, in words."""
    if folder is not None:
        spec = check_inputs(image, {"pad_id": 0, "unk_id": None, "max_tokens": 1, "captions": " "})
        readable = ReadableFiles(folder, image_files(folder, image), spec)
        found = readable.first(IMAGES)
        if not found:
            raise UsageError(f"no image of {folder} can be read: {readable.reasons[0]}")
        readable.tell()
        return found, str(folder)
    if image["kind"] == "features":
        return [_features(image["size"], number) for number in range(IMAGES)], "generated features"
    return list(_pictures()), "rendered scenes and generated photographs"


def image_files(folder: str | os.PathLike[str], image: dict[str, Any]) -> list[Path]:
    """The user's images below a folder, by name; of a model on features: .npy files.

    Raises:
        UsageError: there are none.
    """
    return images_below(folder, image["kind"] == "features")


class ReadableFiles:
    """The files of a folder that can be prepared for a model: a broken one costs itself, and is counted.

    So does a copy, or what becomes the same picture for the model: one that is seen twice tells no more, and
    what is judged on copies of what was calibrated with passes whatever it is.

    Args:
        folder: where they are.
        files: to choose from.
        spec: how they are prepared.

    Attributes:
        reasons: why files were left out, one a file.
        copies: how many were left out because one before them shows the same.
    """

    def __init__(
        self, folder: str | os.PathLike[str], files: Sequence[Path], spec: PixelInput | FeatureInput
    ) -> None:
        self._folder, self._files, self._spec = folder, files, spec
        self.reasons: list[str] = []
        self.copies = 0
        self._seen: set[bytes] = set()

    def first(self, count: int) -> list[Path]:
        """The first `count` that can be read and are no copies, in order."""
        return list(islice(filter(self._reads, self._files), count))

    def evenly(self, files: Sequence[Path], count: int, progress: bool = False) -> list[Path]:
        """Those of `count` files, taken evenly, that can be read and are no copies of others."""
        taken = evenly(files, count)
        return list(filter(self._reads, progress_bar(taken, len(taken), "reading", "image", progress)))

    def tell(self) -> None:
        """Says once in the log how many were left out."""
        if self.copies:
            _log.warning(
                "%d files of %s are left out: each shows the model what another shows",
                self.copies,
                self._folder,
            )
        if self.reasons:
            count = len(self.reasons)
            _log.warning(
                "%d file%s of %s cannot be read and %s left out: %s%s",
                count,
                "" if count == 1 else "s",
                self._folder,
                "is" if count == 1 else "are",
                self.reasons[0],
                "" if count == 1 else ", ...",
            )

    def _reads(self, file: Path) -> bool:
        try:
            seen = hashlib.sha256(preprocess(file, self._spec).tobytes()).digest()
        except ImageError as error:
            self.reasons.append(str(error))
            return False
        if seen in self._seen:
            self.copies += 1
            return False
        self._seen.add(seen)
        return True


def evenly(files: Sequence[Path], count: int) -> Sequence[Path]:
    """At most `count` of them, from the whole list."""
    return files if len(files) <= count else [files[n * len(files) // count] for n in range(count)]


def draw_texts(text: dict[str, Any], tokenizer: Tokenizer) -> tuple[list[Text], list[Text]]:
    """Texts to judge a text encoder of fewer bits by, and others to find its ranges with.

    Both are as those of `draw_samples`, and many of one and two words: what a word adds is not averaged away
    there, so that ranges of sentences alone hold one query of a word in seven.

    Args:
        text: `text` of its manifest.
        tokenizer: its tokeniser.

    Raises:
        ExportError: the tokeniser does not read every text.
    """
    words = _words(tokenizer)
    random = np.random.RandomState(13)
    words = [words[index] for index in random.permutation(len(words))]
    half = (len(words) + 1) // 2  # with one word or two the vocabulary may be at its end
    judged = _texts(text, tokenizer) + _short(words[:half], _JUDGED_SHORT, random)
    others = _texts(text, tokenizer, _OTHER_SENTENCES, 11) + _short(words[half:], _CALIBRATED_SHORT, random)
    known = {str(one) for one in judged}
    return _mixed(judged, text, tokenizer, random), [
        one for one in _mixed(others, text, tokenizer, random) if str(one) not in known
    ]


def _short(words: Sequence[str], count: int, random: np.random.RandomState) -> list[Text]:
    """So many of one word each, as far as there are words, and half as many of two."""
    twos = [words[random.randint(len(words))] for _ in range(count)] if words else []
    return [*words[:count], *(" ".join(pair) for pair in zip(twos[::2], twos[1::2], strict=False))]


def _texts(
    text: dict[str, Any], tokenizer: Tokenizer, sentences: Sequence[str] = _SENTENCES, seed: int = 7
) -> list[Text]:
    """Texts of 1, 2, 3, ... words and a few long ones, in mixed order, some with an unknown word."""
    vocabulary = _words(tokenizer)
    random = np.random.RandomState(seed)
    lengths = [*range(1, TEXTS - len(_SENTENCES) - 1), _LONGEST // 2, _LONGEST]
    texts: list[Text] = [*sentences]
    for number, length in enumerate(lengths):
        words = [vocabulary[random.randint(len(vocabulary))] for _ in range(length)]
        if number % 7 == 3:
            words[random.randint(length)] = "zzunheardof"
        if text["captions"] == "pair" and number % 4 == 1:
            texts.append([" ".join(words[: length // 2 + 1]), " ".join(words[length // 2 + 1 :] or ["or"])])
        else:
            texts.append(" ".join(words))
    return _mixed(texts, text, tokenizer, random)


def _mixed(
    texts: Sequence[Text], text: dict[str, Any], tokenizer: Tokenizer, random: np.random.RandomState
) -> list[Text]:
    """Those that a model can take, in mixed order.

    Raises:
        ExportError: there are none.
    """
    lengths = [_tokens(tokenizer, one) for one in texts]
    fitting = [one for one, length in zip(texts, lengths, strict=True) if length <= text["max_tokens"]]
    if texts and not fitting:
        raise ExportError(
            f"a text has {text['max_tokens']} tokens at most (max_tokens), and a word with what is around it "
            f"has {min(lengths)}; expected a model that reads at least so many"
        )
    return [fitting[index] for index in random.permutation(len(fitting))]


def _words(tokenizer: Tokenizer) -> list[str]:
    """Words, or parts of them, that a tokeniser knows, in whatever script it reads; by name.

    Without those of its own script all words of a text are the unknown one, and a text encoder that int8
    spoils for every other would pass.
    """
    size = tokenizer.get_vocab_size()
    few = range(size) if size <= _WORDS else (number * size // _WORDS for number in range(_WORDS))
    found = set()
    for number in few:
        said = tokenizer.decode([number])  # nothing, of an id that stands for nothing
        word = said.strip().removeprefix("##").removesuffix("</w>").strip("\u2581\u0120")
        if word and all(unicodedata.category(letter)[0] in "LM" for letter in word):
            found.add(word)
    return sorted(found) or ["it"]


def _tokens(tokenizer: Tokenizer, text: Text) -> int:
    plain = text if isinstance(text, str) else " ".join(text)
    between = 0 if isinstance(text, str) else 1
    try:
        return len(tokenizer.encode(plain).ids) + between
    except Exception as error:  # the library raises plain Exception
        raise ExportError(
            f"the tokenizer does not read {shown(plain, 60)} ({shown(error)}); expected one that reads "
            "any text, with its unknown token in the vocabulary"
        ) from error


def _features(size: int, number: int) -> npt.NDArray[np.float32]:
    """Like a pooled rectified map: not negative, most values small, some zero."""
    draw = np.random.RandomState(number).standard_normal(size)
    return np.maximum(draw - 0.3, 0).astype(np.float32)


@cache
def _pictures() -> tuple[npt.NDArray[np.uint8], ...]:
    """Drawn once a process: that takes a second, and a table of systems exports one after the other."""
    scenes = [_scene(number) for number in range(IMAGES // 2)]
    photographs = [_photograph(number) for number in range(IMAGES - len(scenes))]
    for picture in (*scenes, *photographs):
        picture.setflags(write=False)
    return (*scenes, *photographs)


def _scene(number: int) -> npt.NDArray[np.uint8]:
    """Two to five objects on the grid, flat or shaded."""
    random = np.random.RandomState(2000 + number)
    cells: list[Object | None] = [None] * CELLS
    for cell in random.permutation(CELLS)[: random.randint(2, 6)]:
        kinds = (kind[random.randint(len(kind))] for kind in (SHAPES, COLOURS, SIZES))
        cells[cell] = Object(*kinds)
    return render(Scene(tuple(cells)), VIEWS[number % len(VIEWS)])


def _photograph(number: int) -> npt.NDArray[np.uint8]:
    """A picture with a photograph's spectrum (amplitude about 1 / frequency), light, edges and odd sizes."""
    random = np.random.RandomState(1000 + number)
    height, width = (int(side) for side in random.randint(90, 420, 2))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / max(height, width))
    phases = np.exp(2j * np.pi * random.uniform(size=(3, *amplitude.shape)))
    planes = np.fft.irfft2(amplitude * phases, s=(height, width))
    planes /= planes.std((1, 2), keepdims=True)
    light = np.tensordot(random.uniform(-1, 1, (3, 3)), planes, axes=1) * 40 + random.uniform(
        60, 200, (3, 1, 1)
    )
    top, left = random.randint(height // 2), random.randint(width // 2)
    light[:, top : top + height // 3, left : left + width // 3] = random.uniform(0, 255, (3, 1, 1))
    if number % 8 == 7:
        light[:] = light.mean(0)
    return np.ascontiguousarray(np.clip(light, 0, 255).astype(np.uint8).transpose(1, 2, 0))
