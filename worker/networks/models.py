"""The networks of one model: encodes, denoises and decodes with them.

The families differ in the video model: a 2D UNet with motion modules, a 3D UNet, or one conditioned on the frame rate.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sampler import AddedConditions, ImageDenoiser, IncompatibleInputs, NoiseSchedule, VideoDenoiser
from service.catalog.family_components import SDXL
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.errors import InvalidParameter
from service.jobs.context_windows import ContextWindows
from service.jobs.model import Generation
from worker.networks.assembly import pixels_per_latent
from worker.networks.frame_limits import most_frames, seen_at_once
from worker.networks.lora_switch import LoraSwitch
from worker.networks.network_classes import Network
from worker.networks.not_finite import finite
from worker.networks.optimise import OptimisedNetwork, TextKVCache, vae_decode, vae_encode
from worker.networks.optimise.weight_memory import resident_bytes
from worker.networks.sparse_control import ControlledNetwork, FirstFrame, controlled
from worker.networks.text_encoder import AnyTextEncoder, Encoded, TextEmbeddings, TextOptions, same_parameters


@dataclass(frozen=True, repr=False)
class Models:
    """The networks of one model on one device, as `load` returns them; used for any number of clips.

    C is the number of latent channels, F of frames; h, w are latent pixels, H, W picture pixels. `image_unet` and
    `video_unet` are diffusers' UNets for direct calls; the `optimised` ones are the same networks as `denoisers` calls
    them. The two text encoders are one object, or share their parameters, if both UNets read the same embeddings.
    `loras` gives the networks the LoRAs of one job. `sparse_control` is diffusers' SparseControlNetModel, None for
    models without one.
    """

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    image_text_encoder: AnyTextEncoder
    video_text_encoder: AnyTextEncoder
    vae: Network
    image_unet: Network
    video_unet: Network
    image_schedule: NoiseSchedule
    video_schedule: NoiseSchedule
    optimised_image_unet: Network
    optimised_video_unet: Network
    text_kv_cache: TextKVCache
    loras: LoraSwitch
    optimise: Optimise
    sparse_control: Network | None = None
    optimised_sparse_control: Network | None = None

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
            InvalidParameter: `num_frames` is more than the video model, or the SparseCtrl network that keeps the
                clip's first frame, has positions for.
        """
        width, height = map(int, self.entry.sizes[0].split("x"))
        frames = int(self.entry.num_frames.default)
        windows = self.entry.windows_for(frames)
        if generation is not None:
            width, height, frames = generation.width, generation.height, generation.num_frames
            windows = generation.context_windows
        self._check_frames(frames, windows, keeps_first_frame=generation is not None and generation.keeps_first_frame)
        scale = pixels_per_latent(self.entry, self.vae)
        return 1, int(self.vae.config.latent_channels), frames, height // scale, width // scale

    def _check_frames(self, frames: int, windows: ContextWindows | None, *, keeps_first_frame: bool) -> None:
        """The record of a job may be older than the registry of this worker. Raises InvalidParameter."""
        numbering = {"video model": self.video_unet}
        if keeps_first_frame and self.sparse_control is not None:
            numbering["SparseCtrl network"] = self.sparse_control
        for name, network in numbering.items():
            most = most_frames(network)
            if most is not None and seen_at_once(frames, windows) > most:
                message = f"num_frames={frames}: the {name} of '{self.entry.id}' takes at most {most} frames"
                at_once = f" at once, and context_windows have {windows.length}" if windows else ""
                raise InvalidParameter("num_frames", f"{message}{at_once}.")

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        empty_is_none: bool = False,
        clip_skip: Sequence[int] = (),
        options: TextOptions | None = None,
        next_to: Sequence[str] = (),
    ) -> TextEmbeddings:
        """Encode texts for both networks.

        Args:
            texts: one text or B texts.
            empty_is_none: whether an empty text means none, as a negative prompt does: family animatediff-sdxl then
                gives zeros for it, unless the entry's `force_zeros_for_empty_prompt` is false.
            clip_skip: per text, the last layers of the text encoders that are skipped; none if empty.
            options: whether texts may be long and have weights; None: as the entry says.
            next_to: texts of the same run: the embeddings have as many windows as theirs.

        Returns:
            `image` and `video`, (B, tokens, dim) each in the networks' dtype. Slices select texts.

        Raises:
            InvalidParameter, PromptTooLong: the vocabulary lacks a word, or an encoder takes fewer tokens.
            InvalidSetting: an encoder has too few layers for `clip_skip`, or a text has weights that cannot be read.
            NotFinite: an encoder returned NaN or infinity.
        """
        texts = [texts] if isinstance(texts, str) else texts
        options = options or TextOptions.of(self.entry)
        self._check_words(texts, options)
        image, video = self.image_text_encoder, self.video_text_encoder
        image = video if same_parameters(image, video) else image
        all_texts, these = [*texts, *next_to], slice(len(texts))
        zeros = [empty_is_none and self._empty_is_zeros and not text for text in texts]
        encoded = video.encode(video.tokenize(all_texts, options)[these], clip_skip)
        for_image = for_video = self._checked(encoded, zeros, "text encoder (text_encoder)")
        if image is not video:
            encoded = image.encode(image.tokenize(all_texts, options)[these], clip_skip)
            for_image = self._checked(encoded, zeros, "image model's encoder (image_text_encoder)")
        return TextEmbeddings(for_image.text, for_video.text, for_image.pooled, for_video.pooled)

    def check_length(self, texts: Sequence[str], options: TextOptions) -> None:
        """Raises PromptTooLong if a text encoder takes fewer tokens than one of the texts has."""
        for encoder in (self.image_text_encoder, self.video_text_encoder):
            encoder.tokenize(texts, options)

    @property
    def _empty_is_zeros(self) -> bool:
        return self.entry.family == SDXL and self.entry.force_zeros_for_empty_prompt

    def _check_words(self, texts: Sequence[str], options: TextOptions) -> None:
        """Raises InvalidParameter for words that a closed vocabulary lacks; brackets and BREAK as the options say."""
        read = {"prompt_chunks": options.chunks, "prompt_weighting": options.weighting}
        entry = self.entry.model_copy(update=read)
        for text in texts:
            entry.check_vocabulary("prompt", text)

    def _checked(self, encoded: Encoded, zeros: Sequence[bool], name: str) -> Encoded:
        """In the networks' dtype, with zeros in these rows. Raises NotFinite."""
        pooled = None if encoded.pooled is None else finite(encoded.pooled.to(self.dtype), name)
        found = Encoded(finite(encoded.text.to(self.dtype), name), pooled)
        return found.zeroed(zeros) if any(zeros) else found

    def denoisers(
        self,
        prompt: str | TextEmbeddings,
        negative: str | TextEmbeddings = "",
        *,
        fps: int | None = None,
        size: tuple[int, int] | None = None,
        first_frame: FirstFrame | None = None,
        windows: ContextWindows | Literal["entry"] | None = "entry",
    ) -> tuple[ImageDenoiser, VideoDenoiser]:
        """Both networks with the texts of one job, as `sampler.sample` takes them.

        The denoisers of an earlier call stay usable, but compute their keys and values again.

        Args:
            prompt, negative: texts, or their embeddings from `encode`, of the same batch size and length. The entry's
                `clip_skip` is that of the prompt, if it is a text.
            fps: frame rate in frames per second that conditions the network (family videocrafter only), unless the
                entry has `network_fps`; None: the model's default.
            size: width and height of the clip in pixels, which condition the networks of family animatediff-sdxl as
                original and target size, without a crop; None: the model's first size.
            first_frame: what the video model keeps, if the model has a SparseCtrl network.
            windows: through which the motion modules see clips of more frames; "entry": the entry's `context_windows`;
                None: there are no longer clips.

        Raises:
            InvalidParameter, PromptTooLong, NotFinite: as `encode`.
            IncompatibleInputs: embeddings of different shapes, a first frame without SparseCtrl, or too long windows.
        """
        if isinstance(negative, str):
            self.entry.check_vocabulary("negative_prompt", negative)
        texts = [text for text in (prompt, negative) if isinstance(text, str)]
        if isinstance(prompt, str):
            prompt = self.encode(prompt, clip_skip=(self.entry.clip_skip,), next_to=texts)
        if isinstance(negative, str):
            negative = self.encode(negative, empty_is_none=True, next_to=texts)
        self.text_kv_cache.clear()
        network = controlled(self.optimised_video_unet, self.optimised_sparse_control, first_frame)
        image = self._image_denoiser(prompt, negative, size)
        return image, self._video_denoiser(network, prompt, negative, size, fps, windows)

    def _image_denoiser(
        self, cond: TextEmbeddings, uncond: TextEmbeddings, size: tuple[int, int] | None
    ) -> ImageDenoiser:
        denoiser = ImageDenoiser(
            self.optimised_image_unet,
            cond.image,
            uncond.image,
            prediction_type=self.image_schedule.prediction_type,
            added=self._added(cond.image_pooled, uncond.image_pooled, size),
        )
        denoiser.sequential_cfg = self.optimise.guidance_halves == "apart"
        return denoiser

    def _video_denoiser(
        self,
        network: Network,
        cond: TextEmbeddings,
        uncond: TextEmbeddings,
        size: tuple[int, int] | None,
        fps: int | None,
        windows: ContextWindows | Literal["entry"] | None,
    ) -> VideoDenoiser:
        windows = self.entry.context_windows if windows == "entry" else windows
        denoiser = VideoDenoiser(
            network,
            cond.video,
            uncond.video,
            prediction_type=self.video_schedule.prediction_type,
            added=self._added(cond.video_pooled, uncond.video_pooled, size),
            network_args=self._network_args(fps) | ({} if windows is None else {"context_windows": windows}),
        )
        denoiser.sequential_cfg = self.optimise.guidance_halves == "apart"
        of_clip = (network.video, network.control) if isinstance(network, ControlledNetwork) else (network,)
        most = most_frames(*of_clip)
        if most is not None and windows is not None and windows.length > most:
            raise IncompatibleInputs(f"windows.length={windows.length}: the networks take {most} frames at once")
        denoiser.max_frames = most if windows is None else None
        return denoiser

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

    def encode_frames(self, frames: Tensor, frames_per_call: int | None = None) -> Tensor:
        """Encode frames to clean latents, the reverse of `decode` up to the autoencoder's error.

        Args:
            frames: (F, H, W, 3) uint8 at the size that the networks see: sides of the clip divided by the entry's
                `upscale`, multiples of the pixels of a latent pixel.
            frames_per_call: frames that the autoencoder encodes together; None: what fits in memory.

        Returns:
            Latents (1, C, F, h, w) float32 on the models' device, the mode of the autoencoder's posterior, scaled and
            shifted as the networks see them. `sampler.noised` brings them to the level where a plan begins.

        Raises:
            IncompatibleInputs: `frames` has another shape or type.
            NotFinite: the autoencoder returned NaN or infinity, in float32 too.
        """
        side = pixels_per_latent(self.entry, self.vae) // self.entry.upscale
        is_rgb = frames.dtype is torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and len(frames) > 0
        if not is_rgb or frames.shape[1] % side or frames.shape[2] % side:
            raise IncompatibleInputs(
                f"frames {tuple(frames.shape)} {frames.dtype} must be (F, H, W, 3) torch.uint8 with H and W multiples "
                f"of {side}, the pixels of a latent pixel"
            )
        return vae_encode.encode(self.vae, frames, frames_per_call=frames_per_call)

    def first_frame(self, picture: Tensor, generation: Generation) -> FirstFrame:
        """What the video model keeps: a picture (1, H, W, 3) uint8, as `encode_frames` takes it. Raises as that."""
        scale = 1.0 if generation.reference is None else generation.reference.conditioning_scale
        return FirstFrame(self.encode_frames(picture, frames_per_call=1), scale)

    @property
    def weights_bytes(self) -> int:
        """Memory of all weights in bytes; weights that two networks share count once."""
        encoders = (*self.image_text_encoder.networks, *self.video_text_encoder.networks)
        return resident_bytes(*self.unets, self.vae, *encoders)

    @property
    def unets(self) -> tuple[Network, ...]:
        """The networks that denoise: image UNet, video UNet, and SparseCtrl if there is one."""
        found = (self.image_unet, self.video_unet, self.sparse_control)
        return tuple(network for network in found if network is not None)

    @property
    def optimised_networks(self) -> tuple[OptimisedNetwork, ...]:
        """Those that `optimise` applies to."""
        found = (self.optimised_image_unet, self.optimised_video_unet, self.optimised_sparse_control)
        return tuple(network for network in found if network is not None)

    @property
    def digested_networks(self) -> tuple[Network, ...]:
        """In the order of fingerprints: image and video UNet twice, as version 0.1 did."""
        encoders = (*self.image_text_encoder.networks, *self.video_text_encoder.networks)
        return *encoders, self.vae, *self.unets[:2], *self.unets

    @property
    def compresses_time(self) -> bool:
        """Whether a latent frame stands for several frames."""
        return False

    @property
    def keeps_first_frame(self) -> bool:
        """Whether the video model can keep a given first frame."""
        return self.sparse_control is not None

    def _added(
        self, cond: Tensor | None, uncond: Tensor | None, size: tuple[int, int] | None
    ) -> AddedConditions | None:
        """Of networks that read pooled embeddings."""
        if cond is None or uncond is None:
            return None
        width, height = size or map(int, self.entry.sizes[0].split("x"))
        of_network = (height // self.entry.upscale, width // self.entry.upscale)
        time_ids = torch.tensor((*of_network, 0, 0, *of_network), dtype=self.dtype, device=self.device)
        return AddedConditions(cond, uncond, time_ids)

    def _network_args(self, fps: int | None) -> dict[str, Any]:
        if self.entry.family != "videocrafter":
            return {}
        return {"fps": self.entry.network_fps or fps or int(self.entry.fps.default)}
