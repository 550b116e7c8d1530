"""Small data sets in their published on-disk layouts, written with real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def shoes(root: Path) -> Path:
    names = [f"womens/boots/{i}.jpg" for i in range(6)]
    for seed, name in enumerate(names):
        picture(root / "images" / name, seed)
    write_json(root / "annotations/split.val.json", names[:4])
    triplets = [(0, "is red", 1), (2, "has longer laces", 3), (5, "are blue", 0)]
    write_json(
        root / "annotations/triplet.val.json",
        [
            {"ReferenceImageName": names[r], "RelativeCaption": text, "ImageName": names[t]}
            for r, text, t in triplets[:2]
        ],
    )
    write_json(
        root / "annotations/triplet.train.json",
        [
            {"ReferenceImageName": names[r], "RelativeCaption": text, "ImageName": names[t]}
            for r, text, t in triplets
        ],
    )
    write_json(root / "annotations/split.train.json", names[:2])
    return root


def mitstates(root: Path) -> Path:
    for number, folder in enumerate(
        ("old clock", "new clock", "wet sand", "dry sand", "ripe apple", "adj clock")
    ):
        for photo in range(2):
            picture(root / "images" / folder / f"{photo}.jpg", 10 * number + photo)
    return root


def css(root: Path) -> Path:
    content = {
        "test": {
            "mods": [
                {"from": [0, 1], "to": [2, 3], "to_str": "make red circle blue"},
                {"from": [3], "to": [0], "to_str": "remove green square"},
            ],
            "objects_img": [[{"pos": [0.5, 0.5], "shape": "circle"}]] * 4,
            "labels": np.array([7, 8, 9, 9]),
        }
    }
    for number in range(4):
        picture(root / "images" / f"css_test_{number:06d}.png", number)
    np.save(root / "css_toy_dataset_novel2_small.dup.npy", np.array(content, object), allow_pickle=True)
    return root


_BIRD_COLUMNS = """
    img1ObservationURL img1ImgURL img1Species img1Selection img2ObservationURL img2ImgURL img2Species
    img2Selection split annN description
"""


def birds(root: Path) -> Path:
    site = "https://www.inaturalist.org/photos"
    rows = [
        (101, 102, "test", 1, 'Animal 2 has a "black" hood.'),
        (101, 102, "test", 2, "Animal 2 is smaller."),
        (103, 101, "test", 1, "Animal 1 is brown."),
        (104, 105, "train", 1, "Animal 2 is red."),
    ]
    lines = ["\t".join(_BIRD_COLUMNS.split())]
    for first, second, split, number, text in rows:
        lines.append(
            "\t".join(
                (
                    f"{site}/{first}",
                    "u",
                    "s",
                    "base",
                    f"{site}/{second}",
                    "u",
                    "s",
                    "visual",
                    split,
                    str(number),
                    text,
                )
            )
        )
    (root / "birds-to-words-v1.0.tsv").write_text("\n".join(lines) + "\n")
    for photo in range(101, 106):
        picture(root / "images" / f"{photo}.jpg", photo)
    return root
