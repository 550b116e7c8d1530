"""What a bundle says of itself beside its graphs: upright photographs, domain, vocabulary, read padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cir_export.commands.export import main
from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel, save_model
from cir_export.models import build_model
from cir_export.preprocessing import feature_input, padded_crop, word_text
from cir_export.tokenization import build_tokenizer, known_words, vocabulary_from_texts
from cir_export.verification import draw_samples
from cir_infer import Engine
from cir_infer.bundle import Bundle
from tests.export.once import Once
from tests.export.tiny import config

TEXTS = ["is red", "has longer sleeves"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary_from_texts(TEXTS))
    text = {"encoder": "bigru", "vocabulary_size": tokenizer.get_vocab_size(), "word_dim": 10}
    trained = TrainedModel(
        build_model(config("image-only", text=text)).eval(),
        tokenizer,
        padded_crop(24, 28),
        word_text(),
        {"domain": "letters"},
    )
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, trained)
    return path


@pytest.fixture(scope="module")
def upright(model: Path, exported_once: Once) -> Path:
    with exported_once():
        assert main([str(model), "-o", str(model.with_name("upright.cir"))]) == 0
    return model.with_name("upright.cir")


def rotated_photograph(folder: Path) -> tuple[Path, Path]:
    """A photograph taken with the camera on its side, and the same picture upright without a tag."""
    seen = np.zeros((60, 90, 3), np.uint8)
    seen[:20, :, 0] = 255
    seen[:, :15, 1] = 255
    Image.fromarray(seen).save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    lying = Image.fromarray(np.rot90(seen).copy())
    lying.save(folder / "phone.png", exif=exif)
    return folder / "phone.png", folder / "plain.png"


def test_photographs_are_turned_upright_unless_the_user_says_otherwise(
    model: Path, upright: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], exported_once: Once
) -> None:
    phone, plain = rotated_photograph(tmp_path)
    engine = Engine(upright, device="cpu")
    np.testing.assert_array_equal(*engine.encode_images([phone, plain]))
    lying = tmp_path / "lying.cir"
    with exported_once():
        assert main([str(model), "--no-exif-orientation", "-o", str(lying)]) == 0
    rows = Engine(lying, device="cpu").encode_images([phone, plain])
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    assert Bundle(lying).manifest.fingerprint != engine.fingerprint  # rows of phone photographs differ
    # The same of a bundle, without torch and with the same graphs.
    again = tmp_path / "again.cir"
    capsys.readouterr()
    assert main([str(lying), "--exif-orientation", "-o", str(again), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fingerprint"] == engine.fingerprint and "indexed anew" in answer["note"]
    assert Bundle(again).manifest.members == Bundle(upright).manifest.members


def test_the_domain_can_be_said_afterwards_and_galleries_stay(
    upright: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "named.cir"
    assert main([str(upright), "--domain", "alphabets", "-o", str(named)]) == 0
    assert "indexed anew" not in capsys.readouterr().out
    about = Engine(named, device="cpu").describe()
    assert about["domain"] == "alphabets" and about["fingerprint"] == Bundle(upright).manifest.fingerprint


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([], "name it with -o"),
        (["-o", "SELF"], "is read for what would take its place"),
        (["-o", "x.cir", "--precision", "float16"], "a step of their own"),
        (["-o", "x.cir", "--fast-jpeg", "--images", "."], "a step of their own"),
    ],
)
def test_what_does_not_go_together(
    upright: Path, extra: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(upright) if part == "SELF" else part for part in extra]
    assert main([str(upright), "--no-exif-orientation", *given]) == 2
    assert said in capsys.readouterr().err


def test_features_are_not_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary_from_texts(TEXTS))
    text = {"encoder": "bigru", "vocabulary_size": tokenizer.get_vocab_size(), "word_dim": 10}
    built = build_model(config("image-only", text=text, image={"features": 7})).eval()
    trained = TrainedModel(built, tokenizer, feature_input(7), word_text())
    save_model(tmp_path / "model.pt", trained)
    assert main([str(tmp_path / "model.pt"), "--no-exif-orientation", "-o", str(tmp_path / "m.cir")]) == 2
    assert "pre-extracted features" in capsys.readouterr().err
    samples = draw_samples(trained.image, trained.text, tokenizer)
    export_bundle(trained, tmp_path / "m.cir", samples)
    assert main([str(tmp_path / "m.cir"), "--exif-orientation", "-o", str(tmp_path / "n.cir")]) == 2


@pytest.mark.parametrize("domain", ["", "\udcff", "x" * 1001])
def test_a_domain_is_words(
    upright: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], domain: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main([str(upright), "--domain", domain, "-o", str(tmp_path / "other.cir")])
    assert raised.value.code == 2 and "--domain: " in capsys.readouterr().err


def test_a_bundle_states_its_domain_and_vocabulary(upright: Path) -> None:
    assert Engine(upright, device="cpu").describe()["domain"] == "letters"
    assert Bundle(upright).manifest.provenance["vocabulary"] == {
        "kind": "words",
        "known": 5,
    }  # is, red, has, longer, sleeves


def test_subwords_spell_every_text() -> None:
    from cir_export.clip_tokenization import build_clip_tokenizer

    assert known_words(build_clip_tokenizer()) == {"kind": "subwords", "known": 49408}
