"""Loads one component of a model from its files: safetensors only; nothing is fetched and no code is run.

diffusers initialises missing weights randomly, so names and shapes are compared with the configuration first.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

from typing import Any

import torch

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.networks.component_files import component_folder
from worker.networks.network_classes import Network, errors_only, network_class
from worker.networks.text_encoder import TextEncoder
from worker.networks.weight_checks import check_shapes

# after network_classes, which switches the hub client offline
from transformers import CLIPTextModel, CLIPTokenizer  # isort: skip
from transformers.utils import logging as transformers_logging  # isort: skip


@errors_only("diffusers")  # it warns of VideoCrafter's fps_cond
def load_network(entry: ModelEntry, name: str, dtype: torch.dtype) -> Network:
    """A network on the CPU. Raises WeightsMismatch, or ConfigurationError if a file cannot be read."""
    component = entry.all_components[name]
    folder = component_folder(component)
    check_shapes(entry, name)
    kind: Network = network_class(entry, name)
    settings: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "variant": component.source.variant,
        "dtype" if kind is CLIPTextModel else "torch_dtype": dtype,
    }
    loaded = kind.from_pretrained(folder, **settings)
    return loaded.eval().requires_grad_(False)


def load_text_encoder(entry: ModelEntry, prefix: str, dtype: torch.dtype) -> TextEncoder:
    """Raises ConfigurationError if tokenizer and encoder do not match: every prompt would turn into noise."""
    transformers_logging.disable_progress_bar()
    folder = component_folder(entry.all_components[f"{prefix}tokenizer"])
    kind: Network = CLIPTokenizer
    tokenizer = kind.from_pretrained(folder, local_files_only=True)
    encoder = load_network(entry, f"{prefix}text_encoder", dtype)
    if len(tokenizer) != encoder.config.vocab_size:
        raise ConfigurationError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, its text encoder {encoder.config.vocab_size}; "
            "use the tokenizer that the encoder was trained with"
        )
    return TextEncoder(tokenizer, encoder)
