"""Which components, named as in a diffusers pipeline folder, the model of each family consists of."""

from __future__ import annotations

from service.jobs.released_loops import Family

REQUIRED_COMPONENTS: dict[Family, tuple[str, ...]] = {
    "animatediff": ("tokenizer", "text_encoder", "vae", "unet", "motion_adapter", "scheduler"),
    "modelscope": ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "image_unet"),
    "videocrafter": ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "image_unet"),
}
# Without image_unet the image model is the base of the video model. Without image_tokenizer and image_text_encoder it
# reads the video model's embeddings.
OPTIONAL_COMPONENTS = ("image_unet", "image_scheduler", "image_tokenizer", "image_text_encoder")
LORA = "lora"  # one file, applied to the image model; always named in the entry
