"""Reads a manifest, strictly.

An unknown field, a missing one or a value of another type is a `BundleError` that names the place,
because a manifest that is half understood gives wrong answers in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from cir_infer.bundle.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    CenterCrop,
    DivideByMaximum,
    Explain,
    FeatureInput,
    Manifest,
    Member,
    PadSquare,
    PixelInput,
    Resize,
    ScaledJpeg,
    Step,
    TargetPad,
    TextInput,
    ToRgb,
)
from cir_infer.errors import BundleError, shown
from cir_infer.foreign import read_json, unique_names

__all__ = ["read_manifest"]

GRAPHS = ("image", "reference", "text", "compose")
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
MAX_TEXT = 1000
MAX_TOKENS = 1 << 16
"""Most vectors of a gallery row, as in `cir_infer.scoring.contract`; and values of all of them."""
MAX_ITEM_VALUES = 1 << 24
MAX_SIDE = 8192
"""Longest image side, in pixels, that a manifest may ask for."""

_STEPS: dict[str, type[Step]] = {
    s.op: s for s in (ScaledJpeg, ToRgb, DivideByMaximum, PadSquare, TargetPad, Resize, CenterCrop)
}


class _Reader:
    """One JSON object of the manifest, whose fields are taken one by one and none may be left over."""

    def __init__(self, value: object, where: str, version: int = FORMAT_VERSION) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"manifest: {where} is {shown(value, 60)}; expected an object")
        self._fields: dict[str, Any] = dict(value)
        self._where = where
        self.version = version

    def has(self, name: str, since: int) -> bool:
        """Whether a field is there that format `since` added; in an older format it is one too many."""
        return self.version >= since and name in self._fields

    def inner(self, name: str) -> _Reader:
        """The object in a field."""
        return _Reader(self.mapping(name), name, self.version)

    def _take(self, name: str, expected: str) -> Any:
        if name not in self._fields:
            raise BundleError(f"manifest: {self._where}.{name} is missing; expected {expected}")
        return self._fields.pop(name)

    def wrong(self, name: str, value: object, expected: str) -> BundleError:
        return BundleError(f"manifest: {self._where}.{name} is {shown(value, 60)}; expected {expected}")

    def text(self, name: str) -> str:
        value = self._take(name, "a text")
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
            raise self.wrong(name, value, f"a text of 1 to {MAX_TEXT} characters")
        return value

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        value = self._take(name, f"one of {', '.join(choices)}")
        if value not in choices:
            raise self.wrong(name, value, f"one of {', '.join(choices)}")
        return cast("str", value)

    def whole(self, name: str, low: int, high: int) -> int:
        value = self._take(name, f"a whole number from {low} to {high}")
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        value = self._take(name, "true or false")
        if type(value) is not bool:
            raise self.wrong(name, value, "true or false")
        return value

    def value(self, name: str, expected: str) -> Any:
        return self._take(name, expected)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._take(name, "an object")
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return value

    def done(self) -> None:
        if self._fields:
            raise BundleError(
                f"manifest: {self._where} has a field {shown(sorted(self._fields)[0])} that this version "
                "does not know; upgrade cir-infer or export the model again"
            )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read_manifest(text: str | bytes) -> Manifest:
    """The manifest in a JSON text.

    Raises:
        BundleError: not JSON, another format, a newer version, or a field that is not as
            docs/architecture.md says.
    """
    try:
        value = read_json(text, object_pairs_hook=unique_names, parse_constant=_no_constant)
    except ValueError as error:
        raise BundleError(f"the manifest is not JSON ({shown(error)}); export the model again") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BundleError(f'the manifest does not say "format": "{FORMAT}"; this is not a bundle')
    version = value.get("version")
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format version {version} and this cir-infer reads up to {FORMAT_VERSION}; "
            "upgrade cir-infer, or export the model again with this version"
        )
    reader = _Reader(value, "manifest")
    reader.one_of("format", (FORMAT,))
    reader.version = reader.whole("version", 1, FORMAT_VERSION)
    manifest = Manifest(
        system=reader.text("system"),
        created_by=reader.text("created_by"),
        embedding_dim=reader.whole("embedding_dim", 1, 1 << 20),
        terms=_read_terms(reader),
        weighted=reader.flag("weighted"),
        precision=reader.one_of("precision", PRECISIONS),
        image=_read_image(reader.inner("image")),
        text=_read_text(reader.value("text", "an object or null"), reader.version),
        graphs=_read_graphs(reader.mapping("graphs")),
        explain=_read_explain(reader.inner("explain")) if reader.has("explain", 2) else None,
        members={
            name: _read_member(name, member) for name, member in sorted(reader.mapping("members").items())
        },
        parity=reader.mapping("parity"),
        provenance=reader.mapping("provenance"),
        **_read_tokens(reader),
        weights=_read_weights(reader),
    )
    reader.done()
    if manifest.tokens_per_item * manifest.embedding_dim > MAX_ITEM_VALUES:
        raise BundleError(
            f"manifest: a gallery row has {manifest.tokens_per_item} x {manifest.embedding_dim} values; "
            f"expected at most {MAX_ITEM_VALUES}"
        )
    _check_members(manifest)
    return manifest


def _read_tokens(reader: _Reader) -> dict[str, Any]:
    if not reader.has("tokens_per_item", 2):
        return {}
    tokens = reader.whole("tokens_per_item", 2, MAX_TOKENS)
    return {"tokens_per_item": tokens, "reduce": reader.one_of("reduce", ("max",))}


def _read_weights(reader: _Reader) -> Literal["weights.bin"] | None:
    if not reader.has("weights", 2):
        return None
    return cast("Literal['weights.bin']", reader.one_of("weights", (WEIGHTS_NAME,)))


def _read_terms(reader: _Reader) -> tuple[str, ...]:
    terms = reader.value("terms", "a list of names")
    if (
        not isinstance(terms, list)
        or not 1 <= len(terms) <= 64
        or not all(isinstance(term, str) and term.isidentifier() for term in terms)
        or len(set(terms)) != len(terms)
    ):
        raise reader.wrong("terms", terms, "a list of 1 to 64 different names (letters, digits, underscores)")
    return tuple(terms)


def _read_image(reader: _Reader) -> PixelInput | FeatureInput:
    if reader.one_of("kind", (PixelInput.kind, FeatureInput.kind)) == FeatureInput.kind:
        features = FeatureInput(size=reader.whole("size", 1, 1 << 24))
        reader.done()
        return features
    steps = reader.value("steps", "a list of steps")
    if not isinstance(steps, list) or len(steps) > 32:
        raise reader.wrong("steps", steps, "a list of at most 32 steps")
    pixels = PixelInput(
        height=reader.whole("height", 1, MAX_SIDE),
        width=reader.whole("width", 1, MAX_SIDE),
        exif_orientation=reader.flag("exif_orientation"),
        steps=tuple(
            _read_step(_Reader(step, f"image.steps[{i}]", reader.version)) for i, step in enumerate(steps)
        ),
    )
    reader.done()
    if sum(isinstance(step, ToRgb) for step in pixels.steps) != 1:
        raise BundleError("manifest: image.steps must hold the step to_rgb exactly once")
    _check_scaling(pixels.steps)
    _check_dividing(pixels.steps)
    return pixels


def _check_scaling(steps: tuple[Step, ...]) -> None:
    """Scaled decoding leaves out what the first resize throws away, so nothing before it may count pixels."""
    if not any(isinstance(step, ScaledJpeg) for step in steps):
        return
    after = [step for step in steps[1:] if not isinstance(step, (ToRgb, PadSquare, TargetPad))]
    if not isinstance(steps[0], ScaledJpeg) or not after or not isinstance(after[0], Resize):
        raise BundleError(
            "manifest: image.steps must begin with scaled_jpeg where it occurs, and resize before a step "
            "that needs every pixel (center_crop, divide_by_maximum)"
        )
    if any(isinstance(step, ScaledJpeg) for step in steps[1:]):
        raise BundleError("manifest: image.steps holds scaled_jpeg more than once")


def _check_dividing(steps: tuple[Step, ...]) -> None:
    """The maximum is that of all channels of an RGB picture."""
    places = [place for place, step in enumerate(steps) if isinstance(step, DivideByMaximum)]
    if len(places) > 1 or any(not place or not isinstance(steps[place - 1], ToRgb) for place in places):
        raise BundleError("manifest: image.steps may hold divide_by_maximum once, directly after to_rgb")


def _read_step(reader: _Reader) -> Step:
    known = tuple(name for name, step in _STEPS.items() if getattr(step, "added", 1) <= reader.version)
    op = _STEPS[reader.one_of("op", known)]
    step: Step
    if op is PadSquare:
        rounding = reader.one_of("rounding", ("artemis", "clip4cir"))
        step = PadSquare(reader.whole("fill", 0, 255), cast("Literal['artemis', 'clip4cir']", rounding))
    elif op is TargetPad:
        ratio = reader.value("ratio", "a number")
        if type(ratio) not in (int, float) or not math.isfinite(ratio) or not 1 <= ratio <= 100:
            raise reader.wrong("ratio", ratio, "a number from 1 to 100")
        step = TargetPad(float(ratio))
    elif op is Resize:
        interpolation = reader.one_of("interpolation", ("bilinear", "bicubic"))
        size = _read_size(reader)
        step = Resize(size, cast("Literal['bilinear', 'bicubic']", interpolation))
    elif op is CenterCrop:
        size = reader.whole("size", 1, MAX_SIDE)
        half = reader.one_of("rounding", ("even", "down")) if reader.has("rounding", 2) else "even"
        step = CenterCrop(size, cast("Literal['even', 'down']", half))
    else:
        step = op()
    reader.done()
    return step


def _read_size(reader: _Reader) -> int | tuple[int, int]:
    size = reader.value("size", "the shorter side, or [height, width]")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise reader.wrong("size", size, f"the shorter side, or [height, width], from 1 to {MAX_SIDE}")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _read_text(value: object, version: int) -> TextInput | None:
    if value is None:
        return None
    reader = _Reader(value, "text", version)
    unk_id = reader.value("unk_id", "a token id or null")
    if unk_id is not None and (type(unk_id) is not int or not 0 <= unk_id < 1 << 31):
        raise reader.wrong("unk_id", unk_id, "a token id or null")
    text = TextInput(
        pad_id=reader.whole("pad_id", 0, (1 << 31) - 1),
        unk_id=unk_id,
        max_tokens=reader.whole("max_tokens", 1, 1 << 16),
        captions=reader.text("captions"),
        fixed_length=reader.flag("fixed_length") if reader.has("fixed_length", 2) else False,
    )
    reader.done()
    return text


def _read_graphs(value: Mapping[str, Any]) -> dict[str, str]:
    unknown = sorted(set(value) - set(GRAPHS))
    if unknown:
        raise BundleError(f"manifest: graphs names {shown(unknown[0])}; expected only {', '.join(GRAPHS)}")
    for name in ("image", "compose"):
        if name not in value:
            raise BundleError(f"manifest: graphs.{name} is missing; every bundle has one")
    if not all(isinstance(file, str) for file in value.values()) or len(set(value.values())) != len(value):
        raise BundleError("manifest: graphs must give every graph a file of its own")
    return dict(value)


def _read_explain(reader: _Reader) -> Explain:
    explain = Explain(
        file=reader.text("file"),
        height=reader.whole("height", 1, MAX_SIDE),
        width=reader.whole("width", 1, MAX_SIDE),
        unit_rows=reader.flag("unit_rows"),
    )
    reader.done()
    return explain


def _read_member(name: str, value: object) -> Member:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name == MANIFEST_NAME:
        raise BundleError(
            f"manifest: the member name {shown(name, 60)} is not a plain file name (letters, digits, . _ -)"
        )
    reader = _Reader(value, f"members[{shown(name)}]")
    member = Member(bytes=reader.whole("bytes", 1, 1 << 40), sha256=reader.text("sha256"))
    if not re.fullmatch(r"[0-9a-f]{64}", member.sha256):
        raise reader.wrong("sha256", member.sha256, "64 hexadecimal digits")
    reader.done()
    return member


def _check_members(manifest: Manifest) -> None:
    expected = set(manifest.graphs.values())
    if manifest.explain is not None:
        if not isinstance(manifest.image, PixelInput):
            raise BundleError("manifest: explain belongs to images; this bundle takes features")
        if manifest.tokens_per_item > 1:
            raise BundleError("manifest: explain belongs to rows of one vector, not to tokens_per_item")
        if manifest.explain.file in {*expected, TOKENIZER_NAME}:
            raise BundleError("manifest: explain.file must be a file of its own")
        expected.add(manifest.explain.file)
    if manifest.weights is not None:
        if manifest.weights in {*expected, TOKENIZER_NAME}:
            raise BundleError("manifest: weights must be a file of its own")
        expected.add(manifest.weights)
    if (manifest.text is None) != ("text" not in manifest.graphs):
        raise BundleError("manifest: the text graph and the field text belong together; one is missing")
    if manifest.text is not None:
        expected.add(TOKENIZER_NAME)
    if expected != set(manifest.members):
        raise BundleError(
            f"manifest: members are {shown(sorted(manifest.members))}; expected {shown(sorted(expected))}, "
            "the graphs and the tokenizer"
        )
