"""Tiny random video and image transformers of diffusers, called as the sampler calls a network, and their pipelines.

`network(x, timestep, encoder_hidden_states=text)` with x (N, C, F, h, w), or (N, C, h, w) for the frames of an image
model. The weights are large enough that text, time and every pixel matter.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.transformers import transformer_cosmos
from torch import Tensor

TEXT_WIDTHS = {"wan": 16, "cogvideox": 20, "cosmos": 24, "qwen": 20}
COGVIDEOX_TOKENS = 6

COSMOS_SCHEDULER: dict[str, Any] = {  # what Cosmos' pipelines write into the config of their scheduler
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_karras_sigmas": True,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "sigma_data": 1.0,
    "final_sigmas_type": "sigma_min",
}
QWEN_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
COGVIDEOX_SCHEDULER: dict[str, Any] = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}


def texts(name: str, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(cond, uncond) for the network of that name."""
    tokens = COGVIDEOX_TOKENS if name == "cogvideox" else 7
    cond, uncond = torch.randn(2, 1, tokens, TEXT_WIDTHS[name], generator=torch.Generator().manual_seed(seed))
    return cond, uncond


def loud(network: Any, by: float) -> Any:
    """Weights of diffusers' initialisation, times `by`: as they are, text and time change next to nothing."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(by)
    return network.eval().requires_grad_(False)


def tiny_wan_transformer(seed: int = 0) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT_WIDTHS["wan"],
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return loud(network, 2.0)


def tiny_cogvideox_transformer(seed: int = 0) -> CogVideoXTransformer3DModel:
    torch.manual_seed(seed)
    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT_WIDTHS["cogvideox"],
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=COGVIDEOX_TOKENS,
        use_rotary_positional_embeddings=False,
    )
    return loud(network, 1.5)


def tiny_cosmos_transformer(seed: int = 0) -> CosmosTransformer3DModel:
    torch.manual_seed(seed)
    network = CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=TEXT_WIDTHS["cosmos"],
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )
    return loud(network, 1.5)


def tiny_qwen_transformer(seed: int = 0) -> QwenImageTransformer2DModel:
    torch.manual_seed(seed)
    network = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTHS["qwen"],
        axes_dims_rope=(8, 4, 4),
    )
    return loud(network, 1.5)


class _Adapter:
    """What is common: clips for frames, and one timestep for each row."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        # Not the transformer's in_channels: Qwen-Image's 64 are those of a token of 2x2 pixels.
        self.config = SimpleNamespace(in_channels=transformer.config.out_channels)
        self.times: list[Tensor] = []

    def __call__(self, x: Tensor, timestep: float | Tensor, *, encoder_hidden_states: Tensor) -> Tensor:
        clips = x if x.ndim == 5 else x.unsqueeze(2)
        time = torch.as_tensor(timestep)
        self.times.append(time)
        answer = self.run(clips, time.expand(len(x)), encoder_hidden_states)
        return answer if x.ndim == 5 else answer.squeeze(2)

    def run(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        raise NotImplementedError


class WanNetwork(_Adapter):
    """Is given 1000 s."""

    def run(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        return self.transformer(x, time, text, return_dict=False)[0]


class CogVideoXNetwork(_Adapter):
    """Frames come before channels."""

    def run(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        return self.transformer(x.transpose(1, 2), text, time, return_dict=False)[0].transpose(1, 2)


class CosmosNetwork(_Adapter):
    """Is given s, and a mask of padding at the size of the pixels."""

    def run(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        mask = x.new_zeros(1, 1, *x.shape[-2:])
        return self.transformer(x, time.to(x.dtype), text, padding_mask=mask, return_dict=False)[0]


class QwenNetwork(_Adapter):
    """Is given s. 2x2 latent pixels are one token; rows of zeros in the text are padding."""

    def run(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        n, c, _, h, w = x.shape
        tokens = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)
        mask = text.abs().sum(-1) > 0
        shapes = [[(1, h // 2, w // 2)]] * n
        answer = self.transformer(tokens, text, mask, time, shapes, return_dict=False)[0]
        return answer.reshape(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval().requires_grad_(False)


def wan_pipeline(transformer: Any, scheduler: Any) -> WanPipeline:
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=tiny_wan_vae(), scheduler=scheduler, transformer=transformer
    )
    return quiet(pipeline)


def cogvideox_pipeline(transformer: Any) -> CogVideoXPipeline:
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    scheduler = CogVideoXDDIMScheduler.from_config(COGVIDEOX_SCHEDULER)
    return quiet(CogVideoXPipeline(None, None, vae.eval(), transformer, scheduler))


class PassingChecker:
    """Cosmos' safety checker is several more models; its pipelines do not start without one."""

    def check_text_safety(self, _text: str) -> bool:
        return True

    def to(self, _device: object) -> PassingChecker:
        return self


def cosmos_pipeline(transformer: Any) -> Cosmos2TextToImagePipeline:
    pipeline = Cosmos2TextToImagePipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=tiny_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=PassingChecker(),
    )
    return quiet(pipeline)


def qwen_pipeline(transformer: Any) -> QwenImagePipeline:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(QWEN_SCHEDULER)
    pipeline = QwenImagePipeline(
        scheduler=scheduler, vae=tiny_wan_vae(), text_encoder=None, tokenizer=None, transformer=transformer
    )
    return quiet(pipeline)


def resize_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosmos' forward resizes its mask by torchvision, which the project does not install."""

    def resize(mask: Tensor, size: list[int], interpolation: object) -> Tensor:
        return F.interpolate(mask, size=tuple(size), mode="nearest")

    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
