"""The diffusers config of a SparseCtrl network in a single file."""

from __future__ import annotations

import re
from pathlib import Path

from service.catalog.family_components import SPARSE_CONTROL
from service.errors import ConfigurationError
from worker.adding.configs import Config, read_config
from worker.adding.weights_file import WeightsFile

CONDITION, PREFIX = "controlnet_cond_embedding.weight", "module."
MASK_CHANNELS = 1


def sparse_control_config(file: WeightsFile, folder: Path | None) -> Config:
    """That of a folder that the user named, else read from the shapes; heads and norms are those of Stable Diffusion 1.

    Raises ConfigurationError.
    """
    if (found := read_config(folder, SPARSE_CONTROL)) is not None:
        return found
    shapes = {name.removeprefix(PREFIX): shape for name, shape in file.shapes.items()}
    widths = {
        int(found[1]): shape[0]
        for name, shape in shapes.items()
        if (found := re.fullmatch(r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight", name))
    }
    text = [shape[1] for name, shape in shapes.items() if re.search(r"\.attentions\.0\..*\.attn2\.to_k\.weight$", name)]
    positions = {shape[1] for name, shape in shapes.items() if name.endswith(".pe") and len(shape) == 3}
    if not widths or not text or len(positions) > 1 or len(shapes.get(CONDITION, ())) != 4:
        raise ConfigurationError(
            f"{file.where} has a SparseCtrl network whose sizes cannot be read; name a folder with "
            f"{SPARSE_CONTROL}/config.json with --config"
        )
    with_text = {found[1] for name in shapes if (found := re.match(r"down_blocks\.(\d+)\.attentions\.", name))}
    layers = {found[1] for name in shapes if (found := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))}
    return {
        "block_out_channels": [width for _, width in sorted(widths.items())],
        "conditioning_channels": shapes[CONDITION][1] - MASK_CHANNELS,
        "cross_attention_dim": text[0],
        "down_block_types": [
            "CrossAttnDownBlockMotion" if str(number) in with_text else "DownBlockMotion" for number in sorted(widths)
        ],
        "layers_per_block": len(layers),
        **({"motion_max_seq_length": positions.pop()} if positions else {}),
    }
