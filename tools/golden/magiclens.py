r"""Makes tests/golden/magiclens: a small random MagicLens of its authors' own modules, and their answers.

Their code is in two repositories and no package; give clones of both. In an environment of its own:

    git clone https://github.com/google-deepmind/magiclens
    git clone https://github.com/google-research/scenic
    python -m venv golden && golden/bin/pip install "jax[cpu]" flax pillow tqdm open-clip-torch
    golden/bin/python tools/golden/magiclens.py magiclens scenic tests/golden/magiclens

Of scenic only CLIP's modules are used; TensorFlow, which it would fetch weights with, is left out.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from PIL import Image

IMAGES = Path(__file__).parents[2] / "tests" / "golden" / "encoders"
SIZE = 32
TEXTS = [
    "is red and has long sleeves",
    "find a dog but with a hat",
    "it's 3 blue cubes",
    "the same place at night",
    "red!$ dress",  # whose "!" is token 0, which the authors pad with and mask
]
CLIP = {
    "embed_dim": 16, "vocab_size": 49408, "vision_num_layers": 2, "vision_features": 64,
    "vision_patch_size": 8, "text_features": 16, "text_num_heads": 2, "text_num_layers": 2,
}  # fmt: skip
HEAD = {
    "embed_dim": 16, "ff_hidden_size": 24, "num_layers": 3, "num_heads": 4, "num_query_token": 1,
    "clip_model_name": "vit_b16",
}  # fmt: skip


def authors_modules(magiclens: str, scenic: str) -> tuple[Any, Any]:
    """Their `model` with small sizes in its tables, and their `data_utils`."""
    for name in ("tensorflow", "tensorflow.io", "absl", "absl.logging"):
        sys.modules.setdefault(name, types.ModuleType(name))
    for module, name in (("tensorflow.io", "gfile"), ("absl", "logging")):
        if not hasattr(sys.modules[module], name):
            setattr(sys.modules[module], name, None)
    sys.path[:0] = [magiclens, scenic]
    model = importlib.import_module("model")
    model.MagicLensConfig["base"] = HEAD
    model.clip_model.CONFIGS["vit_b16"] = CLIP
    model.clip_model.IMAGE_RESOLUTION["vit_b16"] = SIZE
    return model, importlib.import_module("data_utils")


def clip_tokenizer() -> Any:
    """OpenAI's tokenizer from open_clip's file of it alone: the package would ask for torchvision."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("clip_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def tokens(texts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
    """Token ids as the authors pad them, int32 (n, 77), and without padding."""
    tokenizer = clip_tokenizer()
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    ids = [[start, *tokenizer.encode(text), end] for text in texts]
    padded = np.zeros((len(ids), 77), np.int32)
    for row, own in zip(padded, ids, strict=True):
        row[: len(own)] = own
    return padded, ids


def random_weights(start: Any, used: set[int]) -> Any:
    """Weights that leave nothing at its start, whose lower halves are zero so that they pack well."""
    dice = np.random.default_rng(5)

    def drawn(path: Any, value: Any) -> np.ndarray:
        shape = value.shape
        wide = max(1, shape[0] if len(shape) > 1 else 1)
        values = dice.standard_normal(shape).astype(np.float32) * (wide**-0.5 if len(shape) > 1 else 0.3)
        name = jax.tree_util.keystr(path)
        if "token_embedding" in name:
            values = dice.standard_normal(shape).astype(np.float32)
            values[[row for row in range(shape[0]) if row not in used]] = 0
        if "scale" in name and "ln_" in name and "pool" not in name:
            values += 1
        packed: np.ndarray = np.asarray(values.view(np.uint32) & 0xFFFF0000).view(np.float32).reshape(shape)
        return packed

    return jax.tree_util.tree_map_with_path(drawn, start)


def main(magiclens: str, scenic: str, out: Path) -> None:
    """Write everything below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model_module, data_utils = authors_modules(magiclens, scenic)
    model = model_module.MagicLens("base")
    padded, ids = tokens(TEXTS)
    empty, _ = tokens([""])
    assert 0 in ids[-1], "no text has token 0"
    dummy = {"ids": jnp.ones((1, 1, 77), jnp.int32), "image": jnp.ones((1, SIZE, SIZE, 3))}
    params = random_weights(model.init(jax.random.PRNGKey(0), dummy), {*padded.flat, *empty.flat})
    packed = pickle.dumps(serialization.to_bytes(params))
    with gzip.GzipFile(out / "magic_lens.pkl.gz", "wb", 9, mtime=0) as file:
        file.write(packed)

    def answers(images: Any, ids: Any) -> np.ndarray:
        found = model.apply(params, {"ids": jnp.asarray(ids), "image": jnp.asarray(images)})
        return np.asarray(found["multimodal_embed_norm"])

    def clip(images: Any, ids: Any) -> Any:
        batch = {"ids": jnp.asarray(ids), "image": jnp.asarray(images)}
        return model.apply(params, batch, method=lambda m, b: m.clip_encode(b))

    # One with no white anywhere: its maximum is not 255.
    with Image.open(IMAGES / "0.png") as opened:
        opened.convert("RGB").point(lambda value: value * 150 // 255).save(out / "dark.png", optimize=True)
    paths = [*sorted(IMAGES.glob("*.png")), out / "dark.png"]
    pixels = np.concatenate([data_utils.process_img(str(path), SIZE) for path in paths])
    noise = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    floats = noise.astype(np.float32) / 255
    order = np.arange(len(TEXTS)) % len(noise)
    rows, query = answers(floats, empty.repeat(len(noise), 0)), answers(floats[order], padded)
    image, text = clip(floats[order], padded)
    shown = np.arange(len(TEXTS)) % len(pixels)
    own_rows = answers(pixels, empty.repeat(len(pixels), 0))
    np.savez_compressed(
        out / "golden.npz",
        noise=noise, image=np.asarray(image), text=np.asarray(text), rows=rows, query=query,
        scores=query @ rows.T, pixels=pixels.astype(np.float16), own_rows=own_rows,
        own_scores=answers(pixels[shown], padded) @ own_rows.T,
    )  # fmt: skip
    (out / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}))
    (out / "README.md").write_text(
        "# Golden cases of MagicLens\n\n"
        "A small model with random weights in the layout of `magic_lens_clip_base.pkl`, and the answers of\n"
        "the modules of google-deepmind/magiclens and of scenic's CLIP (both Apache-2.0), made by\n"
        "`tools/golden/magiclens.py`; nobody's trained model. `pixels` and `own_*` are of their own\n"
        "preprocessing of the pictures of `../encoders` and of `dark.png`; the others of noise.\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: golden_magiclens.py MAGICLENS SCENIC FOLDER")
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
