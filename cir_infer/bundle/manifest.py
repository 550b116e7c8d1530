"""The manifest of a bundle: typed, with one canonical JSON form. docs/architecture.md shows an example.

`cir_infer.bundle.manifest_reader` reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from cir_infer.errors import BundleError

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "TOKENIZER_NAME",
    "WEIGHTS_NAME",
    "CenterCrop",
    "DivideByMaximum",
    "Explain",
    "FeatureInput",
    "Manifest",
    "Member",
    "PadSquare",
    "PixelInput",
    "Resize",
    "ScaledJpeg",
    "Step",
    "TargetPad",
    "TextInput",
    "ToRgb",
    "canonical_json",
    "since",
]

FORMAT = "cir-bundle"
FORMAT_VERSION = 2
"""The newest that is read. A bundle is written in the oldest that holds what it says; see `since`."""

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
WEIGHTS_NAME = "weights.bin"


def since(version: int, default: Any) -> Any:
    """A field of a manifest that format `version` added, left out of the file where it has its default.

    So a bundle that does not need it stays readable by older releases, and keeps its fingerprint.
    """
    return field(default=default, metadata={"since": version})


@dataclass(frozen=True)
class ScaledJpeg:
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size, as far as the first resize still makes it smaller.

    A decoder that scales skips most of its work. Later steps aim at the sizes that the whole picture would
    have. What is no JPEG, or was decoded before, is taken whole. Always the first step where it occurs.
    """

    op: ClassVar[str] = "scaled_jpeg"


@dataclass(frozen=True)
class ToRgb:
    """Convert to RGB as Pillow does: palettes are looked up, alpha is dropped, not composited."""

    op: ClassVar[str] = "to_rgb"


@dataclass(frozen=True)
class DivideByMaximum:
    """Scale the whole picture so that its largest value, of all channels, becomes 255 (MagicLens).

    A value v becomes 255 v / maximum, rounded to a byte; a black picture stays as it is, and so does one that
    has a 255 anywhere, as most photographs have. After `to_rgb`.
    """

    op: ClassVar[str] = "divide_by_maximum"
    added: ClassVar[int] = 2
    """The format that knows this step."""


@dataclass(frozen=True)
class PadSquare:
    """Pad the shorter side until the image is square.

    Attributes:
        fill: value of every channel of the border, 0..255.
        rounding: who gets the odd pixel of delta = |width - height|. "artemis": delta // 2 left and
            top, the rest right and bottom. "clip4cir": delta // 2 on both sides, so that an odd
            delta leaves the image one pixel off square, as its authors do.
    """

    op: ClassVar[str] = "pad_square"
    fill: int = 255
    rounding: Literal["artemis", "clip4cir"] = "artemis"


@dataclass(frozen=True)
class TargetPad:
    """CLIP4Cir's padding: black borders until longer / shorter side is about `ratio`."""

    op: ClassVar[str] = "target_pad"
    ratio: float = 1.25


@dataclass(frozen=True)
class Resize:
    """Resample with Pillow's antialiased filters.

    Attributes:
        size: the new shorter side (the longer one follows, rounded down as in torchvision), or
            (height, width).
        interpolation: the filter.
    """

    op: ClassVar[str] = "resize"
    size: int | tuple[int, int] = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle square of `size` pixels; smaller images get black borders.

    Attributes:
        size: side of the square.
        rounding: where half a pixel goes. "even": to the even side, as in torchvision. "down": to the left
            and the top, as in the image processors of Hugging Face's transformers.
    """

    op: ClassVar[str] = "center_crop"
    size: int = 224
    rounding: Literal["even", "down"] = since(2, "even")


Step = ScaledJpeg | ToRgb | DivideByMaximum | PadSquare | TargetPad | Resize | CenterCrop


@dataclass(frozen=True)
class PixelInput:
    """The image graph takes uint8 (n, height, width, 3) RGB, made by `steps` in order.

    Attributes:
        exif_orientation: turn the image upright first, as its EXIF tag says. The public
            repositories do not; a bundle does what its training did.
    """

    kind: ClassVar[str] = "pixels"
    height: int
    width: int
    steps: tuple[Step, ...]
    exif_orientation: bool = False


@dataclass(frozen=True)
class FeatureInput:
    """The image graph takes float32 (n, size): features that some other network computed."""

    kind: ClassVar[str] = "features"
    size: int


@dataclass(frozen=True)
class TextInput:
    """How a text becomes tokens; the tokenizer itself is the member tokenizer.json.

    Attributes:
        pad_id: the token that fills short rows of a batch.
        unk_id: the token of a word outside the vocabulary; None where there is no such thing (BPE).
        max_tokens: longest sequence, special tokens included.
        captions: how a list of captions becomes one sequence: "pair" gives the first two to the
            tokenizer as a pair, "and:clip4cir" writes CLIP4Cir's FashionIQ sentence, any other
            string joins them with that string.
        fixed_length: every text is filled up to `max_tokens` with the pad token and read whole: the padding
            is a part of the text (SigLIP).
    """

    pad_id: int
    unk_id: int | None
    max_tokens: int
    captions: str = "pair"
    fixed_length: bool = since(2, False)


@dataclass(frozen=True)
class Member:
    """Size and sha256 (hex) of one file in the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Explain:
    """What explanations need: a gallery row as a sum over positions of the image (docs/explanations.md).

    Attributes:
        file: the member that continues the image graph to the outputs `parts` and `constant`.
        height: positions from top to bottom of the prepared image.
        width: positions from left to right.
        unit_rows: whether rows are divided by their norm; else a row is the sum itself.
    """

    file: str
    height: int
    width: int
    unit_rows: bool


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself.

    Attributes:
        system: e.g. "artemis".
        created_by: program and version that wrote the bundle.
        embedding_dim: D, the length of a gallery row.
        terms: the J terms' names.
        weighted: whether the compose graph gives weights (see `cir_infer.scoring.contract`).
        precision: of the graphs' arithmetic: "float32", "bfloat16", "float16" or "int8".
        image: what the image graph takes and how an image is prepared for it.
        text: how texts are prepared; None for a system that reads no text.
        graphs: member name by graph: image and compose always, reference and text where they exist.
        explain: what explanations need; None where rows are no sums over positions.
        members: size and digest of every member but the manifest; `write_bundle` fills it in.
        parity: what the exporter measured against the model it exported.
        provenance: where the model came from.
        tokens_per_item: M, how many vectors of D values a gallery row is.
        reduce: how the terms of those M become one: "max"; None where there is one.
        weights: the member that holds the graphs' large weights (`cir_infer.bundle.model`); None where they
            hold them themselves.
    """

    system: str
    created_by: str
    embedding_dim: int
    terms: tuple[str, ...]
    weighted: bool
    precision: str
    image: PixelInput | FeatureInput
    text: TextInput | None
    graphs: dict[str, str]
    explain: Explain | None = since(2, None)  # noqa: RUF009  # a field
    members: dict[str, Member] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    tokens_per_item: int = since(2, 1)
    reduce: Literal["max"] | None = since(2, None)
    weights: Literal["weights.bin"] | None = since(2, None)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of a gallery row: (D,), or (M, D)."""
        return (
            (self.embedding_dim,) if self.tokens_per_item == 1 else (self.tokens_per_item, self.embedding_dim)
        )

    @property
    def refines_without_image(self) -> bool:
        """Whether a gallery row serves as the reference embedding, so that a Hit needs no image."""
        return "reference" not in self.graphs

    @property
    def fingerprint(self) -> str:
        """What a gallery row means: sha256 (hex) over the image graph's digest and its preprocessing."""
        digest = self.members[self.graphs["image"]].sha256
        return hashlib.sha256(f"{digest}\n{canonical_json(_image_to_json(self.image))}".encode()).hexdigest()

    @property
    def int8_form(self) -> str | None:
        """What int8 graphs were made for, "cpu" or "tensorrt"; None in other precisions, or if not said."""
        lowering = self.parity.get("precision")
        form = lowering.get("form") if isinstance(lowering, dict) else None
        return form if self.precision == "int8" and isinstance(form, str) else None

    @property
    def version(self) -> int:
        """The oldest format that holds all that this manifest says."""
        return max((added for added, _ in _later(self)), default=2 if self.precision == "bfloat16" else 1)

    def to_json(self) -> str:
        """The canonical JSON text.

        Raises:
            BundleError: parity or provenance holds something that JSON cannot say, NaN included.
        """
        return canonical_json(
            {
                "format": FORMAT,
                "version": self.version,
                "system": self.system,
                "created_by": self.created_by,
                "embedding_dim": self.embedding_dim,
                "terms": self.terms,
                "weighted": self.weighted,
                "precision": self.precision,
                "image": _image_to_json(self.image),
                "text": None if self.text is None else _plain(self.text),
                "graphs": self.graphs,
                "members": {name: asdict(member) for name, member in self.members.items()},
                "parity": self.parity,
                "provenance": self.provenance,
                **{name: _value(getattr(self, name)) for _, name in _used(self)},
            }
        )


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest has no JSON form: {error}") from error


def _image_to_json(image: PixelInput | FeatureInput) -> dict[str, Any]:
    if isinstance(image, FeatureInput):
        return {"kind": image.kind, "size": image.size}
    return {
        "kind": image.kind,
        "height": image.height,
        "width": image.width,
        "exif_orientation": image.exif_orientation,
        "steps": [{"op": step.op, **_plain(step)} for step in image.steps],
    }


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a part of the manifest, without those that a later format added and that are not used."""
    unused = {f.name for f in fields(value) if "since" in f.metadata and getattr(value, f.name) == f.default}
    return {name: part for name, part in asdict(value).items() if name not in unused}


def _value(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _used(value: Any) -> Iterator[tuple[int, str]]:
    """The same of this part alone."""
    for f in fields(value):
        if "since" in f.metadata and getattr(value, f.name) != f.default:
            yield f.metadata["since"], f.name


def _later(value: Any) -> Iterator[tuple[int, str]]:
    """The format that added it, and the name, of each later field or step that is used, in all parts."""
    yield from _used(value)
    if hasattr(value, "added"):
        yield value.added, value.op
    for f in fields(value):
        part = getattr(value, f.name)
        for inner in part if isinstance(part, tuple) else (part,):
            if hasattr(inner, "__dataclass_fields__"):
                yield from _later(inner)
