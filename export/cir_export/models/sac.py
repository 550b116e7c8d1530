"""SAC, "where to see" and "how to change" on two levels of the trunk. No code was published.

Jandial et al., "SAC: Semantic Attention Composition for Text-Conditioned Image Retrieval", WACV 2022.

Two maps V^l of the trunk (fine and coarse) and a sentence vector F, the last state of a GRU. Per level,
with Q, K, V = 1 x 1 convolutions of V^l and T^l a linear map of F to the level's channels:

    where to see:   A = softmax(Q^T K) over positions;   Vb = beta * V A^T + V^l
                    M = softmax(< Vb at each position, T^l > / temperature);   S = sum_p M_p Vb_p
                    O = GeM(Vb) + gamma * S for a reference,   O = GeM(V^l) for a target
    how to change:  G^l = BatchNorm(Linear_l(O^l));   H = LSTM(G^1, G^2);   f = Linear(BatchNorm(H))

    f_com = delta * l2(f + Linear(F))        f_tgt = delta * l2(f)        score = cosine(f_com, f_tgt)

beta and gamma (a level each) and delta are learned. A target passes through another head than a reference,
so a gallery row cannot serve as the reference.

The loss is a soft triplet loss with hard negatives, 0.6 times a discriminator's and 0.1 times a consistency
loss. Where the paper leaves room: every target of the batch is a negative and weighs the more the harder it
is; all weights minimise the sum; the consistency is a mean squared distance; f_tgt has delta as well;
compositions and targets share the batch of every BatchNorm, as they share its statistics afterwards. From
random weights, the hardest negative alone and a reversed gradient of the discriminator each made all
features alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import PixelNormalization, PixelSettings, build_trunk
from cir_export.models.encoders.pooling import GeM
from cir_export.models.encoders.recurrent import Recurrent, ShortLSTM
from cir_infer.errors import UsageError

__all__ = ["Sac", "SacSettings", "SacTextSettings"]

_DISCRIMINATOR_WEIGHT = 0.6
_CONSISTENCY_WEIGHT = 0.1
_CONSISTENCY_WITH_TARGET = 0.1
_CONSISTENCY_WITH_TEXT = 1.0


@dataclass(frozen=True)
class SacTextSettings:
    """`text` of SAC's configuration.

    Attributes:
        vocabulary_size: V, special tokens included.
        word_dim: length of a word vector (768 in the paper).
        hidden: of the GRU (1024 in the paper).
    """

    vocabulary_size: int
    word_dim: int = 768
    hidden: int = 1024


@dataclass(frozen=True)
class SacSettings:
    """Configuration of SAC.

    Attributes:
        system: "sac".
        image: see `PixelSettings`; the last two stages are the two levels, its pooling is not read.
        text: see `SacTextSettings`.
        embedding_dim: D.
        attention_dim: channels of the queries and keys of the self-attention.
        temperature: of the saliency's softmax, 1 or 8 in the paper.
    """

    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = 512
    attention_dim: int = 64
    temperature: float = 8.0


class _Level(nn.Module):
    """One level of the trunk: semantic feature attention, then the first layer of the modification."""

    def __init__(self, channels: int, side: int, settings: SacSettings, text_dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.positions = side * side
        self.queries = nn.Conv2d(channels, settings.attention_dim, 1)
        self.keys = nn.Conv2d(channels, settings.attention_dim, 1)
        self.values = nn.Conv2d(channels, channels, 1)
        self.text = nn.Linear(text_dim, channels)
        self.beta = nn.Parameter(torch.tensor(0.1))
        self.gamma = nn.Parameter(torch.tensor(1.0))
        self.temperature = settings.temperature
        self.pool = GeM()
        self.widen = nn.Sequential(
            nn.Linear(channels, settings.embedding_dim), nn.BatchNorm1d(settings.embedding_dim)
        )

    def attend(self, level: Tensor) -> Tensor:
        """Vb of a map (n, C, h, w), flattened: (n, C * h * w)."""
        queries, keys, values = (f(level).flatten(2) for f in (self.queries, self.keys, self.values))
        attention = torch.softmax((queries.transpose(1, 2) @ keys).float(), -1).to(values.dtype)
        attended: Tensor = self.beta * (values @ attention.transpose(1, 2)) + level.flatten(2)
        return attended.flatten(1)

    def of_reference(self, attended: Tensor, text: Tensor) -> Tensor:
        """O of a reference (n, C) from Vb (n, C * h * w) and F (n, H)."""
        attended = attended.view(-1, self.channels, self.positions)
        saliency = (self.text(text)[:, None] @ attended).float() / self.temperature
        salient = (attended * torch.softmax(saliency, -1).to(attended.dtype)).sum(-1)
        out: Tensor = self.pool(attended[..., None]) + self.gamma * salient
        return out

    def of_target(self, level: Tensor) -> Tensor:
        """O of a target (n, C) from a map (n, C, h, w)."""
        out: Tensor = self.pool(level)
        return out


class Sac(RetrievalModel):
    """See the module's docstring."""

    system: ClassVar[str] = "sac"
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    reference_is_gallery_row = False

    def __init__(self, settings: SacSettings) -> None:
        super().__init__(settings.embedding_dim)
        image = parse(PixelSettings, settings.image, "image")
        text = parse(SacTextSettings, settings.text, "text")
        dim = settings.embedding_dim
        sizes = (
            settings.embedding_dim,
            settings.attention_dim,
            text.vocabulary_size,
            text.word_dim,
            text.hidden,
        )
        if min(sizes) < 1:
            raise UsageError("model: a size is 0; expected at least 1")
        if settings.temperature <= 0:
            raise UsageError(f"model.temperature: {settings.temperature}; expected above 0")
        self.normalize = PixelNormalization(image.mean, image.std)
        self.trunk = build_trunk(image)
        if len(self.trunk.channels) < 2:
            raise UsageError("image.channels: one stage; sac reads the maps of the last two")
        self.embed = nn.Embedding(text.vocabulary_size, text.word_dim)
        self.rnn = Recurrent("gru", text.word_dim, text.hidden)
        fine, coarse = self._sides(image.size)
        self.fine = _Level(self.trunk.channels[-2], fine, settings, text.hidden)
        self.coarse = _Level(self.trunk.channels[-1], coarse, settings, text.hidden)
        self.aggregate = ShortLSTM(dim, dim)
        self.out = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, dim))
        self.offset = nn.Linear(text.hidden, dim)
        self.delta = nn.Parameter(torch.tensor(4.0))
        self.discriminator = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1)
        )
        self.to_target = nn.Linear(dim, dim)
        self.to_text = nn.Linear(dim, dim)

    def _sides(self, size: int) -> tuple[int, int]:
        """The sides of the last two maps."""
        halvings = len(self.trunk.channels) + (1 if hasattr(self.trunk, "maxpool") else 0)
        for _ in range(halvings - 1):
            size = (size + 1) // 2
        return size, (size + 1) // 2

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sac:
        """See `RetrievalModel.from_config`; keys: those of `SacSettings`."""
        return cls(parse(SacSettings, config, "model"))

    def encode_gallery(self, images: Tensor) -> Tensor:
        """See `RetrievalModel.encode_gallery`."""
        return unit(self.target_features(images).float())

    def target_features(self, images: Tensor) -> Tensor:
        """The f of a target, before l2 and delta: (n, D)."""
        return self._modify(*self._target_levels(images))

    def encode_reference(self, images: Tensor) -> Tensor:
        """Both levels' Vb, flattened and side by side: (n, C_1 h_1 w_1 + C_2 h_2 w_2)."""
        fine, coarse = self.trunk.maps(self.normalize(images))[-2:]
        return torch.cat([self.fine.attend(fine), self.coarse.attend(coarse)], 1)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """F, the GRU's last state: (n, H)."""
        _, last = self.rnn(self.embed(tokens), lengths)
        features: Tensor = last.float()
        return features

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return Terms(unit(self.composed_features(reference, text).float())[:, None], None)

    def composed_features(self, reference: Tensor, text: Tensor) -> Tensor:
        """The query's f + Linear(F), before l2 and delta: (n, D)."""
        features: Tensor = self._modify(*self._reference_levels(reference, text)) + self.offset(text)
        return features

    def _reference_levels(self, reference: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        border = self.fine.channels * self.fine.positions
        fine, coarse = reference[:, :border], reference[:, border:]
        return self.fine.of_reference(fine, text), self.coarse.of_reference(coarse, text)

    def _target_levels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = self.trunk.maps(self.normalize(images))[-2:]
        return self.fine.of_target(fine), self.coarse.of_target(coarse)

    def _modify(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The second half, how to change: O of both levels, (n, C_1) and (n, C_2), to f (n, D)."""
        features: Tensor = self.out(self.aggregate([self.fine.widen(fine), self.coarse.widen(coarse)]))
        return features

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.trunk]

    def own_loss(self, reference: Tensor, text: Tensor, targets: Tensor) -> Tensor:
        """See `RetrievalModel.own_loss`: soft triplet, discriminator and consistency, in float32."""
        pairs = zip(self._reference_levels(reference, text), self._target_levels(targets), strict=True)
        features = self._modify(*(torch.cat(pair) for pair in pairs))
        composed, target = features[: len(text)] + self.offset(text), features[len(text) :]
        composed, target = (self.delta * unit(each.float()) for each in (composed, target))
        return (
            _soft_triplet(composed, target)
            + _DISCRIMINATOR_WEIGHT * self._discrimination(composed, target)
            + _CONSISTENCY_WEIGHT * self._consistency(composed, target, self.offset(text).float())
        )

    def _discrimination(self, composed: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of telling targets from compositions."""
        logits = self.discriminator(torch.cat([target, composed])).squeeze(1)
        is_target = torch.cat([torch.ones(len(target)), torch.zeros(len(composed))]).to(logits)
        return functional.binary_cross_entropy_with_logits(logits, is_target)

    def _consistency(self, composed: Tensor, target: Tensor, text: Tensor) -> Tensor:
        """A composition must say what its target and its text were."""
        with_target = functional.mse_loss(self.to_target(composed), target.detach())
        with_text = functional.mse_loss(self.to_text(composed), text.detach())
        return _CONSISTENCY_WITH_TARGET * with_target + _CONSISTENCY_WITH_TEXT * with_text


def _soft_triplet(composed: Tensor, target: Tensor) -> Tensor:
    """log(1 + sum over f- of exp(|f_com - f+| - |f_com - f-|)), f- every other target of the batch."""
    distances = torch.cdist(composed, target)
    own = torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    nearer = (distances.diagonal()[:, None] - distances).masked_fill(own, 0.0)
    return torch.logsumexp(nearer, 1).mean()
