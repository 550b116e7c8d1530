r"""Makes tests/golden/blip2: small random models of BLIP's and BLIP-2's kind, and packages' answers.

Run in an environment of its own, which is not that of the tests:

    python -m venv golden && golden/bin/pip install torch pillow "transformers==4.45.2"
    golden/bin/pip install --no-deps salesforce-lavis==1.0.2
    golden/bin/python tools/golden/blip2.py tests/golden/blip2

`folder` is a `Blip2ForImageTextRetrieval` of transformers. `lavis.pt` holds EVA's ViT and the Q-Former of
salesforce-lavis (BSD-3) under LAVIS' names, `clip.pt` its CLIP ViT beside the same Q-Former; the answers are
what CoVR-2's and SPRC's equations make of those modules. `blip.pth` holds BLIP's two encoders, of
transformers, under the names of BLIP's own file. Of LAVIS, three modules are loaded by their path:
what the package imports at its top needs a dozen more, which nothing here uses.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    BertConfig,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipImageProcessor,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

ENCODERS = Path(__file__).parents[2] / "tests" / "golden" / "encoders"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXTS = [
    "is red",
    "Make the background dark, as if the camera has taken the photo at night",
    "the same dress, but with long sleeves & a V-neck!",
    "a vestido mas corto",
    "two dogs instead of one  (and no people)",
    "it's 3 blue cubes",
    "a",
]


def images(size: int) -> tuple[np.ndarray, torch.Tensor]:
    """The pictures of tests/golden/encoders, squashed by Pillow: bytes, and as a tower takes them."""
    opened = [Image.open(path).convert("RGB") for path in sorted(ENCODERS.glob("*.png"))]
    squashed = np.stack([np.asarray(one.resize((size, size), Image.Resampling.BICUBIC)) for one in opened])
    values = torch.from_numpy(squashed).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
    return squashed, (values - mean) / std


def word_pieces() -> list[str]:
    """BERT's special tokens where BERT has them in order, letters, and the words of the texts."""
    words = {
        word for text in TEXTS for word in "".join(c if c.isalnum() else " " for c in text.lower()).split()
    }
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters if c.isalnum()),
    ]
    return [*pieces, *sorted(words - set(pieces) - {"mas", "sleeves"}), "sleeve"]


def randomised(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every part of the network matters to the answers, exact in float16."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
        elif ("norm" not in name.lower() and ".ln_" not in name) or name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
        weight.data = weight.data.half().float()


def padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids side by side, and 1 where there is one."""
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    return tokens, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])


def hugging_face(out: Path, vocabulary: Path) -> None:
    """`Blip2ForImageTextRetrieval`, in one file."""
    folder = out / "folder"
    folder.mkdir()
    tokenizer = BertTokenizerFast(str(vocabulary), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    config = Blip2Config(
        vision_config={
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
            "image_size": 28, "patch_size": 7,
        },
        qformer_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 56, "max_position_embeddings": 40, "encoder_hidden_size": 48,
            "use_qformer_text_input": True, "pad_token_id": 0,
        },
        num_query_tokens=5, image_text_hidden_size=16,
    )  # fmt: skip
    config.text_config = type(config.text_config)(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8,
        word_embed_proj_dim=8,
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config)
    randomised(model, 5)
    model.eval()
    processor = BlipImageProcessor(size={"height": 28, "width": 28})
    ids = tokenizer(TEXTS)["input_ids"]
    tokens, mask = padded(ids)
    opened = [Image.open(path) for path in sorted(ENCODERS.glob("*.png"))]
    pixels = processor(opened, return_tensors="pt")["pixel_values"]
    plain = processor(opened, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    rows, texts, scores = [], [], np.zeros((len(TEXTS), len(opened)), np.float32)
    with torch.no_grad():
        for number in range(len(opened)):
            # One image a call: the package's maximum is over images where it is given several.
            found = model(pixels[number : number + 1], tokens, mask, use_image_text_matching_head=False)
            rows.append(found.image_embeds[0])
            texts.append(found.text_embeds)
            scores[:, number] = (found.image_embeds[0] @ found.text_embeds.T).amax(0)
            assert np.allclose(found.logits_per_image.reshape(-1), scores[:, number], atol=1e-6)
    np.savez_compressed(
        folder / "golden.npz", pixels=plain.transpose(0, 2, 3, 1).astype(np.uint8),
        image=torch.stack(rows).numpy(), text=texts[0].numpy(), scores=scores,
    )  # fmt: skip
    (folder / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in ("vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\nRandom weights; made by tools/golden/blip2.py.\n"
    )


def lavis() -> tuple[Any, Any, Any]:
    """LAVIS' modules of EVA's ViT, CLIP's ViT and the Q-Former."""
    spec = importlib.util.find_spec("lavis")
    assert spec is not None and spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    stand_ins: dict[str, dict[str, Any]] = {
        "lavis": {}, "lavis.common": {}, "lavis.models": {},
        "lavis.common.dist_utils": {"download_cached_file": None},
        "fairscale.nn.checkpoint.checkpoint_activations": {"checkpoint_wrapper": None},
        "timm.models.layers": {
            "drop_path": None, "to_2tuple": lambda n: (n, n), "trunc_normal_": torch.nn.init.trunc_normal_,
        },
        "timm.models.registry": {"register_model": None},
    }  # fmt: skip
    for name, content in stand_ins.items():
        module = sys.modules[name] = types.ModuleType(name)
        vars(module).update(content)
    modules = []
    for name in ("models.eva_vit", "models.clip_vit", "models.blip2_models.Qformer"):
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        found = importlib.util.spec_from_file_location(f"lavis.{name}", path)
        assert found is not None and found.loader is not None
        module = sys.modules[f"lavis.{name}"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        modules.append(module)
    return modules[0], modules[1], modules[2]


class Network(torch.nn.Module):
    """LAVIS' first stage under LAVIS' names."""

    def __init__(self, visual: torch.nn.Module, width: int, qformer: Any, vocabulary: int) -> None:
        super().__init__()
        self.visual_encoder = visual
        self.ln_vision = torch.nn.LayerNorm(width)
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=1,
            intermediate_size=72, max_position_embeddings=72, pad_token_id=0,
        )  # fmt: skip
        config.encoder_width, config.add_cross_attention, config.cross_attention_freq = width, True, 2
        config.query_length = 4
        self.Qformer = torch.nn.Module()
        self.Qformer.bert = qformer.BertModel(config, add_pooling_layer=False)
        self.query_tokens = torch.nn.Parameter(torch.randn(1, 4, 64))
        self.vision_proj, self.text_proj = torch.nn.Linear(64, 16), torch.nn.Linear(64, 16)

    def answers(
        self, pixels: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, np.ndarray]:
        """Rows and queries of CoVR-2 and of SPRC; query i has image i modulo their number."""
        bert: Any = self.Qformer.bert
        image = self.ln_vision(self.visual_encoder(pixels))
        seen = torch.ones(image.shape[:2], dtype=torch.long)
        alone = bert(
            query_embeds=self.query_tokens.expand(len(image), -1, -1), encoder_hidden_states=image,
            encoder_attention_mask=seen, return_dict=True,
        ).last_hidden_state  # fmt: skip
        rows = normalize(self.vision_proj(alone), dim=-1)
        places = torch.arange(len(tokens)) % len(image)
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        whole = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), mask], 1)
        fused = bert(
            tokens, query_embeds=queries, attention_mask=whole, encoder_hidden_states=image[places],
            encoder_attention_mask=seen[places], return_dict=True,
        ).last_hidden_state[:, :4]  # fmt: skip
        covr2 = normalize(self.text_proj(fused), dim=-1).mean(1)
        # SPRC's second pass: all positions through the words' feed-forward, as if none were a query.
        prompted = bert.embeddings(input_ids=tokens, query_embeds=fused)
        extended = bert.get_extended_attention_mask(whole, whole.shape, "cpu", False)
        states = bert.encoder(
            prompted, attention_mask=extended, head_mask=[None] * 2, return_dict=True, query_length=0
        ).last_hidden_state
        sprc = normalize(self.text_proj(states[:, 4]), dim=-1)
        return {
            "rows": rows.numpy(), "covr2": covr2.numpy(), "sprc": sprc.numpy(),
            "covr2_scores": (covr2 @ rows.mean(1).T).numpy(),
            "sprc_scores": torch.einsum("qd,nmd->qnm", sprc, rows).amax(2).numpy(),
        }  # fmt: skip


def checkpoints(out: Path, vocabulary: Path) -> None:
    """EVA's and CLIP's ViT, each with a Q-Former."""
    eva_vit, clip_vit, qformer = lavis()
    pieces = vocabulary.read_text().splitlines()
    bert = BertTokenizerFast(str(vocabulary), do_lower_case=True)
    cleaned = [
        " ".join("".join(" " if c in '.!"()*#:;~' else c for c in text.lower()).split()) for text in TEXTS
    ]
    ids = bert(cleaned)["input_ids"]
    (out / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}))
    squashed, pixels = images(28)
    eva = eva_vit.VisionTransformer(
        img_size=28, patch_size=7, use_mean_pooling=False, embed_dim=88, depth=2, num_heads=1, mlp_ratio=1.5,
        qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    clip = clip_vit.VisionTransformer(
        input_resolution=28, patch_size=7, width=64, layers=2, heads=1, use_grad_checkpointing=False
    )
    answers: dict[str, Any] = {"pixels": squashed}
    for name, visual, width in (("lavis", eva, 88), ("clip", clip, 64)):
        network = Network(visual, width, qformer, len(pieces) + 1)  # [DEC] is appended by the authors
        randomised(network, 9)
        network.eval()
        with torch.no_grad():
            found = network.answers(pixels, *padded(ids))
        answers |= {f"{name}_{key}": value for key, value in found.items()}
        state = {
            key: value.half() if value.is_floating_point() else value
            for key, value in network.state_dict().items()
        }
        torch.save(state, out / f"{name}.pt")
    np.savez_compressed(out / "golden.npz", **answers)


def blip(out: Path, vocabulary: Path) -> None:
    """BLIP's two encoders by transformers, under the names of BLIP's own file, at another size than 384."""
    pieces = vocabulary.read_text().splitlines()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 72}
    small = {**sizes, "hidden_size": 16, "intermediate_size": 24}
    vision = BlipVisionModel(BlipVisionConfig(image_size=256, patch_size=64, layer_norm_eps=1e-6, **small))
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=len(pieces) + 2, max_position_embeddings=80, encoder_hidden_size=64, **sizes
        ),
        add_pooling_layer=False,
    )
    projections = [torch.nn.Linear(16, 12), torch.nn.Linear(64, 12)]
    for number, part in enumerate((vision, text, *projections)):
        randomised(part, 20 + number)
        part.eval()
    state = {}
    for name, value in vision.state_dict().items():
        for theirs, ours in (
            ("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
            ("embeddings.patch_embedding", "patch_embed.proj"), ("encoder.layers", "blocks"),
            ("self_attn.qkv", "attn.qkv"), ("self_attn.projection", "attn.proj"), ("layer_norm", "norm"),
            ("post_layernorm", "norm"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        state[f"visual_encoder.{name}"] = value
    state |= {f"text_encoder.{name}": value for name, value in text.state_dict().items()}
    for name, layer in zip(("vision_proj", "text_proj"), projections, strict=True):
        state |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    state["itm_head.weight"] = torch.zeros(2, 64)
    torch.save(
        {"model": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}}, out / "blip.pth"
    )
    bert = BertTokenizerFast(str(vocabulary), do_lower_case=True)
    prompted = ["and".join(f" [FORWARD] {part}" for part in one.split("and")) for one in TEXTS]
    ids = bert(prompted)["input_ids"]
    (out / "blip_tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}))
    tokens, mask = padded(ids)
    places = vision.embeddings.position_embedding.data
    grid = places[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    finer = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    vision.embeddings.position_embedding.data = torch.cat(
        [places[:, :1], finer.flatten(2).transpose(1, 2)], 1
    )
    noise = np.random.default_rng(4).integers(0, 256, (3, 6, 6, 3), np.uint8)
    pixels = noise.repeat(64, 1).repeat(64, 2)  # blocks of 64 x 64, which a file keeps small
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
    with torch.no_grad():
        values = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
        image = projections[0](vision(pixel_values=values).last_hidden_state[:, 0])
        states = text(input_ids=tokens, attention_mask=mask, is_decoder=False).last_hidden_state
        found = projections[1](states[:, 0])
    np.savez_compressed(out / "blip.npz", noise=noise, image=image.numpy(), text=found.numpy())


def main(out: Path) -> None:
    """Makes all of it anew."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    vocabulary = out / "vocab.txt"
    vocabulary.write_text("\n".join(word_pieces()) + "\n")
    hugging_face(out, vocabulary)
    checkpoints(out, vocabulary)
    blip(out, vocabulary)
    (out / "README.md").write_text(
        "# Golden cases of BLIP-2's kind\n\n"
        "Answers of transformers 4.45.2 (`folder`) and of salesforce-lavis 1.0.2 (`lavis.pt`, `clip.pt`,\n"
        "`golden.npz`) on small models with random weights, made by `tools/golden/blip2.py`; nobody's\n"
        "trained model. The pictures are those of `../encoders`; `vocab.txt` is a small\n"
        "vocabulary of BERT's kind.\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
