"""Folders of transformers and open_clip, against the answers of those packages (tools/golden/encoders.py)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cir_export.checkpoints import load_trained
from cir_export.commands.export import main
from cir_export.hub import is_hub_name
from cir_export.model_file import TrainedModel
from cir_export.preprocessing import check_inputs, text_input
from cir_infer.errors import CheckpointError, UsageError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.scoring.contract import QueryTerms
from tests.export.systems.shared import GOLDEN, assert_same_ranking, exported, scores

ENCODERS = GOLDEN / "encoders"
FOLDERS = ("clip", "siglip", "open_clip")


@cache
def loaded(name: str, system: str = "sum") -> TrainedModel:
    return load_trained(ENCODERS / name, system=system)


def answers(name: str) -> dict[str, Any]:
    with np.load(ENCODERS / name / "golden.npz") as file:
        return dict(file)


def texts(name: str) -> tuple[list[str], list[list[int]], np.ndarray]:
    """Texts that fit, their ids, and their places in the answers."""
    said = json.loads((ENCODERS / name / "tokens.json").read_text())
    places = np.flatnonzero(said.get("fits", [True] * len(said["texts"])))
    return [said["texts"][i] for i in places], [said["ids"][i] for i in places], places


def images() -> list[Path]:
    return sorted(ENCODERS.glob("*.png"))


def reader(name: str) -> TextReader:
    trained = loaded(name)
    return TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text))


def pixels(name: str) -> np.ndarray:
    image = loaded(name).image
    return np.stack([preprocess(path, check_inputs(image, loaded(name).text)) for path in images()])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", FOLDERS)
def test_tokens_are_those_of_the_package(name: str) -> None:
    said, ids, _ = texts(name)
    tokens, whole = reader(name).read(said), loaded(name).text.get("fixed_length", False)
    for row, length, expected in zip(tokens.ids.tolist(), tokens.lengths, ids, strict=True):
        assert (row if whole else row[:length]) == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_pixels_are_those_of_the_package(name: str) -> None:
    """Transformers 4 and open_clip resize with Pillow, as the runtime does."""
    np.testing.assert_array_equal(pixels(name), answers(name)["pixels"])


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_answers_of_the_package(name: str) -> None:
    model, said = loaded(name).model, reader(name).read(texts(name)[0])
    rows = model.encode_gallery(torch.tensor(pixels(name))).numpy()
    text = model.encode_text(torch.tensor(said.ids), torch.tensor(said.lengths)).numpy()
    references = rows[texts(name)[2] % len(rows)]
    terms = model.compose(torch.tensor(references), torch.tensor(text))
    weights = None if terms.weights is None else terms.weights.numpy()
    judge(name, rows, text, QueryTerms(terms.numerators.numpy(), weights, model.term_names))


def test_a_bundle_of_fixed_length_gives_them_too(tmp_path: Path) -> None:
    with exported(loaded("siglip"), tmp_path / "siglip.cir", texts=4) as engine:
        rows, text = engine.encode_images(images()), engine.encode_texts(texts("siglip")[0])
        judge("siglip", rows, text, engine.compose(rows[texts("siglip")[2] % len(rows)], text))
        assert engine.manifest.version == 2
        assert engine.encode_texts([]).shape == (0, 32)


def judge(name: str, rows: np.ndarray, text: np.ndarray, terms: QueryTerms) -> None:
    """Embeddings, scores and ranks against the package's."""
    golden, places = answers(name), texts(name)[2]
    image, expected, wanted = golden["image"], golden["text"][places], golden["sum_scores"][places]
    if name == "siglip":  # whose sum is one of unit embeddings
        image, expected = unit(image), unit(expected)
        wanted = unit(image[places % len(image)] + expected) @ image.T
    np.testing.assert_allclose(rows, image, atol=1e-5)
    np.testing.assert_allclose(text, expected, atol=1e-5)
    found = scores(terms, rows)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert_same_ranking(found, wanted)


@torch.no_grad()
def test_either_encoder_alone_is_a_system_of_its_own() -> None:
    image, text = torch.randn(2, 24), torch.randn(2, 24)
    for system, composes, query in (
        ("sum", ("reference", "text"), image + text),
        ("image-only", ("reference",), image),
        ("text-only", ("text",), text),
    ):
        model = loaded("clip", system).model
        terms = model.compose(image, text)
        assert (model.composes, model.weighted) == (composes, True)
        torch.testing.assert_close(terms.numerators[:, 0], query / query.norm(dim=1, keepdim=True))


# ---- what is wrong with a folder


def copied(tmp_path: Path, name: str = "clip") -> Path:
    return Path(shutil.copytree(ENCODERS / name, tmp_path / "folder"))


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def saved(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_trained(folder)
    assert len(str(caught.value)) < 700 + len(str(folder)) * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", r"holds no weights .*expected model.safetensors or pytorch_model.bin"),
        ("preprocessor_config.json", "has no preprocessor_config.json, which says how images are resized"),
        ("tokenizer.json", r"has no tokenizer.json; make it once"),
    ],
)
def test_a_folder_without_a_part(tmp_path: Path, name: str, message: str) -> None:
    folder = copied(tmp_path)
    (folder / name).unlink()
    refused(folder, message)


def test_a_folder_of_another_class(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for kind, message in (
        ("BertModel", "holds a 'BertModel'; expected one of"),
        ("Siglip2Model", "of any shape"),
    ):
        edited(folder, "config.json", lambda c, kind=kind: c.update(architectures=[kind], model_type="other"))
        refused(folder, message)
    edited(folder, "config.json", lambda c: c.update(architectures=["CustomCLIP"], model_type="clip"))
    assert load_trained(folder).model.system == "sum", "code of one's own around the weights of a CLIP"


def test_parts_that_are_missing(tmp_path: Path) -> None:
    folder = copied(tmp_path, "siglip")
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, r"names 3 parts and 1 of them are missing: \['model-00002-of-00003.safetensors'\]")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "without an index that says which weight is where")
    edited_index = {"weight_map": {"text_model.head.bias": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(edited_index))
    refused(folder, "expected a plain name")


def test_a_pickle_is_read_safely_or_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    found, expected = load_trained(folder).model.state_dict(), loaded("clip").model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.save({"model": Path("/")}, folder / "pytorch_model.bin")
    refused(folder, "more than tensors and plain values")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused(folder, "git lfs pull")


def test_adapters_without_their_base(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "openai/clip-vit-base-patch16"})
    )
    message = r"adapter \('LORA'\) of the model 'openai/clip-vit-base-patch16'.*merge"
    refused(folder, message)  # beside its base, in which it is not yet
    for path in folder.glob("*"):
        if path.name != "adapter_config.json":
            path.unlink()
    refused(folder, message)  # and as the Hub has them


@pytest.mark.parametrize("place", ["0_CLIPModel", "snapshots/0123abcd"])
def test_a_model_further_inside_is_named(tmp_path: Path, place: str) -> None:
    """As sentence-transformers and the Hub's cache lay it."""
    inner = tmp_path / "outer" / place
    inner.parent.mkdir(parents=True)
    copied(tmp_path).rename(inner)
    refused(tmp_path / "outer", f"has no config.json.*{place} has one: give that")
    shutil.copytree(inner, inner.with_name("9_Other"))
    refused(tmp_path / "outer", f"{place} has one, and 1 more in it: give one of these")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_file_of_a_folder_is_not_the_model(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path)
    for files in ([folder / name], [folder / name, folder / "preprocessor_config.json"]):
        with pytest.raises(CheckpointError, match=f"{name} is one file of a model.* give their folder, "):
            load_trained(files)


def test_a_public_model_that_is_not_here_yet_is_known_by_its_folder(tmp_path: Path) -> None:
    for system in (None, "text-only"):
        with pytest.raises(
            CheckpointError, match=r"BGE-VL-base does not exist; .*`hf download BAAI/BGE-VL-base "
        ):
            load_trained(tmp_path / "BGE-VL-base", system=system)


def test_a_tokenizer_without_its_special_tokens(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edited(folder, "tokenizer.json", lambda c: c.update(post_processor=None))
    refused(folder, "texts do not end with the special token 687 that CLIP expects")


def test_a_text_cannot_type_a_special_token() -> None:
    ids = reader("clip").read(["red <|endoftext|> blue"]).ids[0].tolist()
    assert ids.count(687) == 1 and ids[-1] == 687


def as_siglip_2(folder: Path) -> dict[str, int]:
    """The folder with a tokenizer of Gemma's kind, as SigLIP 2 has it: merges, and bytes for what is rare."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate([*special, *spelt, "▁", *"abder", "re", "red", "▁red"])}
    said = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    table = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": piece, **said} for i, piece in enumerate(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [["r", "e"], ["re", "d"], ["▁", "red"]],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(table))
    named = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
    named |= {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return vocabulary


def test_texts_of_siglip_2_are_small_letters_end_and_are_filled_up(tmp_path: Path) -> None:
    folder = copied(tmp_path, "siglip")
    vocabulary = as_siglip_2(folder)
    parts = sorted(folder.glob("*.safetensors"))
    weights = {name: weight for part in parts for name, weight in load_file(part).items()}
    for part in [*parts, folder / "model.safetensors.index.json"]:
        part.unlink()
    weights["text_model.embeddings.token_embedding.weight"] = torch.ones(len(vocabulary), 32)
    save_file(weights, folder / "model.safetensors")
    edited(folder, "config.json", lambda c: c["text_config"].update(vocab_size=len(vocabulary)))
    trained = load_trained(folder)
    texts = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text))
    for said, expected in (
        ("A RED", ["a", "▁red"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("<eos>", ["<0x3C>", "e", "<0x6F>", "<0x73>", "<0x3E>"]),
    ):
        filled = [*expected, "<eos>", *["<pad>"] * (15 - len(expected))]
        assert texts.read([said]).ids.tolist() == [[vocabulary[piece] for piece in filled]]


def test_parts_that_are_not_of_one_model(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edited(folder, "config.json", lambda c: c["vision_config"].update(hidden_size=64))
    refused(folder, r"class_embedding has shape \(48,\); expected \(64,\) by config.json")
    edited(folder, "config.json", lambda c: c["vision_config"].update(hidden_size=48, image_size=64))
    refused(folder, "makes images of 32 x 32 and the model takes 64 x 64")
    edited(folder, "config.json", lambda c: c["vision_config"].update(image_size=32))
    edited(folder, "config.json", lambda c: c["text_config"].update(vocab_size=300))
    refused(folder, "token ids up to 687 and the model has 300 word vectors")
    edited(folder, "config.json", lambda c: c["text_config"].update(vocab_size=688, num_hidden_layers=1))
    refused(folder, "16 weights have no place in this model, text_model.encoder.layers.1.layer_norm1.bias")
    edited(folder, "config.json", lambda c: c["text_config"].update(num_hidden_layers=10**6))
    refused(folder, "has more layers than it has weights")
    edited(folder, "config.json", lambda c: c["text_config"].update(num_hidden_layers=2, hidden_act="relu"))
    refused(folder, "hidden_act is .*'relu'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 0}, "resample 0"),
        ({"size": {"longest_edge": 32}}, "size {'longest_edge': 32}"),
        ({"rescale_factor": 0.5}, "rescale_factor 0.5"),
        ({"image_mean": [0.5]}, "image_mean is"),
        ({"crop_size": 48}, "resizes to 32 pixels and cuts 48"),
        ({"resample": [3]}, r"resample \[3\]"),
        ({"rescale_factor": float("nan")}, "rescale_factor nan"),
        ({"image_mean": [10**400, 0, 0]}, "image_mean is"),
        ({"image_mean": [float("nan")] * 3}, "image_mean is"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is .*three numbers from 1e-06 up"),
        ({"image_std": [float("inf")] * 3}, "image_std is"),
    ],
)
def test_an_image_processor_that_a_bundle_cannot_hold(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = copied(tmp_path)
    edited(folder, "preprocessor_config.json", lambda c: c.update(change))
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": [{}], "model_type": {"clip": 1}}, "holds a None; expected one of"),
        ({"architectures": None, "model_type": ["clip"]}, "holds a None; expected one of"),
        ({"text_config": {"hidden_act": ["gelu"]}}, r"hidden_act is \[\['gelu'\], 'quick_gelu'\]"),
        ({"vision_config": {"hidden_act": {}}}, "hidden_act is"),
        ({"text_config": {"layer_norm_eps": [1e-5]}}, "layer_norm_eps differs"),
        ({"text_config": {"eos_token_id": [687]}}, "special token \\[687\\]"),
    ],
)
def test_a_configuration_may_hold_any_json(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = copied(tmp_path)

    def change_it(config: dict[str, Any]) -> None:
        for key, value in change.items():
            config.update({key: config[key] | value if key.endswith("_config") else value})

    edited(folder, "config.json", change_it)
    refused(folder, message)


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("preprocess_cfg", "mean", "x", "mean is 'x'"),
        ("preprocess_cfg", "std", [0, 0, 0], "std is"),
        ("vision_cfg", "head_width", 0, "head_width is 0"),
        ("text_cfg", "heads", "x", "heads is 'x'"),
    ],
)
def test_an_open_clip_configuration_may_hold_any_json(
    tmp_path: Path, table: str, key: str, value: Any, message: str
) -> None:
    folder = copied(tmp_path, "open_clip")
    edited(
        folder,
        "open_clip_config.json",
        lambda c: (c if table in c else c["model_cfg"])[table].update({key: value}),
    )
    refused(folder, message)


def test_names_of_parts_that_no_file_can_have(tmp_path: Path) -> None:
    folder = copied(tmp_path, "siglip")
    for name in ("a" * 5000, "\u4e00" * 90, "/etc/passwd", "", 3, ["a"]):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        refused(folder, "expected a plain name")


def test_an_index_of_many_weights_in_many_parts_is_read_in_their_number(tmp_path: Path) -> None:
    """100,000 weights in 300 parts: looking through all weights for each part would take a minute."""
    folder, parts, each = copied(tmp_path), 300, 333
    names = [[f"w{part}.{number}" for number in range(each)] for part in range(parts)]
    for part, weights in enumerate(names):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header = json.dumps(dict.fromkeys(weights, entry)).encode()
        (folder / f"{part}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    files = {name: f"{part}.safetensors" for part, weights in enumerate(names) for name in weights}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    refused(folder, "embedding.weight is missing")


def test_a_table_of_contents_that_is_too_long(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    with (folder / "model.safetensors").open("wb") as file:
        file.write((90 << 20).to_bytes(8, "little"))
        file.truncate(91 << 20)
    refused(folder, "has a table of contents of 94,371,840 bytes; at most 16,777,216 are read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_no_part_of_a_folder_is_waited_for(tmp_path: Path) -> None:
    for name in ("README.md", "config.json", "tokenizer.json", "model.safetensors"):
        folder = Path(shutil.copytree(ENCODERS / "clip", tmp_path / name))
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        if name == "README.md":
            assert load_trained(folder).provenance["weights_licence"] == "not stated in the folder"
        else:
            with pytest.raises(CheckpointError):
                load_trained(folder)


def test_a_licence_is_printed_without_its_control_characters(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "README.md").write_text("---\nlicense: \x1b[31mMIT\x07\n---\n")
    assert load_trained(folder).provenance["weights_licence"] == "[31mMIT"


def test_weights_that_are_missing_or_not_finite(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    saved(folder, lambda w: w["visual_projection.weight"].fill_(torch.inf))
    refused(folder, "NaN or infinity")
    saved(folder, lambda w: w.pop("visual_projection.weight"))
    refused(folder, "weight visual_projection.weight is missing")


def test_an_open_clip_folder_of_another_architecture(tmp_path: Path) -> None:
    folder = copied(tmp_path, "open_clip")
    edited(
        folder, "open_clip_config.json", lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="vit")
    )
    refused(folder, "'timm_model_name' is not among what is read")


def test_a_system_is_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system 'difference'; expected one of sum, image-only, text-only"):
        load_trained(ENCODERS / "clip", system="difference")
    with pytest.raises(UsageError, match="--system belongs to a folder"):
        load_trained(GOLDEN / "clip4cir" / "combiner_small" / "combiner.pt", system="sum")


# ---- models by name


def test_a_name_on_the_hub_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert is_hub_name("BAAI/BGE-VL-base") and is_hub_name("google/siglip2-so400m-patch14-384")
    for text in ("model.pt", "BAAI/model.pt", "a/b/c", "/BAAI/x", "../x", "here/there", "BAAI/"):
        assert not is_hub_name(text)


def test_without_a_network_the_command_that_downloads_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download BAAI/BGE-VL-base --local-dir BGE-VL-base"):
        load_trained("BAAI/BGE-VL-base")


def test_what_was_fetched_before_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    store = tmp_path / "models--BAAI--BGE-VL-base"
    shutil.copytree(ENCODERS / "clip", store / "snapshots" / ("0" * 40))
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("0" * 40)
    found = load_trained("BAAI/BGE-VL-base").provenance
    assert found["source"] == "BAAI/BGE-VL-base"
    assert (found["weights_licence"], "MegaPairs" in found["data_licence"]) == ("mit", True)


def test_the_presets_are_listed_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--json"]) in (0, None)
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["presets"]}
    assert listed["openai/clip-vit-base-patch32"]["macs"] == pytest.approx(4.4e9, rel=0.02)
    assert listed["BAAI/BGE-VL-base"]["macs"] == pytest.approx(17.5e9, rel=0.02)
    assert listed["BAAI/BGE-VL-base"]["weights_licence"] == "MIT"
    main(["--list"])
    assert "CC BY 4.0" in capsys.readouterr().out
