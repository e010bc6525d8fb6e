"""Which components, named as in a diffusers pipeline folder, the model of each family consists of."""

from __future__ import annotations

from service.jobs.released_loops import Family

SDXL: Family = "animatediff-sdxl"
WAN: Family = "wan"
COGVIDEOX: Family = "cogvideox"
TEXT = ("tokenizer", "text_encoder")
SDXL_TEXT = (*TEXT, "tokenizer_2", "text_encoder_2")
REQUIRED_COMPONENTS: dict[Family, tuple[str, ...]] = {
    "animatediff": (*TEXT, "vae", "unet", "motion_adapter", "scheduler"),
    SDXL: (*SDXL_TEXT, "vae", "unet", "motion_adapter", "scheduler"),
    "modelscope": (*TEXT, "vae", "unet", "scheduler", "image_unet"),
    "videocrafter": (*TEXT, "vae", "unet", "scheduler", "image_unet"),
    WAN: (*TEXT, "vae", "transformer", "scheduler"),
    COGVIDEOX: (*TEXT, "vae", "transformer", "scheduler"),
}
SPARSE_CONTROL = "sparse_control"  # SparseCtrl RGB, with which the video model keeps a first frame
SECOND_EXPERT = "transformer_2"  # Wan 2.2: of the noise levels below the entry's boundary_ratio
IMAGE_ENCODER, IMAGE_PROCESSOR = "image_encoder", "image_processor"  # CLIP, which Wan 2.1's image-to-video models read


def _optional(family: Family) -> tuple[str, ...]:
    """Without image_unet the image model is the base of the video model. Without tokenizers and text encoders of its
    own it reads the video model's embeddings."""
    if family == WAN:
        return SECOND_EXPERT, IMAGE_ENCODER, IMAGE_PROCESSOR
    if family == COGVIDEOX:
        return ()
    image_text = (f"image_{name}" for name in (SDXL_TEXT if family == SDXL else TEXT))
    return "image_unet", "image_scheduler", *image_text, *([SPARSE_CONTROL] if family == "animatediff" else [])


OPTIONAL_COMPONENTS: dict[Family, tuple[str, ...]] = {family: _optional(family) for family in REQUIRED_COMPONENTS}
LORA = "lora"  # one file, applied to the image model; always named in the entry


def has_motion_adapter(family: Family) -> bool:
    """Whether the video model is an image model with motion modules."""
    return "motion_adapter" in REQUIRED_COMPONENTS[family]


def is_transformer(family: Family) -> bool:
    """Whether the video model is a diffusion transformer with an autoencoder that also compresses time."""
    return "transformer" in REQUIRED_COMPONENTS[family]


def frames_per_latent(family: Family) -> int:
    """Frames of one latent frame after the first, which is one frame: a clip has a multiple of it, and one more."""
    return 4 if is_transformer(family) else 1
