"""The networks of one model whose video model is a transformer: encodes, denoises and decodes with them."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sampler import ImageDenoiser, IncompatibleInputs, VideoDenoiser
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation
from worker.networks.lora_switch import LoraNotUsable
from worker.networks.network_classes import Network
from worker.networks.optimise.weight_memory import resident_bytes
from worker.networks.schedules import AnySchedule
from worker.networks.text_encoder import TextEmbeddings, TextOptions
from worker.networks.video_transformers.clip_vision import ClipVision
from worker.networks.video_transformers.first_frame import ChannelCondition, Condition, TokenCondition
from worker.networks.video_transformers.network import VideoTransformer
from worker.networks.video_transformers.text import T5Reader
from worker.networks.video_transformers.vae import TemporalVae


class NoLoras:
    """In place of a `LoraSwitch`: these families take no LoRAs."""

    def __init__(self, entry: ModelEntry) -> None:
        self._entry = entry

    def use(self, loras: Sequence[LoraUse]) -> None:
        """Raises LoraNotUsable if there are any: the record of a job may be older than the registry of this worker."""
        if loras:
            raise LoraNotUsable(f"Model '{self._entry.id}' has no LoRA '{loras[0].name}' any more; it has none.")

    def digest(self, _loras: Iterable[LoraUse]) -> str:
        return ""


@dataclass(frozen=True, repr=False)
class TransformerModels:
    """The networks of one model on one device, as `load` returns them; the same interface as `Models` of the UNets.

    C is the number of latent channels, F of frames, f of latent frames: 1 + (F - 1) / 4. h, w are latent pixels.
    `transformers` are diffusers' networks for direct calls: one, or Wan 2.2's two experts.
    """

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    text: T5Reader
    autoencoder: TemporalVae
    transformers: tuple[Network, ...]
    network: VideoTransformer
    video_schedule: AnySchedule
    loras: NoLoras
    optimise: Optimise
    vision: ClipVision | None = None

    def __repr__(self) -> str:
        entry, gigabytes = self.entry, self.weights_bytes / 1e9
        return (
            f"TransformerModels({entry.id!r}, family={entry.family!r}, device={str(self.device)!r}, "
            f"dtype={self.dtype})\n"
            f"  {gigabytes:.3g} GB; sizes {', '.join(entry.sizes)}; latents {self.latents_shape()} by default"
        )

    @property
    def vae(self) -> Network:
        return self.autoencoder.network

    @property
    def image_schedule(self) -> AnySchedule:
        """That of the video model: the image model is the same network."""
        return self.video_schedule

    def latents_shape(self, generation: Generation | None = None) -> tuple[int, int, int, int, int]:
        """Shape (1, C, f, h, w) of the latents of a clip.

        Args:
            generation: the clip; None: one of the model's default size and number of frames.
        """
        width, height = map(int, self.entry.sizes[0].split("x"))
        frames = int(self.entry.num_frames.default)
        if generation is not None:
            width, height, frames = generation.width, generation.height, generation.num_frames
        scale = self.autoencoder.pixels * self.entry.upscale
        return 1, self.autoencoder.channels, self.autoencoder.latent_frames(frames), height // scale, width // scale

    def encode(self, texts: str | Sequence[str], **_others: Any) -> TextEmbeddings:
        """Encode one text or B texts: (B, tokens, dim) in the networks' dtype. Slices select texts.

        Other arguments are what CLIP's encoders have; requests that set them are refused.

        Raises:
            PromptTooLong: a text has more tokens than the model was trained with.
            NotFinite: the encoder returned NaN or infinity.
        """
        found = self.text.encode([texts] if isinstance(texts, str) else texts)
        return TextEmbeddings(found, found)

    def check_length(self, texts: Sequence[str], _options: TextOptions) -> None:
        """Raises PromptTooLong if a text has more tokens than the model was trained with."""
        self.text.check_length(texts)

    def denoisers(
        self,
        prompt: str | TextEmbeddings,
        negative: str | TextEmbeddings = "",
        *,
        first_frame: Condition | None = None,
        image_frames: Literal["all", "first"] = "all",
        **_others: Any,
    ) -> tuple[ImageDenoiser, VideoDenoiser]:
        """The network as an image model and as a video model with the texts of one job, as `sampler.sample` takes them.

        Args:
            prompt, negative: texts, or their embeddings from `encode`, of the same batch size.
            first_frame: what the video model keeps, from `first_frame`.
            image_frames: the latent frames that the image model adds to; "first" in fused plans only.

        Raises:
            PromptTooLong, NotFinite: as `encode`.
            IncompatibleInputs: embeddings of different shapes.
        """
        cond, uncond = (self.encode(text) if isinstance(text, str) else text for text in (prompt, negative))
        settings: dict[str, Any] = {"prediction_type": self.video_schedule.prediction_type}
        image = ImageDenoiser(self.network, cond.image, uncond.image, frames=image_frames, **settings)
        kept = {} if first_frame is None else {"call": first_frame}
        video = VideoDenoiser(self.network, cond.video, uncond.video, network_args=kept, **settings)
        apart = self.entry.memory.halves_apart or self.optimise.guidance_halves == "apart"
        image.sequential_cfg = video.sequential_cfg = apart
        return image, video

    def decode(self, latents: Tensor, frames_per_call: int | None = None) -> Tensor:
        """Decode the latents of one clip to pixels, as a whole: the autoencoder is causal.

        Args:
            latents: (1, C, f, h, w), on the models' device.
            frames_per_call: any number asks for tiles, which need less memory.

        Returns:
            Frames (F, H, W, 3) uint8 on the CPU, with the entry's `upscale` applied.

        Raises:
            IncompatibleInputs: `latents` has another shape, such as a batch of two clips.
            NotFinite: the autoencoder returned NaN or infinity, in float32 too.
        """
        channels = self.autoencoder.channels
        if latents.ndim != 5 or latents.shape[:2] != (1, channels):
            raise IncompatibleInputs(
                f"latents {tuple(latents.shape)} must be (1, {channels}, F, h, w); decode one clip at a time"
            )
        return self.autoencoder.decode(latents, upscale=self.entry.upscale, tiled=frames_per_call is not None)

    def encode_frames(self, frames: Tensor, frames_per_call: int | None = None) -> Tensor:
        """Encode a clip to clean latents, the reverse of `decode` up to the autoencoder's error.

        Args:
            frames: (F, H, W, 3) uint8 at the size that the networks see, F = 4k + 1.
            frames_per_call: as in `decode`.

        Returns:
            Latents (1, C, f, h, w) float32 on the models' device.

        Raises:
            IncompatibleInputs: `frames` has another shape or type.
            NotFinite: as `decode`.
        """
        side, stride = self.autoencoder.pixels, self.autoencoder.frames
        is_rgb = frames.dtype is torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
        if not is_rgb or frames.shape[1] % side or frames.shape[2] % side or len(frames) % stride != 1:
            raise IncompatibleInputs(
                f"frames {tuple(frames.shape)} {frames.dtype} must be (F, H, W, 3) torch.uint8 with F a multiple of "
                f"{stride} and one more, and H and W multiples of {side}, the pixels of a latent pixel"
            )
        pixels = frames.to(self.device).permute(3, 0, 1, 2)[None].float().div(127.5).sub(1)
        return self.autoencoder.encode(pixels, tiled=frames_per_call is not None)

    def first_frame(self, picture: Tensor, generation: Generation, *, tiled: bool = False) -> Condition:
        """What the video model keeps: a picture (1, H, W, 3) uint8, as `encode_frames` takes it. Raises as that.

        Args:
            tiled: whether to encode in tiles, which need less memory.
        """
        if self.entry.image_conditioning == "tokens":
            return TokenCondition(self.encode_frames(picture, frames_per_call=1 if tiled else None))
        # grey, 0 where pixels are -1..1
        pixels = torch.zeros(1, 3, generation.num_frames, *picture.shape[1:3], device=self.device)
        pixels[:, :, 0] = picture[0].to(self.device).permute(2, 0, 1).float().div(127.5).sub(1)
        embeddings = None if self.vision is None else self.vision.encode(picture)
        return ChannelCondition.of(self.autoencoder.encode(pixels, tiled=tiled), self.autoencoder.frames, embeddings)

    @property
    def compresses_time(self) -> bool:
        """Whether a latent frame stands for several frames."""
        return True

    @property
    def keeps_first_frame(self) -> bool:
        """Whether the video model can keep a given first frame."""
        return self.entry.image_conditioning is not None

    @property
    def optimised_networks(self) -> tuple[VideoTransformer, ...]:
        """Those that `optimise` applies to."""
        return (self.network,)

    @property
    def digested_networks(self) -> tuple[Network, ...]:
        """In the order of fingerprints."""
        return self.networks

    @property
    def networks(self) -> tuple[Network, ...]:
        """All networks that have weights."""
        vision = () if self.vision is None else (self.vision.encoder,)
        return self.text.encoder, *vision, self.vae, *self.transformers

    @property
    def weights_bytes(self) -> int:
        """Memory of all weights in bytes, on the GPU and on the host."""
        return resident_bytes(*self.networks)
