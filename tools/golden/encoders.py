r"""Makes tests/golden/encoders: small random models of the public packages, their folders and their answers.

Run in an environment of its own, which is not that of the tests:

    python -m venv golden && golden/bin/pip install torch torchvision "transformers==4.45.2" \
        open-clip-torch sentencepiece ftfy
    golden/bin/python tools/golden/encoders.py tests/golden/encoders

Version 4 of transformers, because it resizes with Pillow as MegaPairs, SigLIP and the runtime here do;
version 5 resizes tensors with torchvision, whose pixels differ.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

IMAGES = Path(__file__).parents[2] / "tests" / "golden" / "preprocessing"
TEXTS = [
    "is red",
    "Make the background dark, as if the camera has taken the photo at night",
    "the same dress, but with long sleeves & a V-neck!",
    "un vestido más corto",
    "two dogs instead of one  (and no people)",
    "it's 3 blue cubes",
    "a",
]
CORPUS = [
    *TEXTS,
    "a photo of a dog",
    "the person wears a dark blue coat",
    "replace the cat by a black dog",
    "is longer and has no belt",
    "show the same place at night with many people and two cars",
    "more colourful, shorter sleeves",
    "abcdefghijklmnopqrstuvwxyz 0123456789",
]


def images() -> list[Image.Image]:
    """Photographs of several shapes, and one with an odd rest on both sides of the crop."""
    found = [Image.open(path) for path in sorted(IMAGES.glob("*.jpg"))]
    noise = np.random.default_rng(3).integers(0, 256, (13, 19, 3), dtype=np.uint8)
    return [*found, Image.fromarray(noise).resize((91, 67), Image.Resampling.BICUBIC)]


def save_images(folder: Path) -> list[str]:
    """What `images` gives, as PNG beside the answers."""
    names = []
    for number, image in enumerate(images()):
        small = image.convert("RGB")
        small.thumbnail((120, 120))
        small.save(folder / f"{number}.png", optimize=True)
        names.append(f"{number}.png")
    return names


def clip_tokenizer(folder: Path) -> CLIPTokenizerFast:
    """CLIP's own layout over a vocabulary of a few hundred pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    letters = sorted(alphabet)
    merged = ["".join(pair) for pair in trained["merges"]] if isinstance(trained["merges"][0], list) else [
        merge.replace(" ", "") for merge in trained["merges"]
    ]  # fmt: skip
    pieces = [*letters, *(letter + "</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({piece: i for i, piece in enumerate(dict.fromkeys(pieces))})
    )
    lines = [" ".join(m) if isinstance(m, list) else m for m in trained["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)


def answers(folder: Path, model: Any, tokens: list[list[int]], pixels: Any, whole_texts: bool) -> None:
    """Embeddings, the sum's scores, and the pixels as bytes."""
    model.eval()
    longest = max(map(len, tokens))
    padded = torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for ids in tokens])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in tokens])
    with torch.no_grad():
        image = model.get_image_features(pixel_values=torch.tensor(pixels["pixel_values"]))
        text = (
            model.get_text_features(input_ids=padded)
            if whole_texts
            else model.get_text_features(input_ids=padded, attention_mask=mask)
        )
        count = len(image)
        query = torch.nn.functional.normalize(image[torch.arange(len(text)) % count] + text, dim=-1)
        scores = query @ torch.nn.functional.normalize(image, dim=-1).T
    np.savez_compressed(
        folder / "golden.npz",
        pixels=pixels["bytes"],
        image=image.numpy(),
        text=text.numpy(),
        sum_scores=scores.numpy(),
    )
    (folder / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": tokens}, ensure_ascii=False))


def prepared(processor: Any, folder: Path, names: list[str]) -> dict[str, Any]:
    """Pixels as the tower takes them, and as bytes before they are normalised."""
    opened = [Image.open(folder / name) for name in names]
    raw = processor(opened, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    return {
        "pixel_values": processor(opened, return_tensors="np")["pixel_values"],
        "bytes": np.asarray(raw).transpose(0, 2, 3, 1).astype(np.uint8),
    }


def randomised(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every part of the network matters to the answers."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        elif "norm" not in name or name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
        weight.data = weight.data.half().float()  # half the bytes in the repository


def hugging_face_clip(out: Path, names: list[str]) -> None:
    """`CLIPModel`, in one file."""
    folder = out / "clip"
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = clip_tokenizer(Path(scratch))
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 72}
    vocabulary = len(tokenizer)
    config = CLIPConfig(
        text_config={
            "hidden_size": 32, "vocab_size": vocabulary, "max_position_embeddings": 32, "projection_dim": 24,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, **sizes,
        },
        vision_config={"hidden_size": 48, "image_size": 32, "patch_size": 8, "projection_dim": 24, **sizes},
        projection_dim=24,
    )  # fmt: skip
    model = CLIPModel(config)
    randomised(model, 1)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\nRandom weights; made by tools/golden/encoders.py.\n"
    )
    ids = tokenizer(TEXTS)["input_ids"]
    answers(folder, model, ids, prepared(processor, out, names), whole_texts=False)


def sentence_pieces(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A small SentencePiece model of T5's kind, as SigLIP's is, and its tokenizers JSON."""
    (folder / "corpus.txt").write_text("\n".join(text.lower() for text in CORPUS * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=120,
        model_type="unigram",
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, pad_piece="<pad>", minloglevel=2, hard_vocab_limit=False,
        control_symbols=["<reserved>"], normalization_rule_name="nmt_nfkc", character_coverage=1.0,
    )  # fmt: skip
    path = folder / "spiece.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=False))
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    unigram.decoder = decoders.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", processor.eos_id())]
    )
    unigram.add_special_tokens([AddedToken(token, special=True) for token in ("</s>", "<unk>")])
    return path, json.loads(unigram.to_str())


def siglip(out: Path, names: list[str]) -> None:
    """`SiglipModel`, in several parts."""
    folder = out / "siglip"
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        path, table = sentence_pieces(Path(scratch))
        slow = SiglipTokenizer(str(path), model_max_length=16)
        ids = slow(TEXTS, padding="max_length", max_length=16, truncation=True)["input_ids"]
        fits = [not slow(text)["input_ids"][16:] for text in TEXTS]
        vocabulary = len(slow)
        assert slow.convert_tokens_to_ids("</s>") == 1 == slow.pad_token_id
    assert all(fits[i] for i in (0, 3, 5, 6)), fits
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 56}
    config = SiglipConfig(
        text_config={
            "hidden_size": 32, "vocab_size": vocabulary, "max_position_embeddings": 16, "pad_token_id": 1,
            "eos_token_id": 1, "bos_token_id": None, **sizes,
        },
        vision_config={"hidden_size": 32, "image_size": 36, "patch_size": 12, **sizes},
    )  # fmt: skip
    model = SiglipModel(config)
    randomised(model, 2)
    processor = SiglipImageProcessor(size={"height": 36, "width": 36})
    # In two parts, as large models come.
    model.half().save_pretrained(folder, max_shard_size="60KB")
    model.float()
    processor.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "SiglipTokenizer",
                "pad_token": "</s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )
    answers(folder, model, ids, prepared(processor, out, names), whole_texts=True)
    said = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**said, "fits": fits}, ensure_ascii=False))


def open_clip_model(out: Path, names: list[str]) -> None:
    """open_clip's own CLIP."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    folder = out / "open_clip"
    folder.mkdir()
    tower = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**tower)
    randomised(model, 3)
    model.eval()
    preprocess = {
        "size": 32, "mode": "RGB", "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711], "interpolation": "bicubic", "resize_mode": "shortest",
        "fill_color": 0,
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": tower, "preprocess_cfg": preprocess})
    )
    state = {name: value.half() for name, value in model.state_dict().items() if "attn_mask" not in name}
    from safetensors.torch import save_file

    save_file(state, folder / "open_clip_model.safetensors")
    transform = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    opened = [Image.open(out / name) for name in names]
    pixels = torch.stack([transform(image) for image in opened])
    mean, std = (torch.tensor(preprocess[key])[:, None, None] for key in ("mean", "std"))
    tokens = open_clip.tokenize(TEXTS)
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(tokens)
        query = torch.nn.functional.normalize(image[torch.arange(len(text)) % len(image)] + text, dim=-1)
        scores = query @ torch.nn.functional.normalize(image, dim=-1).T
    np.savez_compressed(
        folder / "golden.npz",
        pixels=((pixels * std + mean) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8),
        image=image.numpy(), text=text.numpy(), sum_scores=scores.numpy(),
    )  # fmt: skip
    ids = [row[: int(row.argmax()) + 1].tolist() for row in tokens]
    (folder / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}, ensure_ascii=False))


def _spliced(word: torch.Tensor, _: Any, __: Any, vectors: torch.Tensor) -> torch.Tensor:
    """Word vectors with the picture's in the fifth place."""
    return torch.cat([vectors[:, :4], word[:, None], vectors[:, 5:]], 1)


def words(out: Path, names: list[str]) -> None:
    """Pic2Word's and SEARLE's forms of phi over open_clip's model, whose word vector a hook exchanges."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors.torch import load_file

    said = json.loads((out / "open_clip" / "open_clip_config.json").read_text())
    transform = image_transform_v2(PreprocessCfg(**said["preprocess_cfg"]), is_train=False)
    pixels = torch.stack([transform(Image.open(out / name)) for name in names])
    forms = {
        "searle": ("a photo of $ that {}", False, torch.nn.GELU(), ("layers.0", "layers.3", "layers.6")),
        "pic2word": ("a photo of * , {}", True, torch.nn.ReLU(), ("layers.0.0", "layers.1.0", "fc_out")),
    }
    for number, (form, (prompt, quick, activation, keys)) in enumerate(forms.items()):
        tower = said["model_cfg"]
        if quick:  # OpenAI's sizes: heads of 64 values
            tower["vision_cfg"]["head_width"], tower["text_cfg"]["heads"] = 64, 1
        model = open_clip.CLIP(**tower, quick_gelu=quick)
        weights = load_file(out / "open_clip" / "open_clip_model.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
        model.eval()
        layers = [torch.nn.Linear(16, 24), torch.nn.Linear(24, 24), torch.nn.Linear(24, 8)]
        phi = torch.nn.Sequential(layers[0], activation, layers[1], activation, layers[2])
        randomised(phi, 7 + number)
        tokens = open_clip.tokenize([prompt.format(text) for text in TEXTS])
        with torch.no_grad():
            image = model.encode_image(pixels)
            reference = image[torch.arange(len(TEXTS)) % len(image)]

            word = phi(reference)
            hook = model.token_embedding.register_forward_hook(partial(_spliced, word))
            query = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
            hook.remove()
        scores = query @ torch.nn.functional.normalize(image, dim=-1).T
        table: dict[str, torch.Tensor] = {}
        for key, layer in zip(keys, layers, strict=True):
            table |= {f"{key}.{part}": getattr(layer, part).data.half() for part in ("weight", "bias")}
        torch.save({{"pic2word": "state_dict_img2text", "searle": "Phi"}[form]: table}, out / f"{form}.pt")
        ids = [row[: int(row.argmax()) + 1].tolist() for row in tokens]
        found = {"image": image.numpy(), "query": query.numpy(), "scores": scores.numpy()}
        np.savez_compressed(out / f"{form}.npz", **found)
        (out / f"{form}.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}, ensure_ascii=False))


def main(out: Path) -> None:
    """Makes all of it anew."""
    for old in (*out.glob("*/"), *out.glob("*.*")):
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != "README.md":
            old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    names = save_images(out)
    hugging_face_clip(out, names)
    siglip(out, names)
    open_clip_model(out, names)
    words(out, names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
