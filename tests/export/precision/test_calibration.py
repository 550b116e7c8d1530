"""What int8 is calibrated with, and what it is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from PIL import Image

from cir_export.commands.export import main
from cir_export.precision import calibration_images, samples_for
from cir_export.precision.blame import layer_errors
from cir_export.precision.graphs import lower_graphs
from cir_export.samples import Samples
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import UsageError
from cir_infer.inputs.preprocess import preprocess
from tests.bundles import DIM, GraphBuilder
from tests.export.precision.bundles import SIDE, convolutional, photographs


def test_images_are_never_calibrated_and_judged_with(tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos")
    bundle = Bundle(convolutional(tmp_path / "small.cir"))
    images = calibration_images(bundle, photos)
    assert len(images.images) == 36 and len(images.held_out) == 12
    assert set(images.images).isdisjoint(images.held_out)
    assert samples_for(bundle, None, images).images == images.held_out
    few = photographs(tmp_path / "few", 31)
    with pytest.raises(UsageError, match="holds 31 images"):
        calibration_images(bundle, few)


def test_broken_images_cost_themselves_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = Bundle(convolutional(tmp_path / "small.cir"))
    folder = photographs(tmp_path / "some")
    files = sorted(folder.iterdir())
    for file in files[:6]:
        file.write_bytes(b"not a picture")
    found = calibration_images(bundle, folder)
    assert len(found.images) + len(found.held_out) == 42 and found.to_json(False)["unreadable"] == 6
    assert not {*found.images, *found.held_out} & {*files[:6]}
    assert "6 files of" in caplog.text
    assert samples_for(bundle, folder, None).images == files[6:]
    for file in files[6:17]:
        file.write_bytes(b"not a picture")
    with pytest.raises(
        UsageError, match="holds 48 images, 17 of which cannot be read; int8 needs at least 32"
    ):
        calibration_images(bundle, folder)
    for file in files:
        file.write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"no image of .* can be read: .*000\.png is not an image"):
        samples_for(bundle, folder, None)


def test_one_picture_is_not_calibrated_with_and_judged_on(tmp_path: Path, caplog: Any) -> None:
    """Forty copies of one passed whatever became of any other."""
    photos = photographs(tmp_path / "photos", 36)
    for number, file in enumerate(sorted(photos.iterdir())):
        Image.open(file).save(photos / f"{file.stem}-{number}.bmp")  # beside it, with the same pixels
    bundle = Bundle(convolutional(tmp_path / "small.cir"))
    found = calibration_images(bundle, photos)
    assert found.to_json(False) == {"images": 27, "source": "photos", "copies": 36}
    assert len(found.held_out) == 9 and "36 files" in caplog.text
    stems = [{Path(str(file)).stem[:3] for file in files} for files in (found.images, found.held_out)]
    assert len(stems[0]) == 27 and len(stems[1]) == 9 and stems[0].isdisjoint(stems[1])
    for file in sorted(photos.iterdir())[10:]:
        file.unlink()
    for number in range(40):
        Image.new("RGB", (20, 20)).save(photos / f"black-{number}.png")
    with pytest.raises(
        UsageError, match="holds 50 images, 44 of which show the model what another shows; int8"
    ):
        calibration_images(bundle, photos)


def test_a_few_pictures_judge_nothing_but_recall(tmp_path: Path, capsys: Any) -> None:
    """Of one the first half is itself, whatever a precision made of it."""
    path = convolutional(tmp_path / "small.cir")
    photos, few = photographs(tmp_path / "photos"), photographs(tmp_path / "few", 7)
    for number in range(9):
        Image.open(few / "000.png").save(few / f"again-{number}.png")
    asked = [str(path), "--precision", "int8", "--calibrate", str(photos), "--images", str(few)]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "there are 7 different images in few; a precision is judged on at least 8" in said
    assert not (tmp_path / "small-int8.cir").exists()


def test_layers_are_judged_by_what_loses_most(tmp_path: Path) -> None:
    """The first few samples may lose nothing, and then no layer was to blame."""
    bundle = Bundle(convolutional(tmp_path / "small.cir"))
    dark = [np.random.default_rng(n).integers(120, 135, (20, 20, 3), dtype=np.uint8) for n in range(40)]
    bright = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    prepared = [preprocess(picture, bundle.manifest.image)[None] for picture in dark]
    graphs = lower_graphs(bundle, "int8", "cpu", (), lambda: prepared)
    worst = [
        layer_errors(bundle, graphs, Samples(pictures, (), "drawn"))[0].cosine_worst
        for pictures in (dark, [*dark, bright])
    ]
    assert worst[0] > 0.99 > worst[1]


def test_a_layer_is_blamed_for_what_its_output_loses(tmp_path: Path) -> None:
    """A channel that nobody reads widens the range of what a convolution gives alone."""
    g, random = GraphBuilder(), np.random.default_rng(0)
    g.add("Cast", ["image"], "read", to=TensorProto.FLOAT)
    g.add("Transpose", ["read"], "planes", perm=[0, 3, 1, 2])
    weights = random.normal(size=(5, 3, 1, 1))
    weights[0] *= 1e5
    g.add("Conv", ["planes", g.constant("m.wide.weight", weights)], "map")
    g.add("GlobalAveragePool", ["map"], "pooled")
    g.add("Gather", ["pooled", g.constant("others", [1, 2, 3, 4], np.int64)], "some", axis=1)
    g.add("Flatten", ["some"], "flat", axis=1)
    g.add("MatMul", ["flat", g.constant("m.out.weight", random.normal(size=(4, DIM)))], "linear")
    g.l2("linear", "embedding")
    graph = g.model({"image": ("u8", ["n", SIDE, SIDE, 3])}, {"embedding": ("f32", ["n", DIM])})
    path = convolutional(tmp_path / "wide.cir")
    bundle = Bundle(path)
    write_bundle(path, bundle.manifest, {**bundle.contents(bundle.manifest.members), "image.onnx": graph})
    bundle = Bundle(path)
    pictures = [random.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(20)]
    prepared = [preprocess(picture, bundle.manifest.image)[None] for picture in pictures]
    graphs = lower_graphs(bundle, "int8", "cpu", (), lambda: prepared)
    worst, other = layer_errors(bundle, graphs, Samples(pictures, (), "drawn"))
    assert worst.layer == "m.wide" and worst.cosine_worst < 0.9
    assert other.layer == "m.out" and other.cosine_worst > 0.99
