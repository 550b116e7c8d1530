"""cir-export from end to end: a model becomes a bundle that agrees with it, or an error and no bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cir_export.commands.export import main
from cir_export.commands.lowering import refining
from cir_export.export import ParityError, export_bundle
from cir_export.model_file import TrainedModel, save_model
from cir_export.models import Terms, build_model
from cir_export.models.artemis import Artemis
from cir_export.preprocessing import feature_input, plain_resize, word_text
from cir_export.samples import _pictures
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts
from cir_export.verification import draw_samples
from cir_infer import Engine, Searcher
from cir_infer.bundle import Bundle
from cir_infer.errors import ExportError, UsageError
from cir_infer.gallery import Gallery
from tests.bundles import write_tiny_bundle
from tests.export.conftest import GOLDEN
from tests.export.once import Once
from tests.export.tiny import config

VOCABULARY = vocabulary_from_texts(["the small red cube moves to top left and is blue or green with ring"])


def trained(**changes: Any) -> TrainedModel:
    torch.manual_seed(0)
    text = {"encoder": "bigru", "vocabulary_size": len(VOCABULARY), "word_dim": 10}
    model = build_model(config(text=text, **changes)).eval()
    image = feature_input(12) if "image" in changes else plain_resize(24)
    return TrainedModel(model, build_tokenizer(VOCABULARY), image, word_text(), {"data": "none"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, exported_once: Once) -> Path:
    model = trained()
    path = tmp_path_factory.mktemp("bundle") / "small.cir"
    with exported_once():
        export_bundle(model, path, draw_samples(model.image, model.text, model.tokenizer))
    return path


def test_a_bundle_holds_what_the_model_said(bundle: Path) -> None:
    opened = Bundle(bundle)
    opened.verify()
    manifest = opened.manifest
    assert manifest.system == "artemis" and manifest.terms == ("implicit_similarity", "explicit_matching")
    assert manifest.weighted and manifest.embedding_dim == 24 and manifest.precision == "float32"
    assert set(manifest.graphs) == {"image", "text", "compose"}
    assert manifest.provenance == {"data": "none", "vocabulary": {"kind": "words", "known": 15}}
    checks = manifest.parity["checks"]
    assert all(check["passed"] for check in checks)
    assert {"gallery rows", "texts one by one", "top-10 lists that differ"} <= {c["what"] for c in checks}


def test_a_query_runs_on_it_without_torch_models(bundle: Path, tmp_path: Path) -> None:
    model = trained()
    samples = draw_samples(model.image, model.text, model.tokenizer)
    engine = Engine(bundle, device="cpu", threads=1)
    with Gallery.create(tmp_path / "g.gallery", engine, dtype="float32") as gallery:
        gallery.add(list(samples.images), ids=[str(number) for number in range(len(samples.images))])
        hits = Searcher(engine, gallery).query(samples.images[5], "the red cube", k=3, exclude=["5"])
    assert len(hits) == 3 and set(hits[0].terms) == {"implicit_similarity", "explicit_matching"}
    assert hits[0].score == pytest.approx(sum(hits[0].terms.values()), abs=1e-6)


class WrongWhenExported(Artemis):
    """Another sign in an exported graph than in PyTorch, as a faulty exporter would write it."""

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        terms = super().compose(reference, text)
        return Terms(-terms.numerators, terms.weights) if torch.compiler.is_exporting() else terms


def test_graphs_that_disagree_are_not_written(tmp_path: Path) -> None:
    model = trained(image={"features": 12})
    faulty = WrongWhenExported.from_config(model.model.config).eval()
    faulty.load_state_dict(model.model.state_dict())
    model.model = faulty
    kept = tmp_path / "small.cir"
    kept.write_bytes(b"the last good one")
    with pytest.raises(ParityError, match="no bundle was written") as caught:
        export_bundle(model, kept, draw_samples(model.image, model.text, model.tokenizer))
    differing = {check.what: check.difference for check in caught.value.checks if not check.passed}
    assert "implicit_similarity: numerator" in differing and "implicit_similarity: weight" not in differing
    assert differing["top-10 lists that differ"] == 40
    assert kept.read_bytes() == b"the last good one"
    assert [path.name for path in tmp_path.iterdir()] == ["small.cir"]


def test_preprocessing_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    model = trained()
    samples = draw_samples(model.image, model.text, model.tokenizer)
    model.image = plain_resize(24) | {"steps": [{"op": "to_rgb"}, {"op": "sharpen"}]}
    with pytest.raises(ExportError, match="sharpen"):
        export_bundle(model, tmp_path / "s.cir", samples)
    assert not list(tmp_path.iterdir())


def test_preprocessing_to_another_size_and_odd_provenance_are_refused(tmp_path: Path) -> None:
    model = trained()
    samples = draw_samples(model.image, model.text, model.tokenizer)
    model.image = plain_resize(32)
    with pytest.raises(ExportError, match=r"24 x 24 .* 32 x 32"):
        export_bundle(model, tmp_path / "s.cir", samples)
    model = trained()
    model.provenance["recall"] = float("nan")
    with pytest.raises(ExportError, match="provenance"):
        export_bundle(model, tmp_path / "s.cir", samples)


def test_a_place_that_cannot_be_written_is_said_to_be_one(tmp_path: Path) -> None:
    model = trained()
    samples = draw_samples(model.image, model.text, model.tokenizer)
    with pytest.raises(ExportError, match="cannot be written"):
        export_bundle(model, tmp_path / "none" / "s.cir", samples)


# ---- samples


def test_samples_are_the_same_every_time_and_of_every_length() -> None:
    model = trained()
    first = draw_samples(model.image, model.text, model.tokenizer)
    _pictures.cache_clear()  # or the second pictures would be the first
    second = draw_samples(model.image, model.text, model.tokenizer)
    assert first.texts == second.texts
    for a, b in zip(first.images, second.images, strict=True):
        np.testing.assert_array_equal(a, b)
    lengths = {len((text if isinstance(text, str) else " ".join(text)).split()) for text in first.texts}
    assert len(set(range(1, 35)) & lengths) >= 30 and max(lengths) > 90
    assert any(isinstance(text, list) for text in first.texts)
    assert len({np.asarray(image).shape for image in first.images}) > 10


def test_texts_never_exceed_what_the_model_reads() -> None:
    model = trained()
    samples = draw_samples(model.image, word_text(max_tokens=9), model.tokenizer)
    for text in samples.texts:
        pair = (text, None) if isinstance(text, str) else text
        assert len(model.tokenizer.encode(*pair).ids) <= 9


def test_a_folder_of_images_is_used_and_an_empty_one_refused(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(UsageError, match="holds no image"):
        draw_samples(model.image, model.text, model.tokenizer, tmp_path)
    for number in range(3):
        Image.fromarray(np.full((30, 40, 3), 60 * number, np.uint8)).save(tmp_path / f"{number}.png")
    samples = draw_samples(model.image, model.text, model.tokenizer, tmp_path)
    assert [Path(str(image)).name for image in samples.images] == ["0.png", "1.png", "2.png"]


# ---- the command


def test_the_command_prints_what_it_found(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model.pt", trained())
    assert main([str(tmp_path / "model.pt")]) == 0
    shown, said = capsys.readouterr()
    assert said == ""  # the texts that it tries hold unknown words, and are none of the user's
    for expected in ("artemis", "trunk=small", "encoder=bigru", f"{len(VOCABULARY)} tokens", "resize", "ok"):
        assert expected in shown
    assert shown.rstrip().endswith("MB; a Hit is refined without its image")
    # Equal models make equal bundles, and so equal fingerprints.
    assert (tmp_path / "model.cir").read_bytes() == bundle.read_bytes()


def test_what_joins_captions_is_shown_with_its_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exported_once: Once
) -> None:
    """`captions= and `, said a model of CLIP."""
    save_model(tmp_path / "model.pt", replace(trained(), text={**word_text(), "captions": " and "}))
    with exported_once():
        assert main([str(tmp_path / "model.pt")]) == 0
    assert "max_tokens=512 captions=' and '\n" in capsys.readouterr().out


def test_the_command_answers_in_json_for_a_public_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exported_once: Once
) -> None:
    case = GOLDEN / "cirr_feat_bigru_small"
    arguments = [
        str(case / "ckpt.pth"),
        "--vocab",
        str(case / "cirr_vocab.pkl"),
        "-o",
        str(tmp_path / "a.cir"),
    ]
    with exported_once():
        assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["config"]["system"] == "artemis" and answer["vocabulary"] == 46
    assert answer["provenance"]["format"] == "naver/artemis"
    assert answer["fingerprint"] == Bundle(tmp_path / "a.cir").manifest.fingerprint
    assert all(check["passed"] for check in answer["parity"]["checks"])


def test_failures_are_one_line_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.pt")]) == 1
    assert capsys.readouterr().err.strip().count("\n") == 0
    for missing in (tmp_path / "runs" / "none.pt", tmp_path / "none.pt"):
        assert main([str(missing)]) == 1
        assert f"{missing} does not exist; expected a checkpoint" in capsys.readouterr().err
    (tmp_path / "notes.pt").write_text(Path(__file__).read_text("utf-8"), "utf-8")
    assert main([str(tmp_path / "notes.pt")]) == 1
    assert "expected a file that torch.save wrote" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "model.pt", trained())
    assert main([str(tmp_path / "model.pt"), "--images", str(tmp_path / "empty")]) == 2
    assert "holds no image" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "example" in capsys.readouterr().out


def test_a_model_does_not_give_its_place_to_its_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, target = tmp_path / "model.pt", tmp_path / "shop.cir"
    save_model(model, trained())
    before = model.read_bytes()
    target.symlink_to(model)
    assert main([str(model), "-o", str(target)]) == 2
    assert "is read for what would take its place; choose another name" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_a_file_with_no_more_of_a_bundle_than_its_name_is_refused_as_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.cir"
    text.write_text("hello")
    assert main([str(text)]) == 1
    assert capsys.readouterr().err.count("text.cir is not a bundle (.cir): it is no zip archive") == 1
    write_tiny_bundle(tmp_path / "sound.cir")
    assert main([str(tmp_path / "sound.cir")]) == 2
    assert "is a bundle; say what is made of it: --precision" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.pt", "notes.txt", "bundle"])
def test_a_bundle_takes_no_other_kind_of_files_place(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model itself was replaced by its bundle, and that is no model any more."""
    model = tmp_path / "model.pt"
    save_model(model, trained())
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([str(model), "-o", str(tmp_path / name)]) == 2
    assert "a bundle's name ends in .cir" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("artemis", "a Hit is refined without its image"),
        ("separate", "refining a Hit needs its image"),
        ("text-only", "a Hit is refined without its image"),
    ],
)
def test_what_it_takes_to_refine_a_hit_is_said_and_so(tmp_path: Path, system: str, said: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "a.cir", system)
    assert refining(Bundle(bundle).manifest) == said
    with Engine(bundle, device="cpu") as engine:
        gallery = Gallery.create(tmp_path / "a.gallery", engine)
        gallery.add([np.full((9, 9, 3), 30 * at, np.uint8) for at in range(3)], ids=["a", "b", "c"])
        searcher = Searcher(engine, gallery)
        assert engine.describe()["refines_without_image"] is ("without" in said)
        if "without" in said:
            assert len(searcher.query(searcher.item("b"), "is red")) == 2
        else:
            with pytest.raises(UsageError, match="image"):
                searcher.query(searcher.item("b"), "is red")


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from cir_export.commands.export import main; sys.exit(main(['model.pt']))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1 and "cir-infer[export]" in ended.stderr
    assert "Traceback" not in ended.stderr
