"""Published weights into our modules: read without running code from the file, and strict on names and shapes."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.i3d import I3d
from benchmarks.paper.umt import Umt

Module = TypeVar("Module", bound=nn.Module)
State = Mapping[str, Tensor]
NAMED = 4  # of the wrong names in a message

# The configuration in a checkpoint of UMT is a subclass of dict. It is read as a dict, so that none of its code runs.
_AS_DICT = [(OrderedDict, "utils.easydict.EasyDict")]


def read_state(path: Path) -> dict[str, Tensor]:
    """Name to weight, of a .safetensors file or of a checkpoint of PyTorch; of a training checkpoint, its `model`.

    Raises:
        BenchmarkError: the file is missing, damaged, or holds anything but weights.
    """
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file; `ivmix bench fetch` names what to download")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_AS_DICT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is no checkpoint; its error follows
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # torch's reader raises whatever a damaged file leads to, even KeyError
        raise BenchmarkError(f"{path}: not a file of weights, or damaged: {_reason(e)}") from e
    state = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BenchmarkError(f"{path}: holds something else than weights by name; give the published file")
    return dict(state)


def load_umt(path: Path, build: Callable[[], Umt] = Umt) -> Umt:
    """UMT with the weights of `UMT-msrvtt-7k.pth` or of a file that `convert` made. Raises BenchmarkError."""
    return load_strict(build, umt_names(read_state(path)), str(path))


def load_i3d(path: Path) -> I3d:
    """I3D with the weights of `i3d_pretrained_400.pt` or of a file that `convert` made. Raises BenchmarkError."""
    return load_strict(I3d, read_state(path), str(path))


def convert(source: Path, target: Path) -> None:
    """Write the weights of a checkpoint as .safetensors: a third of the published UMT file, whose rest is the state of
    its optimiser. Raises BenchmarkError."""
    unfinished = target.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in read_state(source).items()}, unfinished)
    unfinished.replace(target)


def umt_names(state: State) -> dict[str, Tensor]:
    """Names as our modules have them. BERT's numbers of positions are constants, a language-modelling head is unused,
    and both are left out; checkpoints from pre-training have `text_encoder.bert.` where others have `text_encoder.`."""
    names = {name: re.sub(r"^text_encoder\.bert\.", "text_encoder.", name) for name in state}
    unused = ("text_encoder.embeddings.position_ids", "text_encoder.cls.")
    return {names[name]: value for name, value in state.items() if not names[name].startswith(unused)}


def load_strict(build: Callable[[], Module], state: State, source: str) -> Module:
    """The module with exactly these weights, in evaluation mode. Raises BenchmarkError: a name or a shape differs."""
    with torch.device("meta"):
        module = build()
    expected = {name: value.shape for name, value in module.state_dict().items()}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # unused; old files lack them
    problems = {
        "missing": sorted(expected.keys() - state.keys() - counters),
        "unknown": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(
            f"{name} {tuple(state[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in state and state[name].shape != shape
        ),
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise BenchmarkError(f"{source}: not the weights of this network ({type(module).__name__}): {found}")
    zeros = {name: torch.zeros(expected[name], dtype=torch.long) for name in counters - state.keys()}
    module.load_state_dict({**state, **zeros}, assign=True)
    return module.eval().requires_grad_(False)


def _reason(error: Exception) -> str:
    """One line: of torch's pages about files with code, the one that names what was refused."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "Unsupported" in line), lines[0])


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
