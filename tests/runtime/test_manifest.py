"""The manifest: strict reading, canonical writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.bundle.manifest import (
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
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.errors import BundleError
from tests.bundles import manifest_of, members_of


def sealed(system: str = "artemis") -> Manifest:
    members = {name: Member(len(data), "0" * 64) for name, data in members_of(system).items()}
    return replace(manifest_of(system), members=members)


EXAMPLE = json.loads(sealed().to_json())

sides = st.integers(1, 512)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(PadSquare, st.integers(0, 255), st.sampled_from(["artemis", "clip4cir"])),
    st.builds(TargetPad, st.floats(1, 100)),
    st.builds(Resize, sides | st.tuples(sides, sides), st.sampled_from(["bilinear", "bicubic"])),
    st.builds(CenterCrop, sides, st.sampled_from(["even", "down"])),
)
names = st.text(min_size=1, max_size=20)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    around = draw(st.lists(steps, max_size=5))
    at = draw(st.integers(0, len(around)))
    pixels = PixelInput(draw(sides), draw(sides), (*around[:at], ToRgb(), *around[at:]), draw(st.booleans()))
    return replace(
        sealed(),
        system=draw(names),
        created_by=draw(names),
        embedding_dim=draw(st.integers(1, 4096)),
        image=draw(st.just(pixels) | st.builds(FeatureInput, sides)),
        text=TextInput(draw(sides), draw(st.none() | sides), draw(sides), draw(names), draw(st.booleans())),
        parity={"worst": draw(st.floats(allow_nan=False, allow_infinity=False)), "list": [1, None, "é"]},
    )


@settings(max_examples=100)
@given(manifest=manifests())
def test_what_is_written_is_read(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert read_manifest(text) == manifest
    assert read_manifest(text).to_json() == text, "one canonical form"


def test_a_bundle_is_of_the_oldest_format_that_holds_it() -> None:
    plain = sealed()
    assert isinstance(plain.image, PixelInput) and plain.text is not None
    steps = (ToRgb(), CenterCrop(8, "down"))
    divided = (ToRgb(), DivideByMaximum())
    for used in (
        replace(plain, image=replace(plain.image, steps=divided)),
        replace(plain, text=replace(plain.text, fixed_length=True)),
        replace(plain, image=replace(plain.image, steps=steps)),
    ):
        written = json.loads(used.to_json())
        assert written["version"] == 2
        with pytest.raises(BundleError, match=r"a field '(fixed_length|rounding)'|op is 'divide_by_maximum'"):
            read_manifest(json.dumps(written | {"version": 1}))
    written = json.loads(replace(plain, image=replace(plain.image, steps=(ToRgb(), CenterCrop(8)))).to_json())
    assert written["version"] == 1
    assert "fixed_length" not in written["text"] and written["image"]["steps"][1] == {
        "op": "center_crop",
        "size": 8,
    }


def changed(path: str, value: Any) -> str:
    """The example with one field replaced; a value of ... removes it."""
    manifest = json.loads(json.dumps(EXAMPLE))
    *parents, last = path.split("/")
    place = manifest
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(manifest)


@pytest.mark.parametrize(
    "path", [*EXAMPLE, "image/kind", "image/steps", "image/exif_orientation", "text/pad_id"]
)
def test_a_missing_field_is_named(path: str) -> None:
    with pytest.raises(BundleError, match=path.split("/")[-1]):
        read_manifest(changed(path, ...))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("embedding_dim", 0),
        ("embedding_dim", True),
        ("embedding_dim", 8.0),
        ("embedding_dim", 1 << 40),
        ("terms", []),
        ("terms", ["a", "a"]),
        ("terms", ["not a name"]),
        ("terms", "implicit_similarity"),
        ("weighted", 1),
        ("precision", "float64"),
        ("system", ""),
        ("image", None),
        ("image/kind", "sound"),
        ("image/height", 1 << 20),
        ("image/steps", {}),
        ("image/steps", [{"op": "to_rgb"}] * 2),
        ("image/steps", []),
        ("image/steps", [{"op": "run", "command": "rm"}]),
        ("image/steps", [{"op": "to_rgb", "extra": 1}]),
        ("image/steps", [{"op": "to_rgb"}] * 40),
        ("image/steps/1", {"op": "resize", "size": 0, "interpolation": "bilinear"}),
        ("image/steps/1", {"op": "resize", "size": [1, 2, 3], "interpolation": "bilinear"}),
        ("image/steps/1", {"op": "resize", "size": 8, "interpolation": "nearest"}),
        ("image/steps/1", {"op": "target_pad", "ratio": 0.5}),
        ("image/steps/1", {"op": "pad_square", "fill": 256, "rounding": "artemis"}),
        ("text", 3),
        ("text", None),
        ("text/pad_id", -1),
        ("text/unk_id", "unk"),
        ("text/max_tokens", 0),
        ("graphs", {"image": "image.onnx"}),
        ("graphs/sound", "sound.onnx"),
        ("graphs/text", "image.onnx"),
        ("members", {}),
        ("members/..", {"bytes": 1, "sha256": "0" * 64}),
        ("members/manifest.json", {"bytes": 1, "sha256": "0" * 64}),
        ("members/image.onnx", {"bytes": -1, "sha256": "0" * 64}),
        ("members/image.onnx", {"bytes": 1, "sha256": "0" * 63 + "G"}),
        ("parity", []),
        ("surprise", 1),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    with pytest.raises(BundleError, match="manifest"):
        read_manifest(changed(path, value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": "cir-bundle", "format": "cir-bundle"}',
        '{"format": "cir-bundle", "version": NaN}',
        b"\xff\xfe\x00",
        "1" * 10_000,
    ],
)
def test_text_that_is_no_manifest(text: str | bytes) -> None:
    with pytest.raises(BundleError):
        read_manifest(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(path=st.sampled_from([*EXAMPLE, *(f"image/{n}" for n in EXAMPLE["image"])]), value=json_values)
def test_any_value_anywhere_is_read_back_or_refused(path: str, value: object) -> None:
    try:
        manifest = read_manifest(changed(path, value))
    except BundleError:
        return
    assert read_manifest(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "steps",
    [
        (ToRgb(), ScaledJpeg(), Resize(8)),
        (ScaledJpeg(), ToRgb(), CenterCrop(8), Resize(8)),
        (ScaledJpeg(), ToRgb(), PadSquare()),
        (ScaledJpeg(), ScaledJpeg(), ToRgb(), Resize(8)),
        (ScaledJpeg(), ToRgb(), DivideByMaximum(), Resize(8)),
    ],
)
def test_scaled_decoding_comes_first_and_before_a_resize(steps: tuple[Step, ...]) -> None:
    with pytest.raises(BundleError, match="scaled_jpeg"):
        read_manifest(replace(sealed(), image=PixelInput(8, 8, steps)).to_json())


@pytest.mark.parametrize(
    "steps",
    [
        (DivideByMaximum(), ToRgb()),
        (ToRgb(), Resize(8), DivideByMaximum()),
        (ToRgb(), DivideByMaximum(), DivideByMaximum()),
    ],
)
def test_the_maximum_is_that_of_an_rgb_picture(steps: tuple[Step, ...]) -> None:
    with pytest.raises(BundleError, match="divide_by_maximum once, directly after to_rgb"):
        read_manifest(replace(sealed(), image=PixelInput(8, 8, steps)).to_json())


def test_rows_of_scaled_decoding_are_others() -> None:
    exact, scaled = (
        replace(sealed(), image=PixelInput(8, 8, (*first, ToRgb(), Resize((8, 8)))))
        for first in ((), (ScaledJpeg(),))
    )
    assert exact.fingerprint != scaled.fingerprint
    assert read_manifest(scaled.to_json()) == scaled


def test_nan_has_no_json_form() -> None:
    with pytest.raises(BundleError, match="JSON"):
        replace(sealed(), parity={"worst": float("nan")}).to_json()


@pytest.mark.parametrize("system", ["image-only", "features", "separate", "text-only"])
def test_the_other_kinds(system: str) -> None:
    assert read_manifest(sealed(system).to_json()) == sealed(system)


def test_text_and_text_graph_belong_together() -> None:
    kinds: list[Callable[[], str]] = [
        lambda: replace(sealed("image-only"), text=TextInput(0, None, 8)).to_json(),
        lambda: replace(sealed(), text=None).to_json(),
    ]
    for make in kinds:
        with pytest.raises(BundleError, match="belong together"):
            read_manifest(make())


def test_what_explanations_need_is_a_field_of_format_2() -> None:
    explain = {"file": "explain.onnx", "height": 7, "width": 5, "unit_rows": True}
    members = EXAMPLE["members"] | {"explain.onnx": {"bytes": 1, "sha256": "0" * 64}}
    said = EXAMPLE | {"version": 2, "explain": explain, "members": members}
    manifest = read_manifest(json.dumps(said))
    assert manifest.explain == Explain("explain.onnx", 7, 5, True) and manifest.version == 2
    assert json.loads(manifest.to_json()) == said
    assert manifest.fingerprint == read_manifest(json.dumps(EXAMPLE)).fingerprint
    for change, told in (
        ({"version": 1}, "'explain' that this version does not know"),
        ({"explain": explain | {"file": "image.onnx"}, "members": EXAMPLE["members"]}, "file of its own"),
        ({"explain": explain | {"height": 0}}, r"explain\.height"),
        ({"explain": explain | {"unit_rows": 1}}, r"explain\.unit_rows"),
        ({"explain": explain | {"more": 1}}, "'more'"),
        ({"explain": []}, "explain"),
        ({"members": EXAMPLE["members"]}, "members are"),
        ({"image": {"kind": "features", "size": 12}}, "takes features"),
    ):
        with pytest.raises(BundleError, match=told):
            read_manifest(json.dumps(said | change))
