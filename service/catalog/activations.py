"""Bytes of a card that the networks of each family need besides their weights, by formulas; without torch.

All were counted on torch's meta device (2026-11-27, diffusers 0.42.1; `benchmarks.meta_memory`), and tests hold them to
it (`tests/unit/worker/test_footprint*.py`). They are lower bounds: they leave out what kernels and the allocator need
besides, and take attention to be fused. Of UNets every activation is proportional to rows, frames and pixels, so that
one figure for each released layout is enough; another layout makes it an estimate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from service.catalog.family_components import IMAGE_ENCODER, SDXL, SECOND_EXPERT, SPARSE_CONTROL, Family
from service.catalog.memory_options import MemoryOptions

TRANSFORMERS, HOST = ("transformer", SECOND_EXPERT), ("text_encoder", IMAGE_ENCODER)  # HOST: on the card to encode
BLOCKS_ON_CARD = 2  # with group_offload: one that computes, one on its way
TILE = 256  # pixels of a side; diffusers' default for Wan
# Decoders at their peak, in values per output pixel and channel of the last level.
WAN_DECODER, PICTURE_DECODER = 48.2, 6.0
COGVIDEOX_DECODER = {
    9: 134.3,
    13: 178.85,
}  # by frames: from 13 on a batch of frames follows another, which is remembered
COGVIDEOX_ROW = 24.0  # bytes per token and channel
# UNets at their peak, in values per latent pixel, frame, row of guidance, and channel of the first level.
VIDEO_UNET: dict[Family, float] = {
    "animatediff": 26.06,
    "animatediff-sdxl": 26.14,
    "modelscope": 33.08,
    "videocrafter": 33.08,
}
IMAGE_UNET = {False: 26.06, True: 15.89}  # by whether it is SDXL's
LEVELS_KEPT = 3  # of SparseCtrl's residuals, see worker.networks.sparse_control


@dataclass(frozen=True)
class Footprint(ABC):
    """Bytes of weights by component as they are on a card, and what activations depend on.

    Sizes are those that the networks see, without the entry's `upscale`.
    """

    weights: dict[str, int]

    @abstractmethod
    def resident(self, memory: MemoryOptions, /) -> int:
        """Bytes of the weights that stay on the card."""

    @abstractmethod
    def around(self, width: int, height: int, frames: int, memory: MemoryOptions, /) -> int:
        """The most of encoding the text and decoding."""

    @abstractmethod
    def sampling(self, width: int, height: int, frames: int, memory: MemoryOptions, /) -> int:
        """Activations of the call of a network that needs most."""

    def needed(self, width: int, height: int, frames: int, memory: MemoryOptions) -> int:
        """Bytes of a card for a clip: weights, and the most of encoding the text, a call of a network, and decoding."""
        clip = width, height, frames
        return self.resident(memory) + max(self.around(*clip, memory), self.sampling(*clip, memory))


@dataclass(frozen=True)
class TransformerFootprint(Footprint):
    transformer: dict[str, Any]
    vae: dict[str, Any]
    vae_itemsize: int

    @abstractmethod
    def network_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        """Activations of a call of the transformer for `halves` rows of guidance, besides its weights."""

    @abstractmethod
    def decoder_bytes(self, width: int, height: int, frames: int, *, tiled: bool) -> int:
        """Activations of decoding, and the clip itself."""

    def resident(self, memory: MemoryOptions, /) -> int:
        networks = sum(self.weights.get(name, 0) for name in TRANSFORMERS)
        if memory.group_offload:
            networks = max(self.weights["transformer"] * BLOCKS_ON_CARD // self.transformer["num_layers"], 1)
        return networks + self.weights["vae"]

    def around(self, width: int, height: int, frames: int, memory: MemoryOptions, /) -> int:
        text = max(self.weights.get(name, 0) for name in HOST)
        return max(text, self.decoder_bytes(width, height, frames, tiled=memory.tiling))

    def sampling(self, width: int, height: int, frames: int, memory: MemoryOptions, /) -> int:
        return self.network_bytes(width, height, frames, halves=1 if memory.halves_apart else 2)


@dataclass(frozen=True)
class WanFootprint(TransformerFootprint):
    def network_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        heads, head_dim = self.transformer["num_attention_heads"], self.transformer["attention_head_dim"]
        pixels = int(self.vae.get("scale_factor_spatial") or 8)
        dim, side = heads * head_dim, pixels * self.transformer["patch_size"][-1]
        tokens = (1 + (frames - 1) // 4) * (width // side) * (height // side)
        row = max(8 * dim + 4 * self.transformer["ffn_dim"], 22 * dim)  # the feed-forward layer; norm and attention
        return tokens * (halves * row + 8 * head_dim)

    def decoder_bytes(self, width: int, height: int, frames: int, *, tiled: bool) -> int:
        pixels = min(width, TILE) * min(height, TILE) if tiled else width * height
        channels = self.vae.get("decoder_base_dim") or self.vae["base_dim"]
        inside = WAN_DECODER * channels * pixels / (self.vae.get("patch_size") or 1) ** 2
        return round((inside + 2 * 3 * frames * width * height) * self.vae_itemsize)


@dataclass(frozen=True)
class CogVideoXFootprint(TransformerFootprint):
    def network_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        dim = self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]
        side = self._pixels * self.transformer["patch_size"]
        video = (1 + (frames - 1) // 4) * (width // side) * (height // side)
        tokens = video + self.transformer.get("max_text_seq_length", 226)
        return round(halves * tokens * dim * COGVIDEOX_ROW)

    def decoder_bytes(self, width: int, height: int, frames: int, *, tiled: bool) -> int:
        """Two latent frames at a time, as diffusers decodes; tiles are half of the picture that the config names."""
        whole = self.vae.get("sample_width", 720), self.vae.get("sample_height", 480)
        pixels = min(whole[0] // 2, width) * min(whole[1] // 2, height) if tiled else width * height
        per_pixel = COGVIDEOX_DECODER[13] if frames >= 13 else COGVIDEOX_DECODER[9] * min(frames, 9) / 9
        inside = per_pixel * self.vae["block_out_channels"][0] * pixels
        return round(max(inside, 2 * 3 * frames * width * height) * self.vae_itemsize)

    @property
    def _pixels(self) -> int:
        return 2 ** (len(self.vae["block_out_channels"]) - 1)


@dataclass(frozen=True)
class UNetFootprint(Footprint):
    """Of image and video UNets that take turns; all networks stay on the card. `configs` are those of the components.

    `halves_apart` is low-memory mode: one half of guidance in a call, and the image model one frame.
    """

    family: Family
    configs: dict[str, dict[str, Any]]
    itemsize: int
    vae_itemsize: int

    def video_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        """Activations of a call of the video UNet for `halves` rows of guidance."""
        values = VIDEO_UNET[self.family] * self._first_level("unet") * halves * frames
        return round(values * self._latent_pixels(width, height) * self.itemsize)

    def image_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        """Activations of a call of the image UNet for so many frames and rows of guidance."""
        name = "image_unet" if "image_unet" in self.configs else "unet"
        values = IMAGE_UNET[self.family == SDXL] * self._first_level(name) * halves * frames
        return round(values * self._latent_pixels(width, height) * self.itemsize)

    def residual_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        """What one call of the SparseCtrl network adds to the skip connections; 0 without one."""
        control = self.configs.get(SPARSE_CONTROL)
        if control is None:
            return 0
        channels, layers = control["block_out_channels"], control.get("layers_per_block", 2)
        last = len(channels) - 1
        values = channels[0] + channels[-1] / 4**last  # of the first layer and of the middle block
        for level, width_of in enumerate(channels):
            values += width_of * (layers / 4**level + (1 / 4 ** (level + 1) if level < last else 0))
        return round(values * halves * frames * self._latent_pixels(width, height) * self.itemsize)

    def decoder_bytes(self, width: int, height: int, frames: int) -> int:
        """Activations of decoding one frame, as many as the worker decodes where memory is short, and the clip."""
        channels = self.configs["vae"]["block_out_channels"][0]
        return round(width * height * (PICTURE_DECODER * channels * self.vae_itemsize + 3 * frames))

    def resident(self, _memory: MemoryOptions, /) -> int:
        return sum(self.weights.values())

    def around(self, width: int, height: int, frames: int, _memory: MemoryOptions, /) -> int:
        return self.decoder_bytes(width, height, frames)

    def sampling(self, width: int, height: int, frames: int, memory: MemoryOptions, /) -> int:
        """With a kept first frame, if the model can keep one; in low-memory mode as of a clip without it."""
        clip, low = (width, height, frames), memory.halves_apart
        halves = 1 if low else 2
        video = self.video_bytes(*clip, halves=halves)
        image = self.image_bytes(width, height, 1 if low else frames, halves=halves)
        return max(video, image) + (0 if low else LEVELS_KEPT * self.residual_bytes(*clip, halves=halves))

    def _first_level(self, name: str) -> int:
        return int(self.configs[name].get("block_out_channels", (320,))[0])

    def _latent_pixels(self, width: int, height: int) -> int:
        side = 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)
        return (width // side) * (height // side)
