"""Linear layers of transformers with weights in 8 bits (float8 e4m3), by torchao, which the extra float8 installs.

torchao is imported only where an entry asks for it.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingImports=false
from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from service.errors import ConfigurationError
from service.jobs.model import Quantise

LEAST_CAPABILITY = (8, 9)  # Ada; its tensor cores are the first that multiply float8
BLOCKS = ("blocks.", "transformer_blocks.")  # of Wan and CogVideoX; what is around them is small and sensitive


def check_float8(model: str, quantise: Quantise, device: torch.device) -> None:
    """Raises ConfigurationError, before anything is loaded, if this device or installation cannot do it."""
    if device.type != "cuda":
        found = f"{str(device)!r} is none"
    elif (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        found = f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
    elif find_spec("torchao") is None:
        raise ConfigurationError(
            f"model {model}: quantise={quantise} needs torchao, which is not installed: pip install 'ivmix[float8]'"
        )
    else:
        return
    least = ".".join(map(str, LEAST_CAPABILITY))
    raise ConfigurationError(
        f"model {model}: quantise={quantise} needs an NVIDIA GPU of compute capability {least} or more, and {found}; "
        "delete quantise from the entry, or use an Ada, Hopper or Blackwell card"
    )


def to_float8(network: Any, quantise: Quantise, device: torch.device) -> None:
    """Round the weights of the blocks' linear layers, in place; these layers are on `device` afterwards.

    Each row has its own scale. Layer by layer, so that the device never holds the network as it was.
    """
    from torchao import quantization

    kinds = {
        "float8": quantization.Float8DynamicActivationFloat8WeightConfig,
        "float8-weights": quantization.Float8WeightOnlyConfig,
    }
    # set_inductor_config would change how all networks of the process are compiled
    config = kinds[quantise](granularity=quantization.PerRow(), set_inductor_config=False)
    quantization.quantize_(network, config, filter_fn=_is_of_a_block, device=device)


def _is_of_a_block(module: torch.nn.Module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and name.startswith(BLOCKS)
