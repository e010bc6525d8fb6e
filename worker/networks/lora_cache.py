"""LoRA files whose numbers stay in memory, so that jobs can use them again; the least recently used go first."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor

from service.catalog.adapters import Lora, Role
from service.catalog.selectable_loras import SelectableLora
from service.catalog.weight_files import file_sha256
from service.errors import ConfigurationError
from worker.networks.lora_file import LoraFile
from worker.networks.lora_layers import Adapter
from worker.networks.lora_names import Target
from worker.networks.network_classes import Network

MAX_BYTES = 2**30  # of all files in memory: seven of SD 1.5 with rank 128


class ResidentLora(LoraFile):
    """A LoRA file in memory, where later changes of the file do not matter.

    Raises ConfigurationError as `LoraFile`, and if the file changed while it was read.
    """

    def __init__(self, lora: Lora) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._adapters: dict[tuple[Target, Role], dict[str, Adapter]] = {}
        super().__init__(lora)
        self.sha256 = file_sha256(self.path)
        # `clone`, because safetensors maps the file, and a process that reads beyond a truncated file's end is killed
        self._tensors = {key: self._file.get_tensor(key).clone() for key in self._file.keys()}  # noqa: SIM118  not a dict
        self._file = None
        if file_sha256(self.path) != self.sha256:
            raise ConfigurationError(f"LoRA {self.path} changed while it was read")

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key].float() if self._tensors else super().tensor(key)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def adapters(self, target: Target, role: Role, network: Network) -> dict[str, Adapter]:
        if (target, role) not in self._adapters:
            self._adapters[target, role] = super().adapters(target, role, network)
        return self._adapters[target, role]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.nbytes for tensor in self._tensors.values())


class LoraCache:
    """
    Args:
        max_bytes: what may stay between two jobs. The LoRAs of a job are all in memory while they are merged.
    """

    def __init__(self, loras: Iterable[SelectableLora], max_bytes: int = MAX_BYTES) -> None:
        self.known = {lora.name: lora for lora in loras}
        self._max_bytes = max_bytes
        self._resident: OrderedDict[str, ResidentLora] = OrderedDict()
        self._sha256: dict[str, str] = {}  # of every file that was read, also if it is no longer in memory

    def get(self, name: str) -> ResidentLora:
        """Raises ConfigurationError if the file cannot be read, or is another one than at the first read."""
        if name not in self._resident:
            lora = self.known[name]
            found = ResidentLora(lora)
            expected = lora.file.sha256.get(lora.file.inside) or self._sha256.setdefault(name, found.sha256)
            if found.sha256 != expected:
                raise ConfigurationError(
                    f"LoRA {found.path} was changed while the worker ran; restart the worker, which checks it then"
                )
            self._sha256[name] = found.sha256
            self._resident[name] = found
        self._resident.move_to_end(name)
        return self._resident[name]

    def trim(self) -> None:
        """Drop the least recently used files until the others fit."""
        while sum(lora.size for lora in self._resident.values()) > self._max_bytes:
            self._resident.popitem(last=False)

    def digest(self, names: Iterable[str]) -> str:
        """Of the files of these LoRAs, which must have been read."""
        return hashlib.sha256(" ".join(self._sha256[name] for name in names).encode()).hexdigest()
