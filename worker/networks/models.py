"""Loads the networks of one model, and encodes, denoises and decodes with them.

The families differ in the video model: a 2D UNet with motion modules, a 3D UNet, or one conditioned on the frame rate.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sampler import ImageDenoiser, IncompatibleInputs, NoiseSchedule, VideoDenoiser
from service.catalog.family_components import LORA
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.model import Generation
from service.settings import load_settings
from worker.networks import cpu_tuning
from worker.networks.component_loader import load_network, load_text_encoder
from worker.networks.lora import fuse_lora
from worker.networks.network_classes import Network, errors_only
from worker.networks.not_finite import finite
from worker.networks.optimise import BlockCompiler, OptimisedNetwork, TextKVCache, vae_decode
from worker.networks.optimise.weight_memory import channels_last, resident_bytes, shared_bytes
from worker.networks.schedules import load_schedules, schedule_warnings
from worker.networks.text_encoder import TextEmbeddings, TextEncoder
from worker.networks.vae_config import check_vae_config, vae_dtype
from worker.networks.weight_checks import check_files

from diffusers import UNetMotionModel  # isort: skip  # after network_classes, which switches the hub client offline

log = logging.getLogger("ivmix.child")

# Largest latent pixels of a frame for `cpu_tuning.tune_network`: attention as matrix products is twice as fast at this
# size (measured 2026-11, demo pair), but many times slower at 64x64, where it also takes gigabytes.
MAX_TUNED_PIXELS = 24 * 24


class IncompatibleModels(ConfigurationError):
    """Image model, video model, autoencoder and text encoders that cannot work together."""


@dataclass(frozen=True, repr=False)
class Models:
    """The networks of one model on one device, as `load` returns them; used for any number of clips.

    C is the number of latent channels, F of frames; h, w are latent pixels, H, W picture pixels. `image_unet` and
    `video_unet` are diffusers' UNets for direct calls; the `optimised` ones are the same networks as `denoisers` calls
    them. The two text encoders are one object if both UNets read the same embeddings.
    """

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    image_text_encoder: TextEncoder
    video_text_encoder: TextEncoder
    vae: Network
    image_unet: Network
    video_unet: Network
    image_schedule: NoiseSchedule
    video_schedule: NoiseSchedule
    optimised_image_unet: Network
    optimised_video_unet: Network
    text_kv_cache: TextKVCache

    def __repr__(self) -> str:
        entry, megabytes = self.entry, self.weights_bytes / 1e6
        return (
            f"Models({entry.id!r}, family={entry.family!r}, device={str(self.device)!r}, dtype={self.dtype})\n"
            f"  {megabytes:.1f} MB; sizes {', '.join(entry.sizes)}; latents {self.latents_shape()} by default"
        )

    def latents_shape(self, generation: Generation | None = None) -> tuple[int, int, int, int, int]:
        """Shape (1, C, F, h, w) of the latents of a clip.

        Args:
            generation: the clip; None: one of the model's default size and number of frames.

        Raises:
            InvalidParameter: `num_frames` is more than the video model has positions for.
        """
        width, height = map(int, self.entry.sizes[0].split("x"))
        frames = int(self.entry.num_frames.default)
        if generation is not None:
            width, height, frames = generation.width, generation.height, generation.num_frames
        most = getattr(self.video_unet.config, "motion_max_seq_length", None)
        if most is not None and frames > most:
            raise InvalidParameter(
                "num_frames", f"num_frames={frames}: the video model of '{self.entry.id}' takes at most {most} frames."
            )
        scale = _pixels_per_latent(self.entry, self.vae)
        return 1, int(self.vae.config.latent_channels), frames, height // scale, width // scale

    def encode(self, texts: str | Sequence[str]) -> TextEmbeddings:
        """Encode texts for both networks.

        Args:
            texts: one text or B texts.

        Returns:
            `image` and `video`, (B, tokens, dim) each in the networks' dtype. Slices select texts.

        Raises:
            InvalidParameter: a word is not in the vocabulary of a model with a closed one.
            PromptTooLong: a text has more tokens than an encoder takes.
            NotFinite: an encoder returned NaN or infinity.
        """
        texts = [texts] if isinstance(texts, str) else texts
        for text in texts:
            self.entry.check_vocabulary("prompt", text)
        image, video = self.image_text_encoder, self.video_text_encoder
        ids = {id(encoder): encoder.token_ids(texts) for encoder in (image, video)}
        for_video = finite(video.encode(ids[id(video)]).to(self.dtype), "text encoder (text_encoder)")
        if image is video:
            return TextEmbeddings(for_video, for_video)
        for_image = finite(image.encode(ids[id(image)]).to(self.dtype), "image model's encoder (image_text_encoder)")
        return TextEmbeddings(for_image, for_video)

    def denoisers(
        self, prompt: str | TextEmbeddings, negative: str | TextEmbeddings = "", *, fps: int | None = None
    ) -> tuple[ImageDenoiser, VideoDenoiser]:
        """Both networks with the texts of one job, as `sampler.sample` takes them.

        The denoisers of an earlier call stay usable, but compute their keys and values again.

        Args:
            prompt, negative: texts, or their embeddings from `encode`, of the same batch size.
            fps: frame rate in frames per second that conditions the network (family videocrafter only), unless the
                entry has `network_fps`; None: the model's default.

        Raises:
            InvalidParameter, PromptTooLong, NotFinite: as `encode`.
            IncompatibleInputs: embeddings of different shapes.
        """
        if isinstance(negative, str):
            self.entry.check_vocabulary("negative_prompt", negative)
        cond, uncond = (text if isinstance(text, TextEmbeddings) else self.encode(text) for text in (prompt, negative))
        self.text_kv_cache.clear()
        return (
            ImageDenoiser(
                self.optimised_image_unet,
                cond.image,
                uncond.image,
                prediction_type=self.image_schedule.prediction_type,
            ),
            VideoDenoiser(
                self.optimised_video_unet,
                cond.video,
                uncond.video,
                prediction_type=self.video_schedule.prediction_type,
                network_args=self._network_args(fps),
            ),
        )

    def decode(self, latents: Tensor, frames_per_call: int | None = None) -> Tensor:
        """Decode the latents of one clip to pixels.

        Args:
            latents: (1, C, F, h, w), on the models' device.
            frames_per_call: frames that the autoencoder decodes together; None: what fits in memory.

        Returns:
            Frames (F, H, W, 3) uint8 on the CPU, with the entry's `upscale` applied.

        Raises:
            IncompatibleInputs: `latents` has another shape, such as a batch of two clips.
            NotFinite: the autoencoder returned NaN or infinity, in float32 too.
        """
        channels = int(self.vae.config.latent_channels)
        if latents.ndim != 5 or latents.shape[:2] != (1, channels):
            raise IncompatibleInputs(
                f"latents {tuple(latents.shape)} must be (1, {channels}, F, h, w); decode one clip at a time"
            )
        return vae_decode.decode(self.vae, latents, upscale=self.entry.upscale, frames_per_call=frames_per_call)

    @property
    def weights_bytes(self) -> int:
        """Memory of all weights in bytes; weights that two networks share count once."""
        encoders = (self.image_text_encoder.encoder, self.video_text_encoder.encoder)
        return resident_bytes(self.image_unet, self.video_unet, self.vae, *encoders)

    def _network_args(self, fps: int | None) -> dict[str, Any]:
        if self.entry.family != "videocrafter":
            return {}
        return {"fps": self.entry.network_fps or fps or int(self.entry.fps.default)}


def load(model: ModelEntry | str, device: torch.device | str | None = None) -> Models:
    """Load a model from files on this machine; nothing is fetched.

    Args:
        model: an id in the registry (IVMIX_MODELS_FILE), or an entry of it.
        device: where the networks run; None: the GPU if there is one, else the CPU.

    Returns:
        The networks, in the entry's `dtype` and `vae_dtype` on a GPU and in float32 on a CPU.

    Raises:
        ModelNotFound, ModelNotFetched: the registry has no such model, or its weights are not on this machine.
        ConfigurationError: a file is missing, unsafe, or not the expected one (SHA-256, names, shapes).
        IncompatibleModels: the components cannot work together.
    """
    entry = model if isinstance(model, ModelEntry) else ModelRegistry.of(load_settings()).get(model)
    device = default_device() if device is None else torch.device(device)
    dtype = getattr(torch, entry.dtype) if device.type == "cuda" else torch.float32
    check_files(entry)
    for warning in schedule_warnings(entry):
        log.warning(warning)
    models = _load(entry, device, dtype)
    megabytes, shared = models.weights_bytes / 1e6, shared_bytes(models.image_unet, models.video_unet) / 1e6
    log.info("%s on %s: %.0f MB, %.0f MB shared by both UNets", entry.id, device, megabytes, shared)
    return models


def _load(entry: ModelEntry, device: torch.device, dtype: torch.dtype) -> Models:
    image_schedule, video_schedule = load_schedules(entry)
    check_vae_config(entry)
    image_unet, video_unet = load_unets(entry, dtype)
    vae, components = load_network(entry, "vae", vae_dtype(entry, dtype)), entry.all_components
    video_text = load_text_encoder(entry, "", dtype)
    image_text = load_text_encoder(entry, "image_", dtype) if "image_text_encoder" in components else video_text
    _check_compatibility(entry, vae, (image_unet, image_text), (video_unet, video_text))
    for module in (video_text.encoder, image_text.encoder, vae, image_unet, video_unet):
        module.to(device)
    channels_last(vae)
    text_kv_cache = TextKVCache()
    optimised = _optimised(entry, device, vae, (image_unet, video_unet), text_kv_cache)
    return Models(
        entry=entry,
        device=device,
        dtype=dtype,
        image_text_encoder=image_text,
        video_text_encoder=video_text,
        vae=vae,
        image_unet=image_unet,
        video_unet=video_unet,
        image_schedule=image_schedule,
        video_schedule=video_schedule,
        optimised_image_unet=optimised[0],
        optimised_video_unet=optimised[1],
        text_kv_cache=text_kv_cache,
    )


def _optimised(
    entry: ModelEntry, device: torch.device, vae: Network, unets: tuple[Network, Network], cache: TextKVCache
) -> list[OptimisedNetwork]:
    sides = (map(int, size.split("x")) for size in entry.sizes)
    largest = max(width * height for width, height in sides) / _pixels_per_latent(entry, vae) ** 2
    if device.type == "cpu" and largest <= MAX_TUNED_PIXELS:
        # The sampler `official` shows ModelScope's image network 64x64, whatever the size of the clip.
        for unet in unets[1:] if entry.family == "modelscope" else unets:
            cpu_tuning.tune_network(unet)
    compiler = BlockCompiler(cache_dir=load_settings().data_dir / "compiled") if entry.optimise.compile else None
    return [OptimisedNetwork(unet, entry.optimise, cache, compiler) for unet in unets]


def _pixels_per_latent(entry: ModelEntry, vae: Network) -> int:
    """Picture pixels per latent pixel along one side, with the entry's `upscale`."""
    return entry.upscale * 2 ** (len(vae.config.block_out_channels) - 1)


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_unets(entry: ModelEntry, dtype: torch.dtype) -> tuple[Network, Network]:
    """(image UNet, video UNet), on the CPU."""
    base, video = None, load_network(entry, "unet", dtype)
    if entry.family == "animatediff":
        base, video = _with_motion(video, load_network(entry, "motion_adapter", dtype), entry)
    components = entry.all_components
    image = load_network(entry, "image_unet", dtype) if "image_unet" in components else base
    if lora := components.get(LORA):
        image = copy.deepcopy(image) if image is base else image  # the video model keeps the base without the LoRA
        fuse_lora(image, lora, entry.lora_scale)
    return image, video


def _with_motion(base: Network, adapter: Network, entry: ModelEntry) -> tuple[Network, Network]:
    """(base, video model with motion modules), with the base's weights in memory once."""
    longest = int(adapter.config.motion_max_seq_length)
    if entry.num_frames.max > longest:
        raise IncompatibleModels(
            f"model {entry.id}: num_frames.max={entry.num_frames.max}, but the motion adapter takes {longest} frames"
        )
    try:
        with errors_only("diffusers"):  # it suggests a setting of from_pretrained, which does not make a motion UNet
            video = cast("Any", UNetMotionModel.from_unet2d(base, adapter))
    except RuntimeError as e:
        raise IncompatibleModels(f"model {entry.id}: the motion adapter does not fit the UNet: {e}") from e
    video.eval().requires_grad_(False)
    weights = video.state_dict(keep_vars=True)
    base.load_state_dict({name: weights[name] for name in base.state_dict()}, assign=True)
    return base, video


def _check_compatibility(
    entry: ModelEntry, vae: Network, image: tuple[Network, TextEncoder], video: tuple[Network, TextEncoder]
) -> None:
    channels = int(vae.config.latent_channels)
    for name, (unet, encoder) in {"image model": image, "video model": video}.items():
        config = unet.config
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise IncompatibleModels(
                f"model {entry.id}: the {name} takes {config.in_channels} latent channels and returns "
                f"{config.out_channels}, the autoencoder has {channels}; all three must share one latent space"
            )
        if config.cross_attention_dim != encoder.dim:
            raise IncompatibleModels(
                f"model {entry.id}: the {name} takes embeddings of dim {config.cross_attention_dim}, its text encoder "
                f"returns {encoder.dim}; name a separate tokenizer and text encoder (image_tokenizer, "
                "image_text_encoder for the image model)"
            )
