"""A precision becomes a bundle, or an error that names layers and no bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_eval.datasets.scenes.generation import Plan, generate
from cir_eval.protocols import protocol
from cir_export.commands.export import main
from cir_export.commands.lowering import default_output
from cir_export.export import export_bundle
from cir_export.model_file import load_model
from cir_export.precision import (
    Calibration,
    Labelled,
    Lowering,
    PrecisionError,
    calibration_images,
    convert_bundle,
    samples_for,
)
from cir_export.precision.blame import LayerError
from cir_export.precision.fidelity import Fidelity, Seen, measure_fidelity
from cir_export.samples import Samples, draw_samples
from cir_export.targets import check_target
from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import DatasetError, ExportError, GalleryError, UsageError
from cir_infer.extras import is_installed
from cir_infer.gallery import Gallery
from cir_infer.scoring.contract import QueryTerms
from tests.bundles import DIM, FEATURES, manifest_of, members_of, write_tiny_bundle
from tests.export.once import Once
from tests.export.precision.bundles import convolutional, photographs

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models" / "artemis-scenes" / "model.pt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    plan = Plan(3, 2, 24, gallery=120, seed=3, image_size=72, views=("shaded",))
    generate(folder, plan, jobs=1)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, exported_once: Once) -> Path:
    """The committed model as a float32 bundle."""
    model = load_model(MODEL)
    path = tmp_path_factory.mktemp("trained") / "artemis.cir"
    drawn = draw_samples(model.image, model.text, model.tokenizer)
    with exported_once():
        export_bundle(model, path, Samples(drawn.images[:12], drawn.texts[:8], drawn.source))
    return path


def convert(source: Path, target: Path, lowering: Lowering, photos: Path | None = None) -> Any:
    bundle = Bundle(source)
    calibration = None if photos is None else calibration_images(bundle, photos)
    return convert_bundle(source, target, lowering, samples_for(bundle, photos, None), calibration)


# ---- the committed model


@pytest.mark.parametrize(
    ("lowering", "cosine"),
    [
        (Lowering("float16"), 0.9999),
        (Lowering("int8"), 0.999),
        (Lowering("int8", "tensorrt"), 0.999),
    ],
    ids=["float16", "int8", "int8-tensorrt"],
)
def test_the_committed_model_keeps_its_recall(
    trained: Path, scenes: Path, tmp_path: Path, lowering: Lowering, cosine: float
) -> None:
    bundle = Bundle(trained)
    images = None if lowering.precision == "float16" else calibration_images(bundle, scenes / "train")
    samples = samples_for(bundle, scenes / "test", None)
    labelled = Labelled.open(scenes, protocol("scenes/shaded"), "test")
    report = convert_bundle(trained, tmp_path / "low.cir", lowering, samples, images, labelled)
    fidelity, drift = report.fidelity, report.drift
    assert fidelity.cosine_worst is not None and fidelity.cosine_worst >= cosine
    assert fidelity.top10_agreement is not None and fidelity.top10_agreement >= 0.95
    assert drift is not None and drift.queries == 24 and drift.before > 80 and abs(drift.loss) <= 0.5
    written = Bundle(tmp_path / "low.cir").manifest
    assert written.precision == lowering.precision and written.provenance == bundle.manifest.provenance
    assert written.parity["checks"] == bundle.manifest.parity["checks"]
    said = written.parity["precision"]
    assert said["fidelity"]["source"] == "test" and str(scenes) not in json.dumps(said)
    assert said["judged_by"] == "recall" and said["recall"]["after"] == drift.after
    assert said["source"] == bundle.manifest.fingerprint != written.fingerprint
    engine = Engine(tmp_path / "low.cir", device="cpu", threads=1)
    assert engine.describe()["precision"] == lowering.precision
    # Explanations come along: the lowered rows are sums of what the float32 continuation makes of them.
    assert written.explain == bundle.manifest.explain and written.members["explain.onnx"].bytes < 5000
    assert 0 < said["rows_as_sums"] < {"float16": 1e-3, "int8": 2e-2}[lowering.precision]
    made = engine.encode_in_parts(prepared := engine.prepare(samples.images[0])[None])
    total = made.parts[0].sum((0, 1)) + made.constant[0]
    np.testing.assert_allclose(total / np.linalg.norm(total), made.rows[0], atol=5e-3)
    if is_installed("openvino"):
        found = Engine(tmp_path / "low.cir", device="openvino", threads=1).encode_in_parts(prepared)
        np.testing.assert_allclose(found.parts, made.parts, atol=1e-2 * np.abs(made.parts).max())
    assert lowering.form != "cpu" or (tmp_path / "low.cir").stat().st_size < 0.9 * trained.stat().st_size


def test_a_gallery_of_another_precision_is_refused(trained: Path, scenes: Path, tmp_path: Path) -> None:
    convert(trained, tmp_path / "half.cir", Lowering("float16"))
    image = next(iter(sorted((scenes / "test").rglob("*.png"))))
    with Gallery.create(tmp_path / "g.gallery", Engine(trained, device="cpu")) as gallery:
        gallery.add([image], ids=["one"])
    with pytest.raises(GalleryError, match="encoded by bundle"):
        Gallery.open(tmp_path / "g.gallery", Engine(tmp_path / "half.cir", device="cpu"))


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("system", ["cosine", "separate", "features", "text-only", "image-only"])
def test_every_kind_of_system_is_converted(photos: Path, tmp_path: Path, system: str, precision: Any) -> None:
    source = tmp_path / "plain.cir"
    write_bundle(source, manifest_of(system), members_of(system))
    images = photos
    if system == "features":
        images = tmp_path / "features"
        images.mkdir()
        for number in range(40):
            values = np.random.default_rng(number).normal(size=FEATURES).astype(np.float32)
            np.save(images / f"{number}.npy", values)
    calibration = calibration_images(Bundle(source), images) if precision == "int8" else None
    samples = samples_for(Bundle(source), images, None)
    report = convert_bundle(source, tmp_path / "low.cir", Lowering(precision), samples, calibration)
    engine = Engine(tmp_path / "low.cir", device="cpu", threads=1)
    assert engine.describe()["precision"] == precision
    assert report.fidelity.cosine_worst is not None and report.fidelity.cosine_worst > 0.99
    assert engine.encode_images(samples.images[:2]).dtype == np.float32
    assert (report.fidelity.text_cosine_worst is None) == (system == "image-only")


# ---- the gate


def test_an_overflow_is_refused_and_its_layer_named(photos: Path, tmp_path: Path) -> None:
    source = convolutional(tmp_path / "hot.cir", scale=6e4)
    target = tmp_path / "half.cir"
    target.write_bytes(b"the last good one")
    with pytest.raises(PrecisionError, match=r"not finite.*m\.first \(overflows\)") as caught:
        convert(source, target, Lowering("float16"))
    # What reads the large values overflows as well: one refusal names them all.
    assert "m.first (overflows), m.second (overflows); keep" in str(caught.value)
    assert "--keep-float32 m.first m.second)" in str(caught.value)
    assert caught.value.layers[0].layer == "m.first" and not caught.value.fidelity.finite
    assert target.read_bytes() == b"the last good one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.cir", "hot.cir"]
    # What follows the layer reads its large values, so both stay: the message leads there.
    report = convert(source, target, Lowering("float16", keep_float32=("m.first", "m.second")))
    assert report.kept == ("m.first", "m.second") and report.fidelity.cosine_worst > 0.9999
    assert Bundle(target).manifest.parity["precision"]["float32_layers"] == ["m.first", "m.second"]


@pytest.mark.parametrize("form", ["cpu", "tensorrt"])
def test_an_outlier_is_refused_and_its_layer_named(photos: Path, tmp_path: Path, form: Any) -> None:
    source = convolutional(tmp_path / "outlier.cir", outlier=3000.0)
    with pytest.raises(PrecisionError, match=r"hurt most.*m\.second .*--keep-float32") as caught:
        convert(source, tmp_path / "low.cir", Lowering("int8", form), photos)
    assert caught.value.layers[0].layer == "m.second"
    assert [path.name for path in tmp_path.iterdir()] == ["outlier.cir"]
    kept = Lowering("int8", form, keep_float32=("m.second", "m.first"))
    report = convert(source, tmp_path / "low.cir", kept, photos)
    assert report.fidelity.cosine_worst > caught.value.fidelity.cosine_worst


def test_near_ties_are_not_blamed_on_layers() -> None:
    same = [LayerError("image", f"m.{number}", 0.9999996) for number in range(4)]
    fidelity = Fidelity(8, 8, "images", 0.9999999, 0.9999994, top10_agreement=0.93)
    refused = PrecisionError("float16", ["the first ten agree in 93.0%, asked 99%"], fidelity, None, same)
    assert "their order says little" in str(refused) and "keep-float32" not in str(refused)
    assert "--labelled" in str(refused)


@pytest.mark.parametrize(("image", "text"), [(0.99985, 0.9999996), (0.9999994, 0.99985)])
def test_what_many_layers_change_together_is_no_near_tie(image: float, text: float) -> None:
    """Fifty of 0.999997, each rounded to a cosine of 1."""
    same = [LayerError("image", f"m.{number}", 0.999997) for number in range(50)]
    fidelity = Fidelity(8, 8, "images", 0.9999, image, text, top10_agreement=0.93)
    refused = PrecisionError("float16", ["the worst cosine is 0.99985"], fidelity, None, same)
    assert "all of them together" in str(refused) and "order says little" not in str(refused)


def test_recall_decides_where_it_was_measured(trained: Path, scenes: Path, tmp_path: Path) -> None:
    bundle = Bundle(trained)
    black = [np.zeros((40, 40, 3), np.uint8) for _ in range(32)]
    useless = Calibration(black, black, "black")  # its ranges hold nothing of a scene
    labelled = Labelled.open(scenes, protocol("scenes/shaded"), "test")
    samples = samples_for(bundle, scenes / "test", None)
    arguments = (samples, useless, labelled)
    with pytest.raises(
        PrecisionError, match=r"R@10 on scenes/shaded \(test\) falls from .*--allow-loss"
    ) as caught:
        convert_bundle(trained, tmp_path / "low.cir", Lowering("int8"), *arguments)
    assert caught.value.drift is not None and caught.value.drift.loss > 0.5
    allowed = Lowering("int8", allowed_loss=caught.value.drift.loss)
    report = convert_bundle(trained, tmp_path / "low.cir", allowed, *arguments)
    assert report.manifest.parity["precision"]["limits"] == {"loss": caught.value.drift.loss}


# ---- what is asked for wrongly


def test_only_float32_is_converted(photos: Path, tmp_path: Path) -> None:
    source = convolutional(tmp_path / "small.cir")
    with pytest.raises(UsageError, match="--calibrate"):
        convert(source, tmp_path / "low.cir", Lowering("int8"))
    with pytest.raises(UsageError, match="is read for what would take its place"):
        convert(source, source, Lowering("float16"))
    with pytest.raises(ExportError, match="not a folder"):
        convert(source, tmp_path / "none" / "low.cir", Lowering("float16"))
    convert(source, tmp_path / "low.cir", Lowering("float16"))
    with pytest.raises(UsageError, match="is float16 already"):
        convert(tmp_path / "low.cir", tmp_path / "lower.cir", Lowering("float16"))
    with pytest.raises(UsageError, match="points"):
        convert(source, tmp_path / "low.cir", Lowering("float16", allowed_loss=float("nan")))


def test_a_split_without_answers_judges_nothing(scenes: Path) -> None:
    with pytest.raises(UsageError, match="no split"):
        Labelled.open(scenes, protocol("scenes"), "nowhere")
    with pytest.raises(DatasetError):
        Labelled.open(scenes / "train", protocol("scenes"), None)


def test_an_interrupted_calibration_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    source = convolutional(tmp_path / "small.cir")
    bundle = Bundle(source)
    images = calibration_images(bundle, photos)

    class Stopped(list[Any]):
        def __getitem__(self, part: Any) -> Any:
            if isinstance(part, slice) and part.start:
                raise KeyboardInterrupt
            return super().__getitem__(part)

    stopped = Calibration(Stopped(images.images), images.held_out, "photos")
    with pytest.raises(KeyboardInterrupt):
        convert_bundle(
            source, tmp_path / "low.cir", Lowering("int8"), samples_for(bundle, None, stopped), stopped
        )
    assert [path.name for path in tmp_path.iterdir()] == ["small.cir"]


KILLED = """
import os, signal, sys
from cir_export.precision import conversion
from cir_export.precision.conversion import Lowering
from tests.export.precision.test_conversion import convert
from pathlib import Path

conversion.see = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
convert(Path(sys.argv[1]), Path(sys.argv[2]), Lowering("float16"))
"""


def test_a_conversion_that_is_killed_leaves_nothing_once_it_is_made_again(tmp_path: Path) -> None:
    """What it judges is as large as what it writes in the end, and lies beside that."""
    source, target = convolutional(tmp_path / "small.cir"), tmp_path / "low.cir"
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(target)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert len(list(tmp_path.rglob("*.cir"))) > 1
    convert(source, target, Lowering("float16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["low.cir", "small.cir"]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_rows_of_several_vectors_are_judged_by_their_best(precision: Any, tmp_path: Path) -> None:
    source = write_tiny_bundle(tmp_path / "tokens.cir", "tokens")
    photos = photographs(tmp_path / "photos") if precision == "int8" else None
    report = convert(source, tmp_path / "low.cir", Lowering(precision), photos)
    lowered, exact = Bundle(report.path).manifest, Bundle(source).manifest
    assert lowered.precision == precision and lowered.tokens_per_item == exact.tokens_per_item > 1
    assert report.fidelity.top10_agreement is not None and report.fidelity.top10_agreement > 0.9
    assert report.fidelity.score_error_worst is not None and report.fidelity.score_error_worst < 0.05


# ---- the command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "int8"], "--calibrate"),
        (["--precision", "float16", "--calibrate", "x"], "--calibrate belongs"),
        (["--int8-for", "tensorrt"], "--int8-for belongs"),
        (["--precision", "int8", "--calibrate", "x", "--tensorrt"], "--int8-for tensorrt"),
        (["--keep-float32", "a"], "--keep-float32 belong"),
        (["--precision", "float16", "--allow-loss", "1"], "belong to --labelled"),
        (["--precision", "float16", "--labelled", "x"], "--protocol NAME"),
        ([], "is a bundle"),
    ],
)
def test_flags_that_contradict_each_other_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    source = convolutional(tmp_path / "small.cir")
    assert main([str(source), *flags]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["small.cir"]


def test_the_command_converts_without_torch(photos: Path, tmp_path: Path) -> None:
    convolutional(tmp_path / "small.cir")
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from cir_export.commands.export import main; sys.exit(main(sys.argv[1:]))"
    flags = ["small.cir", "--precision", "int8", "--calibrate", str(photos), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["bundle"] == "small-int8.cir" and answer["bytes"] < answer["bytes_float32"]
    assert answer["fingerprint"] == Bundle(tmp_path / "small-int8.cir").manifest.fingerprint
    assert answer["parity"]["precision"]["calibration"] == {"images": 36, "source": photos.name}


def test_the_command_prints_what_it_measured(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = convolutional(tmp_path / "small.cir", outlier=3000.0)
    assert main([str(source), "--precision", "float16"]) == 0
    shown = capsys.readouterr().out
    for expected in ("float16 against float32", "cosine of image embeddings, worst", ">= 0.9999", "wrote"):
        assert expected in shown
    agreement = next(line for line in shown.splitlines() if "agreement of the first ten" in line)
    assert agreement.endswith("%  >= 99%"), "what is asked is written as what was measured"
    assert main([str(source), "--precision", "int8", "--calibrate", str(photos)]) == 1
    answer = capsys.readouterr()
    assert answer.err.strip().count("\n") == 0 and "no bundle was written" in answer.err
    assert "m.second" in answer.out and "layer, lowered alone" in answer.out
    assert not (tmp_path / "small-int8.cir").exists()


def test_a_folder_that_cannot_be_written_to_is_said_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target(tmp_path / "x.cir")
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, *rest, **more: path != tmp_path and real(path, *rest, **more)
    )
    with pytest.raises(ExportError, match=r"x\.cir cannot be written: .* is read only for you"):
        check_target(tmp_path / "x.cir")


@pytest.mark.parametrize("model", ["", ":", "package:", "/", "https://example.com/model.pt"])
def test_a_model_without_a_name_is_wrong_usage(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model]) == 2
    assert "MODEL is" in capsys.readouterr().err


def test_the_folder_that_one_is_in_is_written_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model")
    assert default_output(".", "int8") == tmp_path / "model-int8.cir"
    monkeypatch.chdir("part")
    assert default_output("..", "float32") == tmp_path / "model.cir"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--images", "absent"], 2, "--images absent is no folder"),
        (["--images", "empty"], 2, "empty holds no image"),
        (["--precision", "int8", "--calibrate", "absent"], 2, "--calibrate absent is no folder"),
        (["--precision", "int8", "--calibrate", "few"], 2, "few holds 3 images; int8 needs at least 32"),
        (["--precision", "float16", "--labelled", "empty", "--protocol", "none"], 2, "no protocol 'none'"),
        (["--precision", "float16", "--labelled", "empty", "--protocol", "circo"], 1, "is missing"),
        (["-o", "absent/x.cir"], 1, "absent is not a folder"),
    ],
)
def test_what_is_not_there_is_said_before_a_model_is_exported(
    flags: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cir_export.model_file import save_model
    from tests.export.test_export import trained as tiny

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cir_export.export.export_graphs", lambda *_: pytest.fail("it was exported"))
    save_model(tmp_path / "tiny.pt", tiny())
    Path("empty").mkdir()
    photographs(Path("few"), 3)
    assert main(["tiny.pt", *flags]) == code
    assert message in capsys.readouterr().err


def test_the_command_goes_from_a_model_to_float16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exported_once: Once
) -> None:
    from cir_export.model_file import save_model
    from tests.export.test_export import trained as tiny

    save_model(tmp_path / "model.pt", tiny())
    with exported_once():
        assert main([str(tmp_path / "model.pt"), "--precision", "float16"]) == 0
    shown = capsys.readouterr().out
    assert "PyTorch against the bundle" in shown and "float16 against float32" in shown
    manifest = Bundle(tmp_path / "model-float16.cir").manifest
    assert manifest.precision == "float16" and all(check["passed"] for check in manifest.parity["checks"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-float16.cir", "model.pt"]


@pytest.mark.parametrize("images", [2, 8, 30])
def test_few_images_can_disagree_too(images: int) -> None:
    """The first ten of eight are all of them, in whatever order: a gate that could not close."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(images, DIM)).astype(np.float32)
    one, turned = (
        Seen(rows, rows, None, QueryTerms(sign * rows[:, None], None, ("similarity",))) for sign in (1, -1)
    )
    samples = Samples([b""] * images, (), "nothing")
    assert measure_fidelity(one, one, samples).top10_agreement == 1
    found = measure_fidelity(one, turned, samples).top10_agreement
    assert found is not None and found < 0.5
