"""Checks of stored weights: names, shapes and dtypes against the configuration, then every value, tensor by tensor."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from service.errors import ConfigurationError
from worker.networks.component_files import DOWNLOAD_AGAIN, refused
from worker.networks.network_classes import Network
from worker.networks.stored_form import tied_weights

# Regular expression of a weight's name in old checkpoints -> its current name.
RENAMED_WEIGHTS = (
    (r"^text_model\.", ""),
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
NOT_WEIGHTS = re.compile(r"\.position_ids$")
FLOATS = ("F16", "BF16", "F32", "F64")  # safetensors' names of the dtypes that are loaded
MAX_NAMES_SHOWN = 3


class WeightsMismatch(ConfigurationError):
    """Names, shapes or dtypes of a component's weights differ from its configuration."""


class StoredWeight(NamedTuple):
    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def stored_weights(files: Sequence[Path], known: Container[str] = ()) -> dict[str, StoredWeight]:
    """The weights of all files by their current names, from the headers; those in `known` are current.

    Raises ConfigurationError.
    """
    found: dict[str, StoredWeight] = {}
    for file in files:
        with refused(file, DOWNLOAD_AGAIN), _open(file) as weights:
            for key in weights.keys():  # noqa: SIM118  not a dict
                name, part = key if key in known else _current_name(key), weights.get_slice(key)
                if NOT_WEIGHTS.search(name):
                    continue
                if name in found:
                    both = " and ".join(dict.fromkeys((found[name].file.name, file.name)))
                    raise WeightsMismatch(
                        f"{file.parent} holds the weight {name} twice, in {both}; delete the files that are left over"
                    )
                found[name] = StoredWeight(file, key, tuple(part.get_shape()), part.get_dtype())
    return found


def check_weights(folder: Path, network: Network, stored: Mapping[str, StoredWeight]) -> None:
    """Compare with a network built from the configuration: diffusers would fill missing weights with random numbers.

    Raises WeightsMismatch.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    optional = {key for key, _ in network.named_buffers()} | set(tied_weights(network))
    common = set(stored) & set(expected)
    differences = {
        "lacks": set(expected) - set(stored) - optional,
        "has unexpected": set(stored) - set(expected),
        "has with another shape": {k for k in common if stored[k].shape != expected[k]},
        "has with a dtype that is no float": {k for k in common if stored[k].dtype not in FLOATS},
    }
    if errors := [f"{what} {_abbreviated(sorted(names))}" for what, names in differences.items() if names]:
        raise WeightsMismatch(
            f"{folder} does not fit its config.json: {'; '.join(errors)}. Both must come from the same model, "
            "unquantised and of the kind that its place in the entry needs"
        )


def read_weights(
    stored: Mapping[str, StoredWeight], highest: float, device: torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its current name, one at a time.

    Args:
        highest: largest magnitude that the dtype of the model's entry holds.
        device: where the weights go and are checked; None: the CPU, where they are a view of the file.

    Raises:
        ConfigurationError: a file cannot be read, or a value is NaN, infinite or above `highest`.
    """
    for file, weights in itertools.groupby(stored.items(), key=lambda item: item[1].file):
        with refused(file, DOWNLOAD_AGAIN):
            opened = _open(file)
        with opened:
            for name, weight in weights:
                with refused(file, DOWNLOAD_AGAIN):
                    value = opened.get_tensor(weight.key)
                value = value.to(device)
                _check_values(weight, value, highest)
                yield name, value


def _check_values(weight: StoredWeight, value: Tensor, highest: float) -> None:
    if not value.numel():
        return
    low, high = torch.aminmax(value)  # both NaN if one value is; allocates nothing
    most = float(torch.maximum(high, -low))
    if not torch.isfinite(torch.tensor(most)):
        raise ConfigurationError(
            f"{weight.file}: the weight {weight.key} holds NaN or infinity; {DOWNLOAD_AGAIN}, or take another model"
        )
    if most > highest:
        raise ConfigurationError(
            f"{weight.file}: the weight {weight.key} holds {most:.3g}, more than the model's dtype can; set "
            'dtype = "bfloat16" or "float32" in its entry'
        )


def _abbreviated(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more


def _open(file: Path) -> Any:  # safetensors has no types for it
    return safe_open(file, "pt")


def _current_name(name: str) -> str:
    for old, new in RENAMED_WEIGHTS:
        name = re.sub(old, new, name)
    return name
