"""What CLIP sees in the first frame, for image-to-video models that read it (Wan 2.1)."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.networks.network_classes import Network
from worker.networks.not_finite import finite


class ClipVision:
    """
    Args:
        processor, encoder: transformers' CLIPImageProcessor and CLIPVisionModel.
        device: where the embeddings go. On a GPU the encoder waits in the host's memory, as the text encoder does.
    """

    def __init__(self, processor: Any, encoder: Network, *, device: torch.device) -> None:
        self.processor, self.encoder, self.device = processor, encoder, device

    @torch.no_grad()
    def encode(self, picture: Tensor) -> Tensor:
        """(1, H, W, 3) uint8 -> (1, tokens, dim), the states of the last layer but one. Raises NotFinite."""
        pixels = self.processor(images=[picture[0].numpy()], return_tensors="pt")["pixel_values"]
        self.encoder.to(self.device)
        try:
            states = self.encoder(pixels.to(self.device, self.encoder.dtype), output_hidden_states=True).hidden_states
        finally:
            if self.device.type == "cuda":
                self.encoder.to("cpu")
        return finite(states[-2], "image encoder (image_encoder)")
