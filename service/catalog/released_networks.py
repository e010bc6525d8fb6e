"""Released networks of the shipped entries: how many numbers they have, and what the formulas read of their configs.

For `ivmix models list` before anything is fetched. A test builds each on torch's meta device and counts.
"""

from __future__ import annotations

from typing import Any

_SD: dict[str, Any] = {"block_out_channels": [320, 640, 1280, 1280]}
_SDXL: dict[str, Any] = {"block_out_channels": [320, 640, 1280]}
_VAE: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512]}
# Numbers, config.
RELEASED: dict[str, tuple[int, dict[str, Any]]] = {
    "sd-unet": (859_520_964, _SD),
    "sdxl-unet": (2_567_463_684, _SDXL),
    "modelscope-unet": (1_411_233_860, _SD),
    "videocrafter-unet": (1_413_284_420, _SD),
    "sd-motion": (417_137_600, {}),
    "sdxl-motion": (236_779_200, {}),
    "sparsectrl": (496_730_880, {**_SD, "layers_per_block": 2}),
    "sd-vae": (83_653_863, _VAE),
    "clip-l": (123_060_480, {}),
    "clip-h": (340_387_840, {}),
    "clip-g": (694_659_840, {}),
    "t5-xxl": (4_762_310_656, {}),
    "umt5-xxl": (5_680_910_336, {}),
    "wan-vae": (126_892_531, {"base_dim": 96}),
    "wan-1.3b": (1_418_996_800, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "wan-14b": (14_288_491_584, {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}),
    "cogvideox-vae": (215_583_907, {}),
    "cogvideox-2b": (1_693_783_872, {}),
}
_SD_PIPELINE = {"text_encoder": "clip-l", "vae": "sd-vae", "unet": "sd-unet"}
_SDXL_PIPELINE = {"text_encoder": "clip-l", "text_encoder_2": "clip-g", "unet": "sdxl-unet"}
_WAN = {"text_encoder": "umt5-xxl", "vae": "wan-vae"}
# By hub repository and folder; "" is the repository's root.
_REPOSITORIES: dict[str, dict[str, str]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD_PIPELINE,
    "SG161222/Realistic_Vision_V5.1_noVAE": _SD_PIPELINE,
    "guoyww/animatediff-motion-adapter-v1-5-3": {"": "sd-motion"},
    "guoyww/animatediff-sparsectrl-rgb": {"": "sparsectrl"},
    "damo-vilab/text-to-video-ms-1.7b": {"text_encoder": "clip-h", "vae": "sd-vae", "unet": "modelscope-unet"},
    "adamdad/videocrafterv2_diffusers": {"": "videocrafter-unet"},
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL_PIPELINE,
    "SG161222/RealVisXL_V5.0": _SDXL_PIPELINE,
    "madebyollin/sdxl-vae-fp16-fix": {"": "sd-vae"},
    "guoyww/animatediff-motion-adapter-sdxl-beta": {"": "sdxl-motion"},
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _WAN | {"transformer": "wan-1.3b"},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _WAN | {"transformer": "wan-14b"},
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _WAN | {"transformer": "wan-14b", "transformer_2": "wan-14b"},
    "zai-org/CogVideoX-2b": {"text_encoder": "t5-xxl", "vae": "cogvideox-vae", "transformer": "cogvideox-2b"},
}
PLACES = {
    "/".join(filter(None, (repo, folder))): name
    for repo, folders in _REPOSITORIES.items()
    for folder, name in folders.items()
}
