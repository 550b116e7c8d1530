"""CLIP's two towers (Radford et al., ICML 2021): ModifiedResNet or ViT for images, a transformer for texts.

Parameter names are OpenAI's, so that their weights, open_clip's and CLIP4Cir's load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cir_export.models.base import InParts
from cir_export.models.encoders.image import PixelNormalization
from cir_export.models.encoders.pair import ImageTower, Pair
from cir_export.models.encoders.transformer import (
    ACTIVATIONS,
    Transformer,
    attend,
    attended,
    brought,
    in_heads,
)
from cir_export.models.encoders.vit import class_token_in_parts
from cir_infer.errors import UsageError, shown

__all__ = ["CLIP_MEAN", "CLIP_STD", "Clip", "ClipSettings"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipSettings:
    """Sizes of both towers.

    Attributes:
        embed_dim: of both embeddings.
        image_size: height and width of the input in pixels.
        vision_layers: blocks of each of the ResNet's four stages, or one number: layers of a ViT.
        vision_width: of the image tower.
        vision_heads: of the ResNet's attention pooling, or of the ViT.
        patch_size: of a ViT; 0 for a ResNet.
        context_length: longest text in tokens.
        vocabulary_size: tokens.
        text_width: of the text tower.
        text_heads: of the text tower.
        text_layers: of the text tower.
        activation: "quick_gelu" (OpenAI's weights), "gelu" (most of open_clip's) or "gelu_tanh".
        vision_mlp: width inside a ViT's perceptrons; 0 stands for 4 times the tower's.
        text_mlp: the same of the text tower.
        norm_eps: of the norms.
        mean: of the channels, in 0..1.
        std: their standard deviation, in 0..1.
    """

    embed_dim: int
    image_size: int
    vision_layers: tuple[int, ...]
    vision_width: int
    vision_heads: int
    patch_size: int
    context_length: int
    vocabulary_size: int
    text_width: int
    text_heads: int
    text_layers: int
    activation: str = "quick_gelu"
    vision_mlp: int = 0
    text_mlp: int = 0
    norm_eps: float = 1e-5
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


class _Bottleneck(nn.Module):
    """A ResNet-D bottleneck: strides are average pooling, in the shortcut too."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inputs, 4 * width, 1, bias=False)),
                        ("1", nn.BatchNorm2d(4 * width)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.avgpool(self.relu(self.bn2(self.conv2(y))))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))  # type: ignore[no-any-return]


class _AttentionPool(nn.Module):
    """Attention of the mean over positions over all positions and itself."""

    def __init__(self, side: int, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        pooled = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(pooled.squeeze(1))  # type: ignore[no-any-return]

    def in_parts(self, maps: Tensor) -> InParts:
        """The embedding as the sum of what the positions of a map (n, C, h, w) bring.

        The mean is one more position that is looked at: what it brings is the mean of what all bring to it.
        """
        n, _, high, wide = maps.shape
        positions = maps.flatten(2).transpose(1, 2)
        x = torch.cat([positions.mean(1, keepdim=True), positions], 1) + self.positional_embedding
        pooled, weights = attended(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        rows: Tensor = self.c_proj(pooled.squeeze(1))
        value = self.v_proj.weight.T
        of_mean = weights[:, :, 0, :1, None] * in_heads(positions @ value, self.heads) / (high * wide)
        taken = brought(weights, x @ value)[:, 1:] + of_mean.transpose(1, 2).flatten(2)
        parts = taken @ self.c_proj.weight.T
        # What is left: the mean's place in the positional embedding, and the biases, which attention hands on
        # whole, since its weights add up to 1.
        place = in_heads(self.positional_embedding[None, :1] @ value, self.heads)
        left = (weights[:, :, 0, :1, None] * place).transpose(1, 2).flatten(1)
        return InParts(rows, parts.view(n, high, wide, -1), self.c_proj(left + self.v_proj.bias))


class _ModifiedResNet(ImageTower):
    """CLIP's ResNet: a stem of three convolutions, ResNet-D bottlenecks, attention pooling."""

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__()
        width = settings.vision_width
        self.conv1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        inputs = width
        stages = []
        for index, depth in enumerate(settings.vision_layers):
            blocks = []
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                blocks.append(_Bottleneck(inputs, width * 2**index, stride))
                inputs = 4 * width * 2**index
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = _AttentionPool(
            settings.image_size // 32, inputs, settings.vision_heads, settings.embed_dim
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attnpool(self._maps(x))  # type: ignore[no-any-return]

    def _maps(self, x: Tensor) -> Tensor:
        """The last map, (n, C, h, w)."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.relu(norm(conv(x)))
        last: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))
        return last

    def in_parts(self, x: Tensor) -> InParts:
        """The embedding as a sum over the positions of the last map."""
        return self.attnpool.in_parts(self._maps(x))


class _VisionTransformer(ImageTower):
    """CLIP's ViT: the class token's last state, projected."""

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__()
        width, patches = settings.vision_width, (settings.image_size // settings.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, settings.patch_size, settings.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, settings.norm_eps)
        self.transformer = Transformer(
            width,
            settings.vision_layers[0],
            settings.vision_heads,
            settings.activation,
            settings.vision_mlp,
            settings.norm_eps,
        )
        self.ln_post = nn.LayerNorm(width, settings.norm_eps)
        self.proj = nn.Parameter(torch.randn(width, settings.embed_dim) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transformer(self.ln_pre(self._tokens(x)))
        return self.ln_post(x[:, 0]) @ self.proj  # type: ignore[no-any-return]

    def _tokens(self, x: Tensor) -> Tensor:
        """The class token and the patches with their places, (n, T, W)."""
        x = self.conv1(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding

    def in_parts(self, x: Tensor) -> InParts:
        """See `class_token_in_parts`."""
        tokens = self.ln_pre(self._tokens(x))
        return class_token_in_parts(
            tokens, self.transformer, self.ln_post, lambda state: state @ self.proj, self.proj
        )


class Clip(Pair):
    """Both towers, without normalisation of the embeddings."""

    family = "clip"

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__(settings.embed_dim, settings.image_size)
        _check(settings)
        self.settings = settings
        self.normalize = PixelNormalization(settings.mean, settings.std)
        self.visual = _VisionTransformer(settings) if settings.patch_size else _ModifiedResNet(settings)
        width = settings.text_width
        self.transformer = Transformer(
            width,
            settings.text_layers,
            settings.text_heads,
            settings.activation,
            settings.text_mlp,
            settings.norm_eps,
        )
        self.token_embedding = nn.Embedding(settings.vocabulary_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(settings.context_length, width) * 0.01)
        self.ln_final = nn.LayerNorm(width, settings.norm_eps)
        self.text_projection = nn.Parameter(torch.randn(width, settings.embed_dim) * width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_text(self, tokens: Tensor, lengths: Tensor, unseen: int | None = None) -> Tensor:
        """Tokens (n, T), T up to the context, to float (n, D): the feature at each text's last token.

        Args:
            tokens: int (n, T).
            lengths: int (n,).
            unseen: a token that none looks at, for models whose authors mask it wherever it stands.
        """
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        # Indexed, not sliced, so that an exported graph sets no bound to the length.
        x = self.token_embedding(tokens) + self.positional_embedding[steps]
        x = self.text_states(x, None if unseen is None else tokens == unseen)
        last = (lengths.to(x.device).long() - 1)[:, None, None].expand(-1, 1, x.shape[2])
        return x.gather(1, last).squeeze(1) @ self.text_projection

    def text_states(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The text tower on words with their places (n, T, W): states (n, T, W), each of those before it.

        Args:
            x: float (n, T, W).
            hidden: bool (n, T), words that none looks at; None for no such.
        """
        steps = torch.arange(x.shape[1], device=x.device)
        # -1e9 and not -inf: the softmax is the same, and no kernel has to handle infinities.
        unseen = steps[None, :] > steps[:, None]
        if hidden is not None:
            unseen = (unseen | hidden[:, None])[:, None]
        return self.ln_final(self.transformer(x, unseen.to(x.dtype) * -1e9))  # type: ignore[no-any-return]


def _check(s: ClipSettings) -> None:
    sizes = (
        s.embed_dim, s.image_size, s.vision_width, s.vision_heads, s.context_length, s.vocabulary_size,
        s.text_width, s.text_heads, s.text_layers, *s.vision_layers,
    )  # fmt: skip
    if min(sizes) < 1:
        raise UsageError("clip: a size is 0; expected at least 1")
    if s.activation not in ACTIVATIONS:
        raise UsageError(
            f"clip.activation: {shown(s.activation)} is not known; expected one of {', '.join(ACTIVATIONS)}"
        )
    if len(s.vision_layers) != (1 if s.patch_size else 4):
        raise UsageError(
            f"clip.vision_layers: {s.vision_layers}; expected 1 number for a ViT, 4 for a ResNet"
        )
    if s.image_size % (s.patch_size or 32):
        raise UsageError(f"clip.image_size: {s.image_size} is not a multiple of {s.patch_size or 32}")
    pooled = s.vision_width if s.patch_size else 32 * s.vision_width
    if pooled % s.vision_heads or s.text_width % s.text_heads:
        raise UsageError("clip: a width is not a multiple of its heads")
