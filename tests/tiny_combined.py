"""One tiny AnimateDiff with everything a request can combine, and diffusers' pipelines of the same files.

Context windows, SparseCtrl, LoRAs of UNet, text encoder and motion modules, prompts of several windows with weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode
from diffusers import (
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.pipelines.animatediff import pipeline_animatediff_sparsectrl, pipeline_animatediff_video2video
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from PIL import Image
from safetensors.torch import save_file
from torch import Generator, Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sampler import free_noise
from service.catalog.model_entry import ModelEntry
from service.jobs.context_windows import ContextWindows
from service.jobs.model import Generation
from tests import lora_files
from tests.diffusers_pipelines import CONFIG
from tests.lora_files import Numbers, layer_weights
from tests.tiny_models import IMAGE_WIDTH, write_entry
from tests.tiny_sparse_control import save_control, save_controlled
from tests.unit.worker.test_lora import MOTION, TEXT, UNET

WINDOWS = ContextWindows(length=4, stride=2)
LIMIT = 16  # tokens of the text encoder's window
# Words of one token each; 20 of them fill two windows. As we write weights, and as compel does.
LONG = "a (red circle:1.5) moving left on a teal background a red circle moving left on a teal background a blue"
LONG_COMPEL = LONG.replace(":1.5)", ")1.5")
LORAS = {"ink": 0.5, "zoom": 0.8}


def save_combined(folder: Path) -> ModelEntry:
    """The SparseCtrl network numbers no more frames than a window has."""
    save_controlled(folder)
    # With larger weights the rounding of float32 alone is 1e-5.
    save_control(folder / "sparse_control", std=0.1, motion_max_seq_length=WINDOWS.length)
    _save_text_encoder(folder / "text_encoder")
    _save_loras(folder)
    lines = [f"context_windows = {{ length = {WINDOWS.length}, stride = {WINDOWS.stride} }}"]
    lines += ["prompt_chunks = 3", "prompt_weighting = true", "[sources.own]", 'folder = "."']
    for name, on in (("ink", '["image", "video"]'), ("zoom", '["video"]')):
        lines += ["[[models.tiny.selectable_loras]]", f'name = "{name}"\nfile = "own/{name}.safetensors"\non = {on}']
    return write_entry(folder, "animatediff", *lines)


def _save_text_encoder(folder: Path) -> None:
    """With layers to skip."""
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(IMAGE_WIDTH)
    CLIPTextModel(CLIPTextConfig(**config | {"num_hidden_layers": 3})).save_pretrained(folder)


def _save_loras(folder: Path) -> None:
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    video = UNetMotionModel.from_unet2d(unet, MotionAdapter.from_pretrained(folder / "motion_adapter"))
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    text = {f"text_model.{name}": weight for name, weight in layer_weights(encoder, TEXT).items()}
    ink = lora_files.kohya("lora_unet", layer_weights(unet, UNET), Numbers(), 2.0)
    ink |= lora_files.kohya("lora_te", text, Numbers(2), 2.0)
    zoom = lora_files.old_diffusers("unet.", layer_weights(video, MOTION), Numbers(4))
    for name, file in (("ink", ink), ("zoom", zoom)):
        save_file({key: value.contiguous() for key, value in file.items()}, folder / f"{name}.safetensors")


class Controlled(AnimateDiffFreeNoiseMixin, AnimateDiffSparseControlNetPipeline):
    """diffusers' SparseCtrl pipeline has no FreeNoise; here both networks get its blocks."""

    def enable_free_noise(self, *given: Any) -> None:
        super().enable_free_noise(*given)
        for block in self.controlnet.down_blocks:
            self._enable_free_noise_in_block(block)
            for module in block.motion_modules:
                for inner in module.transformer_blocks:
                    inner.attn2 = None  # SparseCtrl's have one attention; diffusers 0.42 forgets to say so here


class Theirs:
    """diffusers' pipelines: of SparseCtrl, and from a clip. Windows, LoRAs and a first frame can be left out."""

    def __init__(self, folder: Path) -> None:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=LIMIT)
        parts: tuple[Any, ...] = (
            AutoencoderKL.from_pretrained(folder / "vae"),
            CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
            tokenizer,
            UNet2DConditionModel.from_pretrained(folder / "unet").eval(),
            MotionAdapter.from_pretrained(folder / "motion_adapter"),
        )
        control = SparseControlNetModel.from_pretrained(folder / "sparse_control").eval()
        self.controlled: Any = Controlled(*parts, control, DDIMScheduler(**CONFIG))
        self.controlled.enable_free_noise(WINDOWS.length, WINDOWS.stride)
        for name in LORAS:
            self.controlled.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
        self.controlled.set_adapters(list(LORAS), list(LORAS.values()))
        self.from_clip: Any = AnimateDiffVideoToVideoPipeline(
            *parts[:3], self.controlled.unet, parts[4], DDIMScheduler(**CONFIG)
        )
        for pipeline in (self.controlled, self.from_clip):
            pipeline.set_progress_bar_config(disable=True)

    def keeping(self, picture: Path, wanted: Generation) -> Tensor:
        """The latents of a run with a first frame; without one, the control network counts nothing."""
        noise, generator = start(wanted)
        return self.controlled(
            **self._texts(wanted),
            **_settings(wanted),
            latents=noise,
            num_frames=wanted.num_frames,
            conditioning_frames=Image.open(picture),
            controlnet_frame_indices=[0],
            controlnet_conditioning_scale=1.0 if wanted.keeps_first_frame else 0.0,
            generator=generator,
        ).frames

    def beginning(
        self, frames: Sequence[Image.Image], wanted: Generation, scheduler: Any, timesteps: Sequence[int] | None
    ) -> Tensor:
        """The latents of a run that begins at these frames."""
        assert wanted.reference is not None
        noise, generator = start(wanted)
        self.from_clip.scheduler = scheduler
        with pytest.MonkeyPatch.context() as patch:
            # it draws noise that is not rescheduled
            patch.setattr(pipeline_animatediff_video2video, "randn_tensor", lambda *_, **__: noise.transpose(1, 2))
            return self.from_clip(
                **self._texts(wanted),
                **_settings(wanted),
                video=list(frames),
                strength=wanted.reference.strength,
                generator=generator,
                timesteps=timesteps,
            ).frames

    def _texts(self, wanted: Generation) -> dict[str, Tensor]:
        """Embeddings of compel; a clip_skip of 1 is its penultimate layer."""
        (self.controlled.enable_lora if wanted.loras else self.controlled.disable_lora)()
        kinds = ReturnedEmbeddingsType
        last = self._compel(kinds.LAST_HIDDEN_STATES_NORMALIZED)
        of_prompt = self._compel(kinds.PENULTIMATE_HIDDEN_STATES_NORMALIZED) if wanted.clip_skip else last
        with pytest.MonkeyPatch.context() as patch:  # compel finds the final norm where transformers 4 had it
            patch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)
            prompt = of_prompt(wanted.prompt.replace(":1.5)", ")1.5"))
        negative = last(wanted.negative_prompt)
        prompt, negative = last.pad_conditioning_tensors_to_same_length([prompt, negative])
        return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}

    def _compel(self, kind: ReturnedEmbeddingsType) -> Any:
        return Compel(
            tokenizer=self.controlled.tokenizer,
            text_encoder=self.controlled.text_encoder,
            truncate_long_prompts=False,
            split_long_text_mode=SplitLongTextMode.BRUTAL,
            returned_embeddings_type=kind,
        )


def start(wanted: Generation) -> tuple[Tensor, Generator]:
    """Noise of a 32x32 clip, and the generator that goes on."""
    generator = Generator().manual_seed(wanted.seed)
    shape = 1, 4, wanted.num_frames, 8, 8
    if wanted.context_windows is None:
        return torch.randn(shape, generator=generator), generator
    return free_noise(shape, generator, length=WINDOWS.length, stride=WINDOWS.stride), generator


def _settings(wanted: Generation) -> dict[str, Any]:
    return {
        "height": 32,
        "width": 32,
        "num_inference_steps": wanted.num_inference_steps,
        "guidance_scale": wanted.guidance_scale,
        "output_type": "latent",
    }


@contextmanager
def posteriors_mode() -> Iterator[None]:
    """diffusers draws latents from the autoencoder's posterior; here it takes the mode, as the worker does."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline_animatediff_sparsectrl, pipeline_animatediff_video2video):
            patch.setattr(module, "retrieve_latents", partial(module.retrieve_latents, sample_mode="argmax"))
        yield
