"""Every data set of docs/datasets.md, and a plain table, trains, is learned by heart, exports and answers."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cir_export.model_file import load_model
from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.loading import load_data
from cir_export.training.trainer import TrainingFiles, train
from tests.bench.layouts import write_json
from tests.export.systems.shared import exported

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
MODEL: dict[str, Any] = {
    "system": "artemis",
    "embedding_dim": 32,
    "image": {"trunk": "small", "size": 24, "channels": [8, 16], "pooling": "grid"},
    "text": {"encoder": "bigru", "word_dim": 12},
}


def colours(path: Path, seed: int) -> None:
    """A picture that a tiny trunk can tell from others: nine fields of random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    Image.fromarray(fields).resize((27, 24), Image.Resampling.NEAREST).save(path)


def as_training(root: Path, split: str, name: str, queries: int) -> None:
    """The golden annotations as a training split too, with so many of the queries."""
    for file in [*root.rglob(f"*{split}*")]:
        copy = file.with_name(file.name.replace(split, name))
        if queries and file.name.startswith("cap"):
            copy.write_text(json.dumps(json.loads(file.read_text())[:queries]))
        else:
            shutil.copy(file, copy)


def fashioniq(root: Path) -> Path:
    shutil.copytree(GOLDEN / "fashionIQ/annotations", root / "annotations")
    as_training(root, ".val.", ".train.", 4)
    names = {
        name
        for file in (root / "annotations/image_splits").iterdir()
        for name in json.loads(file.read_text())
    }
    for file in (root / "annotations/captions").iterdir():
        names |= {pair[key] for pair in json.loads(file.read_text()) for key in ("candidate", "target")}
    for seed, name in enumerate(sorted(names)):
        colours(root / "img" / f"{name}.jpg", seed)
    return root


def cirr_features(root: Path) -> Path:
    shutil.copytree(GOLDEN / "cirr", root, dirs_exist_ok=True)
    as_training(root, ".val.", ".train.", 10)
    return root


def cirr(root: Path) -> Path:
    for folder in ("captions", "images_splits"):
        shutil.copytree(GOLDEN / "cirr" / folder, root / folder)
    as_training(root, ".val.", ".train.", 10)
    seed = 0
    for split in ("train", "val"):
        for place in json.loads((root / f"images_splits/split.rc2.{split}.json").read_text()).values():
            colours(root / place, seed := seed + 1)
    return root


def fashion200k(root: Path) -> Path:
    shutil.copytree(GOLDEN / "fashion200k/labels", root / "labels")
    shutil.copy(GOLDEN / "fashion200k/test_queries.txt", root)
    as_training(root, "_test_", "_train_", 0)
    for seed, file in enumerate(sorted((root / "labels").iterdir())):
        for line, text in enumerate(file.read_text().splitlines()):
            colours(root / text.split("\t")[0], 100 * seed + line)
    return root


def shoes(root: Path) -> Path:
    names = [f"womens/{n}.jpg" for n in range(12)]
    for seed, name in enumerate(names):
        colours(root / "images" / name, seed)
    for split in ("train", "val"):
        write_json(root / f"annotations/split.{split}.json", names)
        write_json(
            root / f"annotations/triplet.{split}.json",
            [
                {
                    "ReferenceImageName": names[n],
                    "RelativeCaption": f"is {WORDS[n]}",
                    "ImageName": names[n + 1],
                }
                for n in range(10)
            ],
        )
    return root


def mitstates(root: Path) -> Path:
    seed = 0
    for noun in ("clock", "sand", "apple", "dog"):
        for state in ("old", "new", "wet"):
            for photo in range(2):
                colours(root / f"images/{state} {noun}/{photo}.jpg", seed := seed + 1)
    return root


def css(root: Path) -> Path:
    side = {"pos": [0.5, 0.2], "shape": "circle", "color": "red", "size": "large"}
    part = {
        "mods": [
            {"from": [2 * n], "to": [2 * n + 1], "to_str": f"make {WORDS[n]} circle blue"} for n in range(6)
        ],
        "objects_img": [[{**side, "pos": [0.3 * (n % 3) + 0.2, 0.25 * (n // 3) + 0.1]}] for n in range(12)],
        "labels": np.arange(12),
    }
    for split in ("train", "test"):
        for number in range(12):
            colours(root / "images" / f"css_{split}_{number:06d}.png", number)
    root.mkdir(exist_ok=True)
    content = np.array({"train": part, "test": part}, object)
    np.save(root / "css_toy_dataset_novel2_small.dup.npy", content, allow_pickle=True)
    return root


def birds(root: Path) -> Path:
    lines = ["img1ObservationURL\timg2ObservationURL\tsplit\tdescription"]
    for split in ("train", "val", "test"):
        lines += [f"u/{n}\tu/{n + 1}\t{split}\tAnimal 2 is {WORDS[n]}." for n in range(10)]
    root.mkdir(exist_ok=True)
    (root / "birds-to-words-v1.0.tsv").write_text("\n".join(lines) + "\n")
    for photo in range(11):
        colours(root / "images" / f"{photo}.jpg", photo)
    return root


def table(root: Path) -> Path:
    rows = [(f"{n}.png", f"{n + 1}.png", f"is {WORDS[n]}") for n in range(10)]
    for number in range(11):
        colours(root / f"{number}.png", number)
    for split in ("train", "validation", "test"):
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("reference", "target", "text"), *rows])
    return root


WORDS = ["red", "blue", "green", "longer", "shorter", "striped", "plain", "shiny", "warm", "cold"]
LAYOUTS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], dict[str, Any]]] = {
    "fashioniq": (fashioniq, {"dataset": "fashioniq"}, {}),
    "cirr-features": (
        cirr_features,
        {"dataset": "cirr"},
        {"image": {"features": 64, "normalize": True}},
    ),
    "cirr": (cirr, {"dataset": "cirr"}, {}),
    "fashion200k": (fashion200k, {"dataset": "fashion200k"}, {}),
    "shoes": (shoes, {"dataset": "shoes"}, {}),
    "mitstates": (mitstates, {"dataset": "mitstates"}, {}),
    "css": (css, {"dataset": "css"}, {}),
    "css-2d-to-3d": (css, {"dataset": "css", "protocol": "css/tirg-2d-to-3d"}, {}),
    "birds": (birds, {"dataset": "birds"}, {}),
    "table": (table, {"dataset": "table"}, {}),
}


def configuration(root: Path, data: dict[str, Any], model: dict[str, Any], **training: Any) -> TrainingConfig:
    settings = {
        "epochs": 15,
        "families_per_batch": 5,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        **training,
    }
    return TrainingConfig(DataSettings(str(root), **data), {**MODEL, **model}, TrainingSettings(**settings))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_trains_learns_by_heart_and_answers(name: str, tmp_path: Path) -> None:
    layout, data, model = LAYOUTS[name]
    root = layout(tmp_path / "data")
    entries: list[dict[str, Any]] = []
    config = configuration(root, data, model)
    end = train(config, tmp_path / "out", "cpu", report=entries.append)
    losses = [entry["loss"] for entry in entries if entry["event"] == "epoch"]
    # A drawn target differs from epoch to epoch, and several photographs are equally right; the flat drawings
    # differ in one small place.
    drawn = name in ("fashion200k", "mitstates", "css-2d-to-3d")
    assert losses[-1] < (0.75 if drawn else 0.4) * losses[0]
    assert entries[0]["train"]["data"] == data["dataset"]
    assert end["test"]["queries"] > 0
    stored = load_model(TrainingFiles(tmp_path / "out").model)
    assert stored.provenance["data"] == data["dataset"]
    queries = load_data(config).train
    first = queries.split.triplet(0, 0)
    tokens, lengths = queries.tokens([first.texts])
    images = torch.from_numpy(queries.images.take([first.reference]))
    scores = stored.model(images, tokens, lengths, images)
    assert bool(torch.isfinite(scores).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashioniq", "cirr-features"])
def test_what_was_trained_on_a_data_set_exports_and_answers(name: str, tmp_path: Path) -> None:
    """On pixels and on features; beyond that an export knows nothing of the data."""
    layout, data, model = LAYOUTS[name]
    config = configuration(layout(tmp_path / "data"), data, model, epochs=1)
    train(config, tmp_path / "out", "cpu")
    engine = exported(load_model(TrainingFiles(tmp_path / "out").model), tmp_path / "model.cir")
    split = load_data(config).train.split
    first = split.triplet(0, 0)
    seen = engine.encode_images([split.images[first.reference]])
    terms = engine.compose(seen, engine.encode_texts([list(first.texts)]))
    assert np.isfinite(terms.numerators).all()
