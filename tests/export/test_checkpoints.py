"""Checkpoints and vocabularies that are not what they should be: clear errors, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cir_export.checkpoints import load_trained
from cir_export.checkpoints.vocabulary import load_vocabulary
from cir_infer.errors import CheckpointError
from tests.export.conftest import GOLDEN

CASE = GOLDEN / "cirr_feat_bigru_small"


class Touch:
    """A pickle of this runs `os.system`; unpickled without care it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


class Foreign:
    """A class that no loader should know."""


def altered(path: Path, **changes: Any) -> Path:
    content = torch.load(CASE / "ckpt.pth", weights_only=False)
    options = changes.pop("options", {})
    vars(content["args"]).update(options)
    content["model"] |= changes.pop("weights", {})
    for name in changes.pop("without", ()):
        del content["model"][name]
    torch.save(content | changes, path)
    return path


def load(path: Path, vocabulary: Path | None = CASE / "cirr_vocab.pkl") -> None:
    load_trained(path, vocabulary)


# ---- the container


def test_no_file_a_folder_and_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "none.pth")
    with pytest.raises(
        CheckpointError, match=r"has no config\.json, which says what the model is; it holds nothing"
    ):
        load(tmp_path)
    for content in (b"", b"hello", b"\x80\x04", bytes(range(256)) * 40, b"PK\x03\x04" + bytes(200)):
        (tmp_path / "text.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"text\.pth"):
            load(tmp_path / "text.pth")


def test_two_models_in_one_call(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    for others in ([second], [CASE / "ckpt.pth"]):
        with pytest.raises(CheckpointError, match=f"first is a model of its own; give {others[0]} in a call"):
            load_trained([first, *others])


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = (CASE / "ckpt.pth").read_bytes()
    for share in np.linspace(0.02, 0.98, 13):
        (tmp_path / "cut.pth").write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            load(tmp_path / "cut.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_checkpoint_is_not_executed(tmp_path: Path, legacy: bool) -> None:
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"args": Touch(trap), "model": {}}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        load(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Touch(trap)))  # the trap does work
    assert trap.exists()


def test_a_foreign_class_is_named(tmp_path: Path) -> None:
    torch.save({"args": Foreign(), "model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="Foreign"):
        load(tmp_path / "foreign.pth")


def test_an_unknown_layout_shows_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "net": {"w": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="epoch, net") as refused:
        load(tmp_path / "other.pth")
    assert f"`cir-export package.module:Name --weights {tmp_path / 'other.pth'}`" in str(refused.value)


# ---- ARTEMIS' content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"model_version": "ARTEMIS-2"}}, "ARTEMIS-2"),
        ({"without": ["Transform_m.0.bias"]}, "transform.bias is missing"),
        ({"weights": {"Transform_m.0.bias": torch.zeros(31)}}, r"\(31,\); expected \(32,\)"),
        ({"weights": {"extra.weight": torch.zeros(3)}}, "extra.weight does not belong"),
        ({"weights": {"img_enc.linear.weight": torch.zeros(3)}}, "not a matrix"),
        ({"weights": {"img_enc.linear.bias": "text"}}, "not a table of tensors"),
        ({"without": ["img_enc.linear.weight"]}, "img_enc.fc.weight is missing"),
        ({"weights": {"txt_enc.embed.weight": torch.full((46, 16), torch.inf)}}, "infinity"),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(altered(tmp_path / "ckpt.pth", **changes))


def test_an_unknown_trunk_is_refused(tmp_path: Path) -> None:
    weights = {"img_enc.fc.weight": torch.zeros(32, 64), "img_enc.cnn.conv1.weight": torch.zeros(8, 3, 3, 3)}
    path = altered(tmp_path / "ckpt.pth", weights=weights, without=["img_enc.linear.weight"])
    with pytest.raises(CheckpointError, match="not a ResNet"):
        load(path)


def test_a_vocabulary_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--vocab"):
        load(CASE / "ckpt.pth", None)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    words = load_vocabulary(CASE / "cirr_vocab.pkl")
    (tmp_path / "vocab.json").write_text(json.dumps(words | {"unseen": len(words)}))
    with pytest.raises(CheckpointError, match=r"47 tokens .* for 46"):
        load(CASE / "ckpt.pth", tmp_path / "vocab.json")


def test_a_vocabulary_with_other_special_tokens_is_refused(tmp_path: Path) -> None:
    words = list(load_vocabulary(CASE / "cirr_vocab.pkl"))
    words[2], words[9] = words[9], words[2]
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match="<and> has id 9"):
        load(CASE / "ckpt.pth", tmp_path / "vocab.json")


# ---- vocabulary files


def test_a_vocabulary_is_read_from_pickle_and_json_alike(tmp_path: Path) -> None:
    words = load_vocabulary(CASE / "cirr_vocab.pkl")
    assert len(words) == 46 and list(words)[:6] == ["<pad>", "<start>", "<and>", "<end>", "<unk>", "remove"]
    (tmp_path / "table.json").write_text(json.dumps(words))
    (tmp_path / "list.json").write_text(json.dumps(list(words)))
    assert load_vocabulary(tmp_path / "table.json") == words == load_vocabulary(tmp_path / "list.json")


def test_a_pickle_that_was_made_by_import_is_read(tmp_path: Path) -> None:
    content = (CASE / "cirr_vocab.pkl").read_bytes()
    renamed = content.replace(b"\x8c\x08__main__", b"\x8c\x05vocab")
    # The frame's length stands at bytes 3 to 10.
    frame = int.from_bytes(renamed[3:11], "little") - 3
    (tmp_path / "vocab.pkl").write_bytes(renamed[:3] + frame.to_bytes(8, "little") + renamed[11:])
    assert load_vocabulary(tmp_path / "vocab.pkl") == load_vocabulary(CASE / "cirr_vocab.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_vocabulary_is_not_executed(tmp_path: Path, protocol: int) -> None:
    trap, path = tmp_path / "executed", tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps({"word2idx": Touch(trap)}, protocol))
    with pytest.raises(CheckpointError, match=r"system.*Nothing of it was executed"):
        load_vocabulary(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["__main__.Vocabulary.__init__", "builtins.eval", "vocab.Vocabulary.x"])
def test_no_other_name_is_looked_up(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.partition(".")
    code = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    code += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93."
    (tmp_path / "vocab.pkl").write_bytes(code)
    with pytest.raises(CheckpointError, match="refers to"):
        load_vocabulary(tmp_path / "vocab.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither"),
        (b"\x80\x05garbage", "neither"),
        (pickle.dumps({"a": 1}), "holds a dict"),
        (pickle.dumps([1, 2]), "holds a list"),
        (b'{"a": 0', "not valid JSON"),
        (b'{"a": "0"}', "no table"),
        (b'{"a": 0, "b": 2}', r"0\.\.1"),
        (b'{"a": 0, "b": 0}', r"0\.\.1"),
        (b"{}", "ids"),
        (b'["a", 3]', "no table"),
        (b'["a", "b", "a"]', "twice"),
    ],
)
def test_a_vocabulary_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_vocabulary(tmp_path / "vocab")


def test_a_vocabulary_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = (CASE / "cirr_vocab.pkl").read_bytes()
    for length in range(0, len(content), 23):
        (tmp_path / "vocab.pkl").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="vocabulary"):
            load_vocabulary(tmp_path / "vocab.pkl")


def test_a_vocabulary_is_not_taken_where_none_is_needed(tmp_path: Path) -> None:
    shutil.copy(CASE / "cirr_vocab.pkl", tmp_path / "ckpt.pth")
    with pytest.raises(CheckpointError, match=r"ckpt\.pth"):
        load(tmp_path / "ckpt.pth")
