"""Public models that are read here: what they are good for, what they cost, under which terms they are.

The licences are those that their authors state; that of the training data is another thing than that of the
weights. Parameters and multiply-accumulates follow from the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "Preset", "preset_in", "preset_of"]


@dataclass(frozen=True)
class Preset:
    """A public model.

    Attributes:
        name: on the Hugging Face Hub.
        million: parameters of both towers.
        size: side of its images in pixels.
        patch: side of a patch.
        width: of the image tower.
        layers: of the image tower.
        mlp: width inside the image tower's perceptrons.
        row: values of a gallery row.
        weights_licence: of the weights.
        data_licence: what is known of the training data.
        good_for: one line.
    """

    name: str
    million: int
    size: int
    patch: int
    width: int
    layers: int
    mlp: int
    row: int
    weights_licence: str
    data_licence: str
    good_for: str

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the image tower for one image."""
        patches, width = (self.size // self.patch) ** 2, self.width
        tokens = patches + 1
        block = tokens * width * (4 * width + 2 * self.mlp) + 2 * tokens * tokens * width
        return float(patches * 3 * self.patch**2 * width + self.layers * block)


_MEGAPAIRS = "MegaPairs: annotations MIT, images of Recap-DataComp, CC BY 4.0"
_OPENAI = "not published (OpenAI's WIT)"
_LAION = "LAION-2B: links CC BY 4.0, images their owners'"
_WEBLI = "not published (Google's WebLI)"

PRESETS = (
    Preset(
        "BAAI/BGE-VL-base", 150, 224, 16, 768, 12, 3072, 512, "MIT", _MEGAPAIRS,
        "composed search over any photographs, zero-shot; begin here",
    ),
    Preset(
        "BAAI/BGE-VL-large", 428, 224, 14, 1024, 24, 4096, 768, "MIT", _MEGAPAIRS,
        "the same, better and 4.6 times as dear; a GPU",
    ),
    Preset(
        "openai/clip-vit-base-patch32", 151, 224, 32, 768, 12, 3072, 512, "MIT", _OPENAI,
        "search by text or by image on small processors; its sum was not trained",
    ),
    Preset(
        "openai/clip-vit-base-patch16", 150, 224, 16, 768, 12, 3072, 512, "MIT", _OPENAI,
        "the same with finer patches; the encoder of Combiners of one's own",
    ),
    Preset(
        "openai/clip-vit-large-patch14", 428, 224, 14, 1024, 24, 4096, 768, "MIT", _OPENAI,
        "search by text or by image; the encoder of Pic2Word, SEARLE and LinCIR",
    ),
    Preset(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 151, 224, 32, 768, 12, 3072, 512, "MIT", _LAION,
        "search by text or by image, trained on open data",
    ),
    Preset(
        "google/siglip-base-patch16-224", 203, 224, 16, 768, 12, 3072, 768, "Apache-2.0", _WEBLI,
        "search by text or by image, better than CLIP of its size",
    ),
    Preset(
        "google/siglip2-base-patch16-224", 375, 224, 16, 768, 12, 3072, 768, "Apache-2.0", _WEBLI,
        "the same in many languages",
    ),
    Preset(
        "google/siglip2-so400m-patch14-384", 1136, 384, 14, 1152, 27, 4304, 1152, "Apache-2.0", _WEBLI,
        "the best of them by text; a GPU",
    ),
)  # fmt: skip
"""Those that users ask for first come first."""


def preset_of(name: str) -> Preset | None:
    """The preset of that name on the Hub, whatever its case; None where there is none."""
    return next((preset for preset in PRESETS if preset.name.lower() == name.lower()), None)


def preset_in(folder: str) -> Preset | None:
    """The preset that is usually downloaded into a folder of that name; None where there is none."""
    return next((preset for preset in PRESETS if preset.name.lower().endswith(f"/{folder.lower()}")), None)
