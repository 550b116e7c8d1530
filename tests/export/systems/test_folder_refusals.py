"""Folders of transformers and open_clip that cannot be read: what is wrong is named, nothing is guessed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cir_export.checkpoints import load_trained
from cir_infer.errors import CheckpointError, UsageError
from tests.export.systems.folders import (
    ENCODERS,
    copied,
    edited,
    loaded,
    refused,
    saved,
)
from tests.export.systems.shared import GOLDEN


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


def in_place_of(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling"])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
        "open_clip_config.json",
    ],
)
def test_what_has_a_files_name_and_is_none_is_not_said_to_be_missing(
    tmp_path: Path, name: str, kind: str
) -> None:
    """It "has no config.json; it holds ['config.json', ...]", or what lies beside it was taken instead."""
    folder = copied(tmp_path)
    in_place_of(folder / name, kind)
    said = "is a link to what is not there" if kind == "dangling" else "is not a file"
    refused(folder, rf"/{name} {said}; expected one, or nothing of this name$")


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
        ({"do_resize": "false"}, "do_resize is 'false'; expected true or false"),
        ({"do_center_crop": None}, "do_center_crop is None"),
        ({"do_normalize": 0}, "do_normalize is 0"),
        ({"do_rescale": False}, "expected 1 / 255"),
        ({"do_flip_channel_order": True}, "'do_flip_channel_order' is True; images are resized, cropped"),
        ({"do_pad": True, "pad_size": 40}, "'do_pad' is True"),
        ({"crop_pct": 0.9}, "'crop_pct' is 0.9"),
    ],
)
def test_an_image_processor_that_a_bundle_cannot_hold(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = copied(tmp_path)
    edited(folder, "preprocessor_config.json", lambda c: c.update(change))
    refused(folder, message)


def test_an_image_processor_that_says_only_what_its_class_does_not(tmp_path: Path) -> None:
    """CLIP's crops by default: read as a square, its pictures were squashed."""
    folder = copied(tmp_path)
    edited(folder, "preprocessor_config.json", lambda c: [c.pop("do_center_crop"), c.pop("crop_size")])
    edited(folder, "preprocessor_config.json", lambda c: c.update(size=32, do_pad=None, do_convert_rgb=None))
    refused(folder, "a CLIPImageProcessor crops where it does not say otherwise; expected do_center_crop and")
    edited(folder, "preprocessor_config.json", lambda c: c.update(do_center_crop=False))
    assert load_trained(folder).image["steps"][1:] == [
        {"op": "resize", "size": [32, 32], "interpolation": "bicubic"}
    ]


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
    message = "has a table of contents of 94,371,840 bytes; at most 16,777,216 are read"
    refused(folder, message)
    alone = tmp_path / "weights.safetensors"
    alone.write_bytes((94_371_840).to_bytes(8, "little") + b"{}".ljust(94_371_840))
    with pytest.raises(CheckpointError, match=message):
        load_trained(alone)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model_cfg"]["vision_cfg"].update(pool_type="avg"), "'pool_type' is not among"),
        (lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True), "'no_causal_mask' is not among"),
        (lambda c: c["model_cfg"].update(custom_text=True), "'custom_text' is not among"),
        (
            lambda c: c["model_cfg"].update(quick_gelu="false"),
            "quick_gelu is 'false'; expected true or false",
        ),
    ],
)
def test_what_open_clip_says_of_a_model_is_read_alike_of_a_folder_and_of_files(
    tmp_path: Path, change: Any, message: str
) -> None:
    folder = copied(tmp_path, "open_clip")
    assert load_trained([folder / "open_clip_model.safetensors", folder / "open_clip_config.json"])
    edited(folder, "open_clip_config.json", change)
    refused(folder, message)
    with pytest.raises(CheckpointError, match=message):
        load_trained([folder / "open_clip_model.safetensors", folder / "open_clip_config.json"])


def test_an_open_clip_of_grey_pictures(tmp_path: Path) -> None:
    folder = copied(tmp_path, "open_clip")
    edited(folder, "open_clip_config.json", lambda c: c["preprocess_cfg"].update(mode="L"))
    refused(folder, "mode 'L'; expected RGB")


def test_a_system_is_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system 'difference'; expected one of sum, image-only, text-only"):
        load_trained(ENCODERS / "clip", system="difference")
    with pytest.raises(UsageError, match="--system belongs to a folder"):
        load_trained(GOLDEN / "clip4cir" / "combiner_small" / "combiner.pt", system="sum")
