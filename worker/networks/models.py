"""A model by name -> networks that encode, denoise and decode: what a worker keeps, and what a researcher starts from.

Families differ in the video model (a 2D UNet with motion modules, a 3D UNet, a 3D UNet that is told the frame rate);
component names and what may be left out are in `service/catalog/model_entry.py`.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import copy
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from sampler import ImageDenoiser, NoiseSchedule, VideoDenoiser
from service.catalog.model_entry import LORA, ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from service.jobs.model import Generation
from service.settings import load_settings
from worker.networks import cpu_tuning as cpu
from worker.networks.components import Network, check_files, fuse_lora, network, schedule, text_reader
from worker.networks.optimise import Compiler, OptimisedNetwork, TextKeys, decode
from worker.networks.optimise.weights import resident_bytes, shared_bytes
from worker.networks.text_encoder import Embeddings, TextReader

from diffusers import UNetMotionModel  # isort: skip  # after worker.networks.components has said that nothing is to be fetched

log = logging.getLogger("ivmix.child")

# Latent pixels of a frame up to which attention by two matrix products is twice as fast as the CPU's flash kernel
# (measured 2026-11, demo pair); at 64x64 it is many times slower and takes gigabytes.
SHORT = 24 * 24


class IncompatibleModels(ConfigurationError):
    """Image model, video model, autoencoder and text encoders that cannot work together."""


@dataclass(frozen=True)
class Models:
    """Built once, used for every clip. The two text readers are one object where both models read the same."""

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    image_text: TextReader
    video_text: TextReader
    vae: Network
    image_unet: Network
    video_unet: Network
    image_schedule: NoiseSchedule
    video_schedule: NoiseSchedule
    image_calls: Network  # the same networks as the sampler calls them: with the entry's short cuts
    video_calls: Network
    text_keys: TextKeys = field(default_factory=TextKeys)

    def latents_shape(self, generation: Generation | None = None) -> tuple[int, int, int, int, int]:
        """(1, C, F, h, w) of the clip that a generation asks for; None: of the model's default size and length."""
        entry = self.entry
        width, height = map(int, entry.sizes[0].split("x"))
        frames = int(entry.num_frames.default)
        if generation is not None:
            width, height, frames = generation.width, generation.height, generation.num_frames
        scale = self.latents_scale
        return 1, int(self.vae.config.latent_channels), frames, height // scale, width // scale

    @property
    def largest_latents(self) -> int:
        """Latent pixels of one frame of the model's largest size."""
        scale = self.latents_scale
        sides = (map(int, size.split("x")) for size in self.entry.sizes)
        return max((width // scale) * (height // scale) for width, height in sides)

    @property
    def latents_scale(self) -> int:
        """Picture pixels to one latent pixel, along a side."""
        return self.entry.upscale * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, texts: str | Sequence[str]) -> Embeddings:
        """Raises PromptTooLong before anything is computed."""
        texts = [texts] if isinstance(texts, str) else texts
        ids = {id(reader): reader.token_ids(texts) for reader in (self.image_text, self.video_text)}
        video = self.video_text.encode(ids[id(self.video_text)]).to(self.dtype)
        if self.image_text is self.video_text:
            return Embeddings(video, video)
        return Embeddings(self.image_text.encode(ids[id(self.image_text)]).to(self.dtype), video)

    def denoisers(
        self, prompt: str | Embeddings, negative: str | Embeddings = "", *, fps: int | None = None
    ) -> tuple[ImageDenoiser, VideoDenoiser]:
        """`fps` is for a video model that is told the frame rate and has none of its own; None: the model's default."""
        self.text_keys.forget()
        cond, uncond = (text if isinstance(text, Embeddings) else self.encode(text) for text in (prompt, negative))
        return (
            ImageDenoiser(
                self.image_calls, cond.image, uncond.image, prediction_type=self.image_schedule.prediction_type
            ),
            VideoDenoiser(
                self.video_calls,
                cond.video,
                uncond.video,
                prediction_type=self.video_schedule.prediction_type,
                network_args=self._network_args(fps),
            ),
        )

    def decode(self, latents: Tensor, at_once: int | None = None) -> Tensor:
        """Latents (1, C, F, h, w) -> frames (F, H, W, 3) uint8 on the CPU, enlarged by the entry's whole factor."""
        return decode.decode(self.vae, latents, upscale=self.entry.upscale, at_once=at_once)

    @property
    def weights_bytes(self) -> int:
        """What the networks hold in memory; weights that two of them share count once."""
        encoders = (self.image_text.encoder, self.video_text.encoder)
        return resident_bytes(self.image_unet, self.video_unet, self.vae, *encoders)

    def _network_args(self, fps: int | None) -> dict[str, Any]:
        if self.entry.family != "videocrafter":
            return {}
        return {"fps": self.entry.network_fps or fps or int(self.entry.fps.default)}


def load(model: ModelEntry | str, device: torch.device | str | None = None) -> Models:
    """A model, by its entry or by its name in the registry; on the GPU if there is one.

    Raises ConfigurationError naming what is missing, unsafe, changed since it was fetched, or does not fit.
    """
    entry = model if isinstance(model, ModelEntry) else ModelRegistry.of(load_settings()).get(model)
    device = default_device() if device is None else torch.device(device)
    dtype = getattr(torch, entry.dtype) if device.type == "cuda" else torch.float32
    check_files(entry)
    image_unet, video_unet = unets(entry, dtype)
    video_text = text_reader(entry, "", dtype)
    image_text = text_reader(entry, "image_", dtype) if "image_text_encoder" in entry.parts else video_text
    scheduler = entry.parts["scheduler"]
    models = Models(
        entry=entry,
        device=device,
        dtype=dtype,
        image_text=image_text,
        video_text=video_text,
        vae=network(entry, "vae", dtype),
        image_unet=image_unet,
        video_unet=video_unet,
        image_schedule=schedule(entry.parts.get("image_scheduler", scheduler), entry.image_schedule, entry.spacing),
        video_schedule=schedule(scheduler, entry.video_schedule, entry.spacing),
        image_calls=image_unet,
        video_calls=video_unet,
    )
    _check_fit(models)
    for module in (video_text.encoder, image_text.encoder, models.vae, image_unet, video_unet):
        module.to(device)
    if device.type == "cpu" and models.largest_latents <= SHORT:
        for unet in (image_unet, video_unet):
            cpu.prepare(unet)
    decode.prepare(models.vae)
    log.info(
        "weights of %s on %s: %.0f MB, of which both networks share %.0f MB",
        entry.id,
        device,
        models.weights_bytes / 1e6,
        shared_bytes(image_unet, video_unet) / 1e6,
    )
    return _with_short_cuts(models)


def _with_short_cuts(models: Models) -> Models:
    optimise, keys = models.entry.optimise, models.text_keys
    compiler = Compiler(cache=load_settings().data_dir / "compiled") if optimise.compile else None
    return replace(
        models,
        image_calls=OptimisedNetwork(models.image_unet, optimise, keys, compiler),
        video_calls=OptimisedNetwork(models.video_unet, optimise, keys, compiler),
    )


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unets(entry: ModelEntry, dtype: torch.dtype) -> tuple[Network, Network]:
    """(image model, video model), on the CPU."""
    base, video = None, network(entry, "unet", dtype)
    if entry.family == "animatediff":
        base, video = _with_motion(video, network(entry, "motion_adapter", dtype), entry)
    image = network(entry, "image_unet", dtype) if "image_unet" in entry.parts else base
    if lora := entry.parts.get(LORA):
        image = copy.deepcopy(image) if image is base else image  # the video model keeps the base as it is
        fuse_lora(image, lora, entry.lora_scale)
    return image, video


def _with_motion(base: Network, adapter: Network, entry: ModelEntry) -> tuple[Network, Network]:
    """The base and, around the very same weights, the video model: one copy in memory."""
    longest = int(adapter.config.motion_max_seq_length)
    if entry.num_frames.max > longest:
        raise IncompatibleModels(
            f"model {entry.id}: num_frames.max={entry.num_frames.max}, the motion adapter was made for {longest}"
        )
    try:
        with _quiet("diffusers"):  # it advises a setting of from_pretrained, which is not how a motion UNet is made
            video = cast("Any", UNetMotionModel.from_unet2d(base, adapter))
    except RuntimeError as e:
        raise IncompatibleModels(f"model {entry.id}: the motion adapter does not fit the UNet: {e}") from e
    video.eval().requires_grad_(False)
    inside = video.state_dict(keep_vars=True)
    base.load_state_dict({name: inside[name] for name in base.state_dict()}, assign=True)
    return base, video


def _check_fit(models: Models) -> None:
    image, video, channels = models.image_unet.config, models.video_unet.config, int(models.vae.config.latent_channels)
    widths = {
        "image model": (image.cross_attention_dim, models.image_text.width),
        "video model": (video.cross_attention_dim, models.video_text.width),
    }
    for name, config in (("image model", image), ("video model", video)):
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise IncompatibleModels(
                f"model {models.entry.id}: the {name} takes {config.in_channels} latent channels and returns "
                f"{config.out_channels}, the autoencoder has {channels}; all three must share one latent space"
            )
    for name, (expected, width) in widths.items():
        if expected != width:
            raise IncompatibleModels(
                f"model {models.entry.id}: the {name} reads embeddings {expected} wide, its text encoder gives "
                f"{width}; name its own tokenizer and text encoder (image_tokenizer, image_text_encoder for the image "
                "model)"
            )


@contextmanager
def _quiet(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
