"""Which components, named as in a diffusers pipeline folder, the model of each family consists of."""

from __future__ import annotations

from service.jobs.released_loops import Family

SDXL: Family = "animatediff-sdxl"
TEXT = ("tokenizer", "text_encoder")
SDXL_TEXT = (*TEXT, "tokenizer_2", "text_encoder_2")
REQUIRED_COMPONENTS: dict[Family, tuple[str, ...]] = {
    "animatediff": (*TEXT, "vae", "unet", "motion_adapter", "scheduler"),
    SDXL: (*SDXL_TEXT, "vae", "unet", "motion_adapter", "scheduler"),
    "modelscope": (*TEXT, "vae", "unet", "scheduler", "image_unet"),
    "videocrafter": (*TEXT, "vae", "unet", "scheduler", "image_unet"),
}
SPARSE_CONTROL = "sparse_control"  # SparseCtrl RGB, with which the video model keeps a first frame
# Without image_unet the image model is the base of the video model. Without tokenizers and text encoders of its own it
# reads the video model's embeddings.
OPTIONAL_COMPONENTS: dict[Family, tuple[str, ...]] = {
    family: (
        *("image_unet", "image_scheduler", *(f"image_{name}" for name in (SDXL_TEXT if family == SDXL else TEXT))),
        *([SPARSE_CONTROL] if family == "animatediff" else []),
    )
    for family in REQUIRED_COMPONENTS
}
LORA = "lora"  # one file, applied to the image model; always named in the entry


def has_motion_adapter(family: Family) -> bool:
    """Whether the video model is an image model with motion modules."""
    return "motion_adapter" in REQUIRED_COMPONENTS[family]
