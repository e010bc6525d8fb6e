"""The state of a run between two steps, and its file: safetensors, with a checksum and the fingerprint of what it is
the state of. Any other file is rejected. Independent of jobs and storage.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# safetensors is typed in part.
from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("ivmix.child")

ShapeAfter = Callable[[int], Sequence[int]]
LATENTS, RNG, MEMORY = "latents", "rng", "memory."


@dataclass(frozen=True)
class Checkpoint:
    """`step` steps are done; latents (1, C, F, h, w), what the sampler remembers, the state of its generator."""

    fingerprint: str
    step: int
    latents: Tensor
    memory: Mapping[str, Tensor]
    rng: Tensor

    @property
    def is_finite(self) -> bool:
        """Waits for the device."""
        return all(bool(x.isfinite().all()) for x in (self.latents, *self.memory.values()))

    def write(self, path: Path) -> None:
        """Waits for the device."""
        named = {LATENTS: self.latents, RNG: self.rng, **{MEMORY + name: x for name, x in self.memory.items()}}
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in named.items()}
        metadata = {"fingerprint": self.fingerprint, "step": str(self.step)}
        save_file(tensors, path, {**metadata, "sha256": _digest(tensors, metadata)})

    @classmethod
    def read(
        cls,
        path: Path,
        fingerprints: Collection[str],
        shape_after: Callable[[int], Sequence[int]],
        device: torch.device,
    ) -> Self | None:
        """None, with a log line, if the file is corrupt or belongs to another run.

        Args:
            shape_after: of the latents, by the number of steps that are done.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = dict(file.metadata() or {})
                names: list[str] = list(file.keys())
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
            sha256 = metadata.pop("sha256")
            if _digest(tensors, metadata) != sha256:
                raise ValueError("checksum mismatch")
            if metadata["fingerprint"] not in fingerprints:
                raise ValueError("checkpoint of another run: model, request or software version differ")
            latents, step = tensors[LATENTS], int(metadata["step"])
            shape = tuple(shape_after(step))
            if tuple(latents.shape) != shape or not latents.isfinite().all():
                raise ValueError(f"its latents {tuple(latents.shape)} are not finite ones of {shape}")
            memory = {name.removeprefix(MEMORY): x.to(device) for name, x in tensors.items() if name.startswith(MEMORY)}
            return cls(metadata["fingerprint"], step, latents.to(device), memory, tensors[RNG])
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            log.warning("checkpoint not used: %s", e)
            return None


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()
