"""Pic2Word's, SEARLE's and LinCIR's checkpoints: phi, over a CLIP that the file holds or that lies beside.

- Pic2Word: `{"state_dict": CLIP in open_clip's names, "state_dict_img2text": {"layers.N.0.*", "fc_out.*"}}`,
  over OpenAI's CLIP, whose activation is QuickGELU.
- SEARLE and LinCIR: `{"Phi": {"layers.0.*", "layers.3.*", "layers.6.*"}}`, over OpenAI's CLIP, which is
  another file or folder. The two cannot be told apart, and differ in nothing but how images are padded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor

from cir_export.checkpoints.clip import as_float32, clip_config, clip_weights
from cir_export.clip_tokenization import CONTEXT_LENGTH, build_clip_tokenizer
from cir_export.model_file import TrainedModel, build_fitting, restore_weights
from cir_infer.errors import CheckpointError

__all__ = ["is_pic2word", "load_pic2word", "prompted"]

_OWN, _PHI = "state_dict_img2text", "Phi"
_PROMPTS = {_OWN: ("a photo of * ,", "*"), _PHI: ("a photo of $ that", "$")}
"""What stands before the text, and the word in it that is the picture."""


def is_pic2word(content: Any) -> bool:
    """Whether this is a checkpoint of one of the three."""
    return isinstance(content, Mapping) and any(isinstance(content.get(key), Mapping) for key in _PROMPTS)


def load_pic2word(content: Mapping[str, Any], where: str, base: TrainedModel | None) -> TrainedModel:
    """Builds the model of a checkpoint.

    Args:
        content: see `is_pic2word`.
        where: its path, for messages.
        base: the CLIP that SEARLE and LinCIR are over, as a model of its own; None for Pic2Word.

    Raises:
        CheckpointError: a part is missing, of another shape, or the CLIP is of another width.
    """
    key = _OWN if isinstance(content.get(_OWN), Mapping) else _PHI
    layers = _layers(content[key], f"{where}: {key}")
    if key == _OWN:
        if base is not None:
            raise CheckpointError(f"{where} holds its own CLIP; leave the other file out")
        pair, weights, tokenizer, image, text = _own_clip(content, where)
    elif base is None:
        raise CheckpointError(
            f"{where} holds phi of SEARLE or LinCIR and no CLIP; give the CLIP that it is over as another "
            f"file or "
            "folder, e.g. clip-vit-large-patch14"
        )
    else:
        pair, weights = _towers(base, where)
        tokenizer, image, text = base.tokenizer, base.image, base.text
    dim, width = layers[0][0].shape[1], layers[-1][0].shape[0]
    if (dim, width) != (pair["embed_dim"], pair["text_width"]):
        raise CheckpointError(
            f"{where} makes words of {width} values from embeddings of {dim}, and its CLIP has words of "
            f"{pair['text_width']} and embeddings of {pair['embed_dim']}; give the CLIP that it was "
            f"trained over"
        )
    behind_prompt, place = prompted(tokenizer, *_PROMPTS[key])
    config: dict[str, Any] = {
        "system": "pic2word",
        "pair": pair,
        "hidden": tuple(layer.shape[0] for layer, _ in layers[:-1]),
        "activation": "relu" if key == _OWN else "gelu",
        "place": place,
    }
    filled = {f"pair.{name}": value for name, value in as_float32(weights).items()}
    for number, (weight, bias) in enumerate(layers):
        filled |= {f"phi.{number}.weight": weight.float(), f"phi.{number}.bias": bias.float()}
    filled["logit_scale"] = torch.zeros(())
    model = build_fitting(config, filled, where)
    restore_weights(model, filled, where)
    provenance = {
        **(base.provenance if base is not None else {}),
        "format": "Pic2Word" if key == _OWN else "SEARLE or LinCIR",
        "prompt": f"{_PROMPTS[key][0]} ...",
        "weights_licence": "not stated in the file"
        if key == _OWN
        else "not stated in the file; the authors publish theirs under CC BY-NC 4.0, not for commercial use",
        "data_licence": "not stated in the file",
    }
    return TrainedModel(model, behind_prompt, image, text, provenance)


def _layers(table: Mapping[str, Any], where: str) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of phi, first to last."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in table.items():
        named = re.fullmatch(r"(?:module\.)?(?:layers\.(\d+)(?:\.0)?|(fc_out))\.(weight|bias)", str(name))
        if named is None or not isinstance(value, Tensor):
            raise CheckpointError(f"{where} holds {str(name)[:60]}; expected layers.N and fc_out alone")
        found.setdefault(10**6 if named[2] else int(named[1]), {})[named[3]] = value
    ordered = [found[number] for number in sorted(found)]
    layers = [(part.get("weight"), part.get("bias")) for part in ordered]
    sound: list[tuple[Tensor, Tensor]] = []
    for weight, bias in layers:
        fits = weight is not None and bias is not None and weight.ndim == 2 and bias.shape == weight.shape[:1]
        if not fits or (sound and sound[-1][0].shape[0] != weight.shape[1]):  # type: ignore[union-attr]
            raise CheckpointError(
                f"{where}: its layers do not follow one another; expected matrices with biases"
            )
        sound.append((weight, bias))  # type: ignore[arg-type]
    if len(sound) < 2:
        raise CheckpointError(f"{where} has {len(sound)} layers; expected at least 2")
    return sound


def _own_clip(
    content: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer, dict[str, Any], dict[str, Any]]:
    found = clip_weights(content)
    if found is None:
        raise CheckpointError(f"{where} holds no CLIP under state_dict; expected Pic2Word's own checkpoint")
    pair = {"family": "clip", **clip_config(found[0], True, None, where)}
    if (pair["vocabulary_size"], pair["context_length"]) != (49408, CONTEXT_LENGTH):
        raise CheckpointError(f"{where}: its CLIP reads {pair['vocabulary_size']} tokens; expected 49408")
    size = pair["image_size"]
    steps = [
        {"op": "resize", "size": size, "interpolation": "bicubic"},
        {"op": "center_crop", "size": size},
        {"op": "to_rgb"},
    ]
    image = {"kind": "pixels", "height": size, "width": size, "exif_orientation": True, "steps": steps}
    text = {"pad_id": 0, "unk_id": None, "max_tokens": CONTEXT_LENGTH, "captions": " and "}
    return pair, found[0], build_clip_tokenizer(), image, text


def _towers(base: TrainedModel, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a CLIP that was loaded as a system of its own."""
    config = base.model.config
    table = config.get("pair", config.get("clip"))
    if not isinstance(table, Mapping) or table.get("family", "clip") != "clip":
        raise CheckpointError(f"{where} is over a CLIP; the other file holds {base.model.system} without one")
    prefix = "pair." if "pair" in config else "clip."
    weights = {
        name.removeprefix(prefix): value
        for name, value in base.model.state_dict().items()
        if name.startswith(prefix)
    }
    return {"family": "clip", **table}, weights


def prompted(tokenizer: Tokenizer, prompt: str, picture: str) -> tuple[Tokenizer, int]:
    """The tokenizer with the prompt before every text, and where the picture's word stands in it.

    Raises:
        CheckpointError: it reads `picture` as no word of its own.
    """
    whole, bare = (tokenizer.encode(prompt, add_special_tokens=own).ids for own in (True, False))
    word = tokenizer.encode(picture, add_special_tokens=False).ids
    start, end = whole[: len(whole) - len(bare) - 1], whole[-1:]
    if len(word) != 1 or bare.count(word[0]) != 1 or [*start, *bare, *end] != whole or len(start) != 1:
        raise CheckpointError(
            f"the tokenizer does not read {picture!r} as one word between its special tokens"
        )
    copy = Tokenizer.from_str(tokenizer.to_str())
    opening = [*start, *bare]
    copy.post_processor = processors.TemplateProcessing(
        single="<prompt> $A <end>",
        pair="<prompt> $A $B <end>",
        special_tokens=[
            {"id": "<prompt>", "ids": opening, "tokens": [str(copy.id_to_token(i)) for i in opening]},
            {"id": "<end>", "ids": end, "tokens": [str(copy.id_to_token(i)) for i in end]},
        ],
    )
    return copy, opening.index(word[0])
