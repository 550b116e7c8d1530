"""Models of the papers' sizes with random weights: what timing needs, where no trained weights are at hand.

Latency does not depend on what weights say (they are finite and not denormal), accuracy of course does.
"""

from __future__ import annotations

import itertools
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cir_export.model_file import TrainedModel

__all__ = [
    "FASHIONIQ_WORDS",
    "full_size",
    "seeded_model",
    "vocabulary_words",
    "write_seeded_bundle",
]

FASHIONIQ_WORDS = 3775
"""Words of the public FashionIQ vocabulary, without the special tokens."""

_SPECIALS = 5


def vocabulary_words(count: int) -> list[str]:
    """Distinct made-up words of letters alone, so that every tokenizer's cleaning leaves them whole."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    return ["q" + "".join(word) for word in itertools.islice(letters, count)]


def full_size(system: str, trunk: str = "resnet50", text: str = "lstm") -> dict[str, Any]:
    """The configuration of a system in the sizes of Table 7 of the ARTEMIS paper: D = 512, 224 pixels."""
    return {
        "system": system,
        "embedding_dim": 512,
        "image": {"trunk": trunk, "size": 224, "pooling": "gem"},
        "text": {"encoder": text, "vocabulary_size": FASHIONIQ_WORDS + _SPECIALS, "word_dim": 300},
    }


def seeded_model(
    system: str = "artemis", trunk: str = "resnet50", text: str = "lstm", seed: int = 0
) -> TrainedModel:
    """A system with the sizes of Table 7 of the ARTEMIS paper (D = 512, 224 pixels) and random weights.

    Args:
        system: a name of `cir_export.models.registry.MODELS`, on pixels and words.
        trunk: "resnet18", "resnet50" or "small".
        text: "lstm" or "bigru".
        seed: of the weights.
    """
    import torch

    from cir_export.model_file import TrainedModel
    from cir_export.models import build_model
    from cir_export.preprocessing import padded_crop, word_text
    from cir_export.tokenization import build_tokenizer, vocabulary_from_texts

    vocabulary = vocabulary_from_texts(vocabulary_words(FASHIONIQ_WORDS))
    config = full_size(system, trunk, text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config).eval()
    return TrainedModel(
        model,
        build_tokenizer(vocabulary),
        padded_crop(224, 256),
        word_text(),
        {"weights": f"random, seed {seed}"},
    )


def write_seeded_bundle(
    path: Path, system: str = "artemis", trunk: str = "resnet50", text: str = "lstm", seed: int = 0
) -> Path:
    """Export `seeded_model` through the verifying exporter; returns the path."""
    from cir_export.export import export_bundle
    from cir_export.verification import draw_samples

    trained = seeded_model(system, trunk, text, seed)
    samples = draw_samples(trained.image, trained.text, trained.tokenizer)
    export_bundle(trained, path, samples)
    return path
