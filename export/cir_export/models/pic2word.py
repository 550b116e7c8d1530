"""The picture becomes a word: Pic2Word, SEARLE and LinCIR, over CLIP.

Saito et al., "Pic2Word", CVPR 2023; Baldrati et al., "Zero-shot composed image retrieval with textual
inversion" (SEARLE), ICCV 2023; Gu et al., "Language-only efficient training" (LinCIR), CVPR 2024. For the
reference's raw embedding r, a perceptron phi, and a prompt in which one word stands for the picture:

    w = phi(r)
    q = l2( CLIP's text encoder of the prompt, w in the place of that word's vector )

and the score is the cosine of q and the target's embedding. The prompt is in the tokenizer ("a photo of * ,
is red"), so the text graph gives word vectors and the end of the text, and `compose` is phi and the whole
text encoder. Rows are stored raw: a stored row can be the reference again, and refining a hit encodes no
image.

Only phi is trained (Pic2Word, sec. 3.2): from pictures without texts, by telling each picture's prompt alone,
"a photo of *", from those of the other pictures of a batch, and each picture from the other prompts,

    loss = ( CE(gamma <q_i, r_j>) + CE(gamma <r_i, q_j>) ) / 2        of unit vectors, over j

SEARLE and LinCIR train theirs otherwise, which is not imitated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cir_export.models.base import InParts, RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.clip import Clip
from cir_export.models.encoders.pairs import build_clip
from cir_infer.errors import UsageError, shown

__all__ = ["Pic2Word", "Pic2WordSettings"]


@dataclass(frozen=True)
class Pic2WordSettings:
    """Configuration.

    Attributes:
        system: its name.
        pair: the towers of a CLIP, see `build_clip`.
        hidden: widths of phi between its layers; Pic2Word's unless it is said.
        activation: of phi: "relu" (Pic2Word) or "gelu" (SEARLE, LinCIR).
        place: where in a tokenised prompt the picture's word stands, from 0; what reads the prompt knows it.
    """

    system: str
    pair: dict  # type: ignore[type-arg]
    hidden: tuple[int, ...] = (512, 512)
    activation: str = "relu"
    place: int = 0


class Pic2Word(RetrievalModel):
    """A text in which the reference is a word."""

    system: ClassVar[str] = "pic2word"
    from_towers: ClassVar[bool] = True
    trains_head: ClassVar[bool] = True
    prompt: ClassVar[tuple[str, str] | None] = ("a photo of * ,", "*")
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    weighted = True

    def __init__(self, clip: Clip, hidden: tuple[int, ...], activation: str, place: int) -> None:
        super().__init__(clip.embed_dim)
        self.pair = clip
        self.place = place
        widths = (clip.embed_dim, *hidden, clip.settings.text_width)
        self.phi = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Pic2Word:
        """See `RetrievalModel.from_config`; keys: those of `Pic2WordSettings`."""
        settings = parse(Pic2WordSettings, config, "model")
        pair = build_clip(settings.pair, "a picture becomes a word of CLIP alone")
        if settings.activation not in ("relu", "gelu"):
            raise UsageError(f"activation: {shown(settings.activation)}; expected relu or gelu")
        if not 0 < settings.place < pair.settings.context_length - 1:
            raise UsageError(f"place: {settings.place} is not inside a text of the model")
        return cls(pair, settings.hidden, settings.activation, settings.place)

    def encode_gallery(self, images: Tensor) -> Tensor:
        """CLIP's raw image features, (n, D)."""
        return self.pair.encode_image(images).float()

    def encode_gallery_in_parts(self, images: Tensor) -> InParts:
        """See `RetrievalModel.encode_gallery_in_parts`."""
        return self.pair.image_in_parts(images)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Word vectors, filled up to the context, and in one more column where it ends: (n, T, W + 1)."""
        context = self.pair.settings.context_length
        steps = torch.arange(context, device=tokens.device)
        words = self.pair.token_embedding(tokens[:, steps.clamp(max=tokens.shape[1] - 1)])
        last = lengths.to(steps.device).long()[:, None] - 1
        # Nothing stands beyond a text's end, whatever is beside it; CLIP's mask lets no text look there.
        inside, ends = ((steps <= last).to(words.dtype), (steps == last).to(words.dtype))
        return torch.cat([words * inside[..., None], ends[..., None]], 2)

    def word(self, reference: Tensor) -> Tensor:
        """phi: raw image embeddings (n, D) to word vectors (n, W)."""
        x = reference
        for layer in self.phi[:-1]:
            x = self.activation(layer(x))
        return self.phi[-1](x)  # type: ignore[no-any-return]

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """The query (n, D), of any length."""
        words, ends = text[..., :-1], text[..., -1:]
        word = self.word(reference)[:, None]
        x = torch.cat([words[:, : self.place], word, words[:, self.place + 1 :]], 1)
        x = self.pair.text_states(x + self.pair.positional_embedding)
        return (x * ends).sum(1) @ self.pair.text_projection

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        query = unit(self.compose_vector(reference, text).float())[:, None]
        return Terms(query, torch.ones_like(query))

    def loss_of_pictures(self, rows: Tensor, text: Tensor) -> Tensor:
        """See `RetrievalModel.loss_of_pictures`; of the texts it takes the prompt, with which all begin."""
        words, ends = text[0, :, :-1], text[0, :, -1]
        opening, end = words[: self.place], ends @ words
        x = torch.cat(
            [
                opening.expand(len(rows), -1, -1),
                self.word(rows)[:, None],
                end.expand(len(rows), 1, -1),
            ],
            1,
        )
        states = self.pair.text_states(x + self.pair.positional_embedding[: self.place + 2])
        query = unit((states[:, -1] @ self.pair.text_projection).float())
        scores = query @ unit(rows.float()).T * self.logit_scale.exp()
        own = torch.arange(len(rows), device=scores.device)
        both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
        return both / 2

    def trunks(self) -> list[nn.Module]:
        """All of CLIP: only phi is trained."""
        return [self.pair]
