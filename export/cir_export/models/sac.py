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

The loss is a soft triplet loss, 0.6 times a discriminator's and 0.1 times a consistency loss. A query's own
reference is none of its negatives. `form` says how it is computed:

              "stable" (ours)                                   "paper"
    triplet   log(1 + sum exp(|f_com - f+| - |f_com - f-|))     log(1 + exp(...)) of one f-, the hardest of
              over every other target of the batch              the batch and a random one in turn
    eq. 16    mean over compositions and targets together       mean over each, summed: twice as much
    eq. 17    mean squared distances to fixed features          Euclidean distances, whose gradient reaches
                                                                f_tgt and f_text as well
    f_tgt     delta * l2(f), as f_com                           f, as eq. 13 has it

From random weights the literal form learns nothing in the budget of models/systems/recall.md (three seeds:
R@1 0.0, ours 43.6), and it undoes trained ones (46.7 to 0.1; docs/systems.md). delta multiplies distances as
gamma multiplies scores, so it learns at the temperature's own rate: at the rate of the weights R@1 was 31.4
(seed 0, ours 39.6). Where the paper leaves room: all weights minimise the sum (a reversed gradient of the
discriminator made all features alike), and compositions and targets share the batch of every BatchNorm, as
they share its statistics afterwards.

Its ablations are settings: `levels`, `attention`, `discriminator`, `consistency` and `composition`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import PixelNormalization, PixelSettings, build_trunk, map_sides
from cir_export.models.encoders.pooling import GeM
from cir_export.models.encoders.recurrent import Recurrent, ShortLSTM
from cir_infer.errors import UsageError, shown

__all__ = ["Sac", "SacSettings", "SacTextSettings"]

_FORMS = ("stable", "paper")
_LEVELS = {"both": ("fine", "coarse"), "fine": ("fine",), "coarse": ("coarse",)}
_COMPOSITIONS = ("add", "multiply", "concatenate")
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
        attention_dim: channels of the queries and keys of the self-attention; 0 for those of the level, as
            in the paper.
        temperature: of the saliency's softmax, 1 or 8 in the paper.
        temperatures: one for the fine and one for the coarse level, in place of `temperature`.
        form: how the loss is computed, "stable" or "paper"; see the module's docstring.
        levels: "both", or "fine" or "coarse" alone.
        attention: whether there is a where to see; without, a reference is pooled as a target is.
        discriminator: weight of that loss; 0 leaves it out.
        consistency: weight of that loss; 0 leaves it out.
        composition: of f and Linear(F): "add" as in the paper, "multiply", or "concatenate" and map back.
    """

    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = 512
    attention_dim: int = 0
    temperature: float = 8.0
    temperatures: tuple[float, ...] = ()
    form: str = "stable"
    levels: str = "both"
    attention: bool = True
    discriminator: float = 0.6
    consistency: float = 0.1
    composition: str = "add"

    def __post_init__(self) -> None:
        for name, allowed in (("form", _FORMS), ("levels", tuple(_LEVELS)), ("composition", _COMPOSITIONS)):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"model.{name}: {shown(getattr(self, name))}; expected one of {', '.join(allowed)}"
                )
        for value in (self.temperature, *self.temperatures):
            if not value > 0:
                raise UsageError(f"model.temperature: {value}; expected above 0")
        if len(self.temperatures) not in (0, 2):
            raise UsageError(
                f"model.temperatures: {len(self.temperatures)} of them; expected two, of the fine and the "
                "coarse level"
            )
        for name in ("discriminator", "consistency"):
            if getattr(self, name) < 0:
                raise UsageError(f"model.{name}: {getattr(self, name)}; expected a weight of at least 0")

    def temperature_of(self, level: str) -> float:
        """The temperature of "fine" or "coarse"."""
        return self.temperatures[level == "coarse"] if self.temperatures else self.temperature


class _Level(nn.Module):
    """One level of the trunk: semantic feature attention, then the first layer of the modification."""

    def __init__(self, channels: int, side: int, settings: SacSettings, text_dim: int, name: str) -> None:
        super().__init__()
        self.channels = channels
        self.positions = side * side
        self.attention = settings.attention
        if settings.attention:
            width = settings.attention_dim or channels
            self.queries = nn.Conv2d(channels, width, 1)
            self.keys = nn.Conv2d(channels, width, 1)
            self.values = nn.Conv2d(channels, channels, 1)
            self.text = nn.Linear(text_dim, channels)
            self.beta = nn.Parameter(torch.tensor(0.1))
            self.gamma = nn.Parameter(torch.tensor(1.0))
        self.temperature = settings.temperature_of(name)
        self.pool = GeM()
        self.widen = nn.Sequential(
            nn.Linear(channels, settings.embedding_dim), nn.BatchNorm1d(settings.embedding_dim)
        )

    def attend(self, level: Tensor) -> Tensor:
        """Vb of a map (n, C, h, w), flattened: (n, C * h * w)."""
        if not self.attention:
            return level.flatten(1)
        queries, keys, values = (f(level).flatten(2) for f in (self.queries, self.keys, self.values))
        attention = torch.softmax((queries.transpose(1, 2) @ keys).float(), -1).to(values.dtype)
        attended: Tensor = self.beta * (values @ attention.transpose(1, 2)) + level.flatten(2)
        return attended.flatten(1)

    def of_reference(self, attended: Tensor, text: Tensor) -> Tensor:
        """O of a reference (n, C) from Vb (n, C * h * w) and F (n, H)."""
        attended = attended.view(-1, self.channels, self.positions)
        if not self.attention:
            pooled: Tensor = self.pool(attended[..., None])
            return pooled
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
            text.vocabulary_size,
            text.word_dim,
            text.hidden,
        )
        if min(sizes) < 1:
            raise UsageError("model: a size is 0; expected at least 1")
        self.normalize = PixelNormalization(image.mean, image.std)
        self.trunk = build_trunk(image)
        self.trunk_levels = 2
        if len(self.trunk.channels) < 2:
            raise UsageError("image.channels: one stage; sac reads the maps of the last two")
        self.embed = nn.Embedding(text.vocabulary_size, text.word_dim)
        self.rnn = Recurrent("gru", text.word_dim, text.hidden)
        self.settings = settings
        self.level_names = _LEVELS[settings.levels]
        for name, channels, side in zip(
            ("fine", "coarse"), self.trunk.channels[-2:], map_sides(self.trunk, image.size)[-2:], strict=True
        ):
            if name in self.level_names:
                self.add_module(name, _Level(channels, side, settings, text.hidden, name))
        self.aggregate = ShortLSTM(dim, dim)
        self.out = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, dim))
        self.offset = nn.Linear(text.hidden, dim)
        if settings.composition == "concatenate":
            self.join = nn.Linear(2 * dim, dim)
        self.delta = nn.Parameter(torch.tensor(4.0))
        if settings.discriminator:
            self.discriminator = nn.Sequential(
                nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1)
            )
        if settings.consistency:
            self.to_target = nn.Linear(dim, dim)
            self.to_text = nn.Linear(dim, dim)

    @property
    def levels(self) -> list[_Level]:
        """The levels in use, the finer first."""
        return [cast("_Level", self.get_submodule(name)) for name in self.level_names]

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = dict(zip(("fine", "coarse"), self.trunk.maps(self.normalize(images))[-2:], strict=True))
        return [maps[name] for name in self.level_names]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sac:
        """See `RetrievalModel.from_config`; keys: those of `SacSettings`."""
        return cls(parse(SacSettings, config, "model"))

    def encode_gallery(self, images: Tensor) -> Tensor:
        """See `RetrievalModel.encode_gallery`."""
        return unit(self.target_features(images).float())

    def target_features(self, images: Tensor) -> Tensor:
        """The f of a target, before l2 and delta: (n, D)."""
        return self._modify(self._target_levels(images))

    def encode_reference(self, images: Tensor) -> Tensor:
        """Every level's Vb, flattened and side by side: (n, C_1 h_1 w_1 + C_2 h_2 w_2)."""
        return torch.cat(
            [level.attend(found) for level, found in zip(self.levels, self._maps(images), strict=True)], 1
        )

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """F, the GRU's last state: (n, H)."""
        _, last = self.rnn(self.embed(tokens), lengths)
        features: Tensor = last.float()
        return features

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return Terms(unit(self.composed_features(reference, text).float())[:, None], None)

    def composed_features(self, reference: Tensor, text: Tensor) -> Tensor:
        """The query's f and Linear(F) composed, before l2 and delta: (n, D)."""
        return self._composed(self._modify(self._reference_levels(reference, text)), text)

    def _composed(self, features: Tensor, text: Tensor) -> Tensor:
        offset: Tensor = self.offset(text)
        if self.settings.composition == "add":
            return features + offset
        if self.settings.composition == "multiply":
            return features * offset
        joined: Tensor = self.join(torch.cat([features, offset], 1))
        return joined

    def _reference_levels(self, reference: Tensor, text: Tensor) -> list[Tensor]:
        levels = self.levels
        parts = torch.split(reference, [level.channels * level.positions for level in levels], 1)
        return [level.of_reference(part, text) for level, part in zip(levels, parts, strict=True)]

    def _target_levels(self, images: Tensor) -> list[Tensor]:
        return [level.of_target(found) for level, found in zip(self.levels, self._maps(images), strict=True)]

    def _modify(self, pooled: Sequence[Tensor]) -> Tensor:
        """The second half, how to change: O of the levels, (n, C_l) each, to f (n, D)."""
        steps = [level.widen(part) for level, part in zip(self.levels, pooled, strict=True)]
        features: Tensor = self.out(self.aggregate(steps))
        return features

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.trunk]

    def scales(self) -> list[nn.Parameter]:
        """See `RetrievalModel.scales`: delta is to distances what gamma is to scores."""
        return [self.logit_scale, self.delta]

    def own_loss(
        self,
        reference: Tensor,
        text: Tensor,
        targets: Tensor,
        own: Tensor | None = None,
        excluded: Tensor | None = None,
    ) -> Tensor:
        """See `RetrievalModel.own_loss`: soft triplet, discriminator and consistency, in float32."""
        pairs = zip(self._reference_levels(reference, text), self._target_levels(targets), strict=True)
        features = self._modify([torch.cat(pair) for pair in pairs])
        composed, target = self._composed(features[: len(text)], text), features[len(text) :]
        composed, target = self.delta * unit(composed.float()), target.float()
        if self.settings.form == "stable":
            target = self.delta * unit(target)
        own = torch.arange(len(text), device=text.device) if own is None else own
        loss = self._triplet(composed, target, own, excluded)
        if self.settings.discriminator:
            loss = loss + self.settings.discriminator * self._discrimination(composed, target)
        if self.settings.consistency:
            offset = self.offset(text).float()
            loss = loss + self.settings.consistency * self._consistency(composed, target[own], offset)
        return loss

    def _triplet(self, composed: Tensor, target: Tensor, own: Tensor, excluded: Tensor | None) -> Tensor:
        distances = torch.cdist(composed, target)
        nearer = distances.gather(1, own[:, None]) - distances
        negative = torch.ones_like(distances, dtype=torch.bool).scatter(1, own[:, None], False)
        if excluded is not None:
            negative &= ~excluded
        if self.settings.form == "stable":
            # exp(0) of its own target is the 1 of log(1 + ...).
            kept = negative.scatter(1, own[:, None], True)
            return torch.logsumexp(nearer.masked_fill(~kept, -torch.inf), 1).mean()
        some = negative.any(1)
        if not some.any():
            return nearer.sum() * 0.0
        if int(cast("Tensor", self.out[0].num_batches_tracked)) % 2:  # steps take turns
            chosen = distances[some].masked_fill(~negative[some], torch.inf).argmin(1, keepdim=True)
        else:
            chosen = torch.multinomial(negative[some].float(), 1)
        return functional.softplus(nearer[some].gather(1, chosen)).mean()

    def _discrimination(self, composed: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of telling targets from compositions (eq. 16)."""
        real, made = (self.discriminator(each).squeeze(1) for each in (target, composed))
        loss = functional.softplus(-real).mean() + functional.softplus(made).mean()
        return loss if self.settings.form == "paper" else loss / 2

    def _consistency(self, composed: Tensor, target: Tensor, text: Tensor) -> Tensor:
        """A composition must say what its target and its text were (eq. 17)."""
        of_target, of_text = self.to_target(composed), self.to_text(composed)
        if self.settings.form == "paper":
            with_target = torch.linalg.vector_norm(of_target - target, dim=1).mean()
            with_text = torch.linalg.vector_norm(of_text - text, dim=1).mean()
        else:
            with_target = functional.mse_loss(of_target, target.detach())
            with_text = functional.mse_loss(of_text, text.detach())
        loss: Tensor = _CONSISTENCY_WITH_TARGET * with_target + _CONSISTENCY_WITH_TEXT * with_text
        return loss
