"""A model of your own as a bundle: any torch module with two methods, verified against PyTorch.

    python examples/bring_your_own.py mine.cir                                # with fresh weights
    python examples/bring_your_own.py mine.cir --query dress.jpg "is red"     # and compared with itself

Needs `pip install "cir-infer[export]"`. The command for this is `cir-export my_module:Model --weights w.pt`.
"""

import argparse

import torch
from torch import nn

from cir_export.bring_your_own import load_module
from cir_export.export import export_bundle
from cir_export.models.encoders.image import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from cir_export.models.encoders.recurrent import Recurrent
from cir_export.preprocessing import padded_crop
from cir_export.samples import draw_samples
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts


class Additive(nn.Module):
    """The image's embedding plus the text's."""

    image = padded_crop(64, 72)  # how pictures are cut: as in a bundle's manifest
    tokenizer = build_tokenizer(vocabulary_from_texts(["is red", "has long sleeves", "make it a blue ring"]))

    def __init__(self) -> None:
        super().__init__()
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64))
        self.words = nn.Embedding(self.tokenizer.get_vocab_size(), 32)
        self.rnn = Recurrent("gru", 32, 64)

    def encode_gallery(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, H, W, 3) -> (n, D), a gallery's rows."""
        return self.trunk(self.normalize(images))

    def encode_query(self, images: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """-> (n, D), compared with the rows by cosine."""
        return self.encode_gallery(images) + self.rnn(self.words(tokens), lengths)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--query", nargs=2, metavar=("IMAGE", "TEXT"))
    args = parser.parse_args()
    trained = load_module("__main__:Additive")
    report = export_bundle(trained, args.bundle, draw_samples(trained.image, trained.text, trained.tokenizer))
    for check in report.checks:
        print(f"{check.what}: differs by {check.difference:.1e}, at most {check.limit:.0e}")
    if args.query:
        from cir_infer import Engine, Gallery, Searcher

        engine = Engine(args.bundle)
        gallery = Gallery.create(args.bundle + ".gallery", engine)
        gallery.add([args.query[0]], ids=["the reference itself"])
        print(Searcher(engine, gallery).query(*args.query, k=1))
