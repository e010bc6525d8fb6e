"""UMT-L/16, the network of UMT-FVD and UMTScore: a video transformer, and a projection into the space of the features.

Written for inference from the weights of ChronoMagic-Bench (`UMT-msrvtt-7k.pth`), whose names and shapes it has. The
original is a training codebase, github.com/OpenGVLab/unmasked_teacher (arXiv:2303.16058).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.bert_fusion import BertFusion, BertSizes
from benchmarks.paper.errors import BenchmarkError


@dataclass(frozen=True)
class UmtSizes:
    width: int = 1024
    depth: int = 24
    heads: int = 16
    image: int = 224  # px, height and width
    patch: int = 16  # px
    frames: int = 12
    projected: int = 768  # length of a feature vector
    text: BertSizes = field(default_factory=BertSizes)


class Umt(nn.Module):
    """Names of parameters as published. Sizes are those of UMT-L/16 unless given."""

    def __init__(self, sizes: UmtSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or UmtSizes()
        self.vision_encoder = VisionEncoder(sizes)
        self.text_encoder = BertFusion(sizes.text, vision_width=sizes.width)
        self.vision_proj = nn.Linear(sizes.width, sizes.projected)
        self.text_proj = nn.Linear(sizes.text.width, sizes.projected)  # published, used in training only
        self.temp = nn.Parameter(torch.empty([]))  # as well
        self.itm_head = nn.Linear(sizes.text.width, 2)

    def features(self, clips: Tensor) -> Tensor:
        """(B, frames, 3, image, image), as `preprocessing.umt` makes them -> (B, projected), for UMT-FVD."""
        return self._projected(self.vision_encoder(clips)[1])

    def features_and_scores(self, clips: Tensor, tokens: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and the UMTScore (B,) of clips and their texts: the logit that the two match.

        Args:
            tokens: (B, L) ids of BERT's tokens, padded.
            is_token: (B, L) bool, False for padding.
        """
        patches, pooled = self.vision_encoder(clips)
        fused = self.text_encoder.fuse(self.text_encoder.encode(tokens, is_token), is_token, patches)
        return self._projected(pooled), self.itm_head(fused[:, 0])[:, 1]

    def _projected(self, pooled: Tensor) -> Tensor:
        return self.vision_proj(pooled).mean(1)


class VisionEncoder(nn.Module):
    """(B, T, 3, H, W) -> patches (B, T*P, width) and frames (B, T, width), both normalised."""

    def __init__(self, sizes: UmtSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = PatchTransformer(sizes)
        self.pool_norm = _norm(sizes.width)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        expected = (self.sizes.frames, 3, self.sizes.image, self.sizes.image)
        if clips.ndim != 5 or clips.shape[1:] != expected:
            raise BenchmarkError(f"clips must have the shape (n, {', '.join(map(str, expected))}), not {clips.shape}")
        patches = self.encoder(clips)
        return patches, self.pool_norm(patches.unflatten(1, (self.sizes.frames, -1)).mean(2))


class PatchTransformer(nn.Module):
    def __init__(self, sizes: UmtSizes) -> None:
        super().__init__()
        side = sizes.image // sizes.patch
        kernel = (1, sizes.patch, sizes.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, sizes.width, kernel, stride=kernel)})
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads) for _ in range(sizes.depth))
        self.norm = _norm(sizes.width)
        positions = sinusoids(side * side * sizes.frames, sizes.width)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, clips: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](clips.transpose(1, 2)).flatten(2).transpose(1, 2)
        patches = patches + self.positions.to(patches.dtype)
        for block in self.blocks:
            patches = block(patches)
        return self.norm(patches)


class Block(nn.Module):
    """Transformer block: normalisation before attention and before the two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = Attention(width, heads)
        self.norm2 = _norm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Attention(nn.Module):
    """Self-attention. Queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        heads = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, width / heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def sinusoids(positions: int, width: int) -> Tensor:
    """Encoding (positions, width) of positions (arXiv:1706.03762, 3.5), computed in float64 as the original does."""
    column = torch.arange(width, dtype=torch.float64, device="cpu")  # also while weights are on the meta device
    angle = torch.arange(positions, dtype=torch.float64, device="cpu")[:, None] / 10000 ** (2 * (column // 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)
