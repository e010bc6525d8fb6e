"""Names in LoRA files: kohya's, diffusers' (old and new) and peft's, for UNets, motion modules and text encoders.

diffusers' converters translate them; kohya's flat names are also compared with those of the network itself, because
the converters know neither motion modules nor 3D UNets.
"""

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.networks.network_classes import Network

# after network_classes, which switches the hub client offline
from diffusers.loaders import lora_conversion_utils as kohya  # isort: skip
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers  # isort: skip
from diffusers.utils import state_dict_utils  # isort: skip

Target = Literal["unet", "text_encoder", "text_encoder_2"]
TEXT_TARGETS: tuple[Target, ...] = ("text_encoder", "text_encoder_2")  # the second is SDXL's

# Kinds that neither peft nor diffusers can apply, by a regular expression of their keys.
UNSUPPORTED = {
    r"^bundle_emb\.": "a bundled textual inversion; save it as its own file and list it under textual_inversions",
    r"^(emb_params|clip_[gl]|string_to_param.*)$": "a textual inversion; list it under textual_inversions",
    r"\.diff(_b)?$": "full weights (diff)",
    r"\.lora_mid\.weight$": "LoCon with a Tucker decomposition (lora_mid)",
    r"\.([ab][12]|bm[12])\.weight$": "GLoRA",
    r"\.oft_(blocks|diag|r)\b|\.oft_R\b": "OFT",
    r"\.boft_|\.(on_input|ia3_l)\b": "BOFT or (IA)^3",
    r"\.(w_norm|b_norm)$": "norm layers (w_norm, b_norm)",
    r"\.scalar$": "LyCORIS' scalar",
    r"\.lora_embedding_[AB]\b": "LoRA of an embedding layer",
    r"^base_model\.model\.": "peft's adapter_model, whose alpha is in another file; save it with diffusers' "
    "save_lora_weights",
}
PARTS = (
    r"alpha|dora_scale|lora_[AB]\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?|"
    r"hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
)
KOHYA_TARGETS: dict[str, Target] = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
}
MAGNITUDE = "lora_magnitude_vector.weight"
MAX_KEYS_SHOWN = 3


@dataclass(frozen=True)
class AdapterLayer:
    """What a file has for one layer: its key by part. Parts are named as in peft; `name` is dotted or kohya's."""

    target: Target
    name: str
    keys: dict[str, str]

    @property
    def is_motion(self) -> bool:
        return "motion_modules" in self.name


def abbreviated(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - MAX_KEYS_SHOWN} more" if len(keys) > MAX_KEYS_SHOWN else ""
    return ", ".join(keys[:MAX_KEYS_SHOWN]) + more


def read_layers(keys: Iterable[str]) -> list[AdapterLayer]:
    """The layers of a file with these keys; every key is in one of them. Raises ValueError naming the others."""
    layers: dict[tuple[Target, str], dict[str, str]] = {}
    unknown: list[str] = []
    for key in keys:
        for pattern, kind in UNSUPPORTED.items():
            if re.search(pattern, key):
                raise ValueError(f"it has {kind}, which cannot be applied: {key}")
        target, name = _dotted(key)
        found = re.fullmatch(rf"(?P<layer>.+)\.(?P<part>{PARTS})", name)
        if found is None:
            unknown.append(key)
            continue
        part = MAGNITUDE if found["part"] in ("dora_scale", "lora_magnitude_vector") else found["part"]
        parts = layers.setdefault((target, found["layer"]), {})
        if part in parts:
            raise ValueError(f"it has {part} of one layer twice: {parts[part]}, {key}")
        parts[part] = key
    if unknown:
        raise ValueError(f"it has weights that are no LoRA: {abbreviated(unknown)}")
    if not layers:
        raise ValueError("it has no weights")
    return [AdapterLayer(target, name, parts) for (target, name), parts in layers.items()]


def _dotted(key: str) -> tuple[Target, str]:
    """Network, and the key without its prefix, with the parts named as in peft."""
    if found := re.match(r"lora_(unet|te[12]?)_", key):
        return KOHYA_TARGETS[found[1]], _peft_parts(key[found.end() :])
    key = key.removeprefix("module.")  # of a network that was trained on several GPUs
    if found := re.match(r"(?:(text_encoder(?:_2)?)\.)?(?:text_model\.)?", key):
        name = key[found.end() :]
        if name != key:
            target = "text_encoder_2" if found[1] == "text_encoder_2" else "text_encoder"
            return target, _peft_parts(_converted(name, state_dict_utils.DIFFUSERS_OLD_TO_PEFT))
    name = key.removeprefix("unet.")
    if "motion_modules" in name:
        name = next(iter(convert_animatediff_checkpoint_to_diffusers({name: name})), name)
    return "unet", _peft_parts(_converted(name, state_dict_utils.UNET_TO_DIFFUSERS))


def _converted(name: str, mapping: Mapping[str, str]) -> str:
    return next(iter(state_dict_utils.convert_state_dict({name: name}, mapping)))


def _peft_parts(name: str) -> str:
    for old, new in (("down", "A"), ("up", "B")):
        name = re.sub(rf"[._]lora[._]{old}\.", f".lora_{new}.", name)
    return re.sub(r"\.(lora_[AB]|lora_magnitude_vector)\.default\b", r".\1", name)


def find_layers(layers: Sequence[AdapterLayer], network: Network) -> dict[str, AdapterLayer]:
    """The layers by the name of their module in the network. Raises ValueError naming the keys of absent ones."""
    modules = [name for name, _ in network.named_modules() if name]
    names = {alias: name for name in modules for alias in (name, name.replace(".", "_"))}
    names |= {f"text_model_{alias}": name for alias, name in names.items()}
    absent = [layer for layer in layers if layer.name not in names]
    names |= _names_of_original_blocks(absent, network)
    if missing := [key for layer in absent if names.get(layer.name) not in modules for key in layer.keys.values()]:
        raise ValueError(f"it has keys that match no layer: {abbreviated(missing)}")
    found: dict[str, AdapterLayer] = {}
    for layer in layers:
        twin = found.setdefault(names[layer.name], layer)
        if twin is not layer:
            raise ValueError(f"it has one layer twice: {abbreviated((*twin.keys.values(), *layer.keys.values()))}")
    return found


def _names_of_original_blocks(layers: Iterable[AdapterLayer], network: Network) -> dict[str, str]:
    """Module by kohya's name, where that is the one of Stable Diffusion's original code: input_blocks_1_1_..."""
    names: dict[str, Any] = {}
    for layer in layers:
        if "." not in layer.name and re.match("(input|output)_blocks|middle_block|time_embed|out_2", layer.name):
            stem = f"lora_unet_{layer.name}"
            names |= {f"{stem}.lora_down.weight": layer.name, f"{stem}.lora_up.weight": layer.name}
    try:
        mapped = kohya._maybe_map_sgm_blocks_to_diffusers(names, network.config)
        converted: dict[str, str] = kohya._convert_non_diffusers_lora_to_diffusers(mapped)[0]
    except (AttributeError, IndexError, KeyError, ValueError):  # a name of no known block
        return {}
    return {name: _dotted(key)[1].rpartition(".lora_")[0] for key, name in converted.items()}
