"""Which kernel computes attention: by diffusers' dispatcher where a network asks it, else by torch's own choice."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

from service.catalog.optimise import AttentionBackend
from service.errors import ConfigurationError
from worker.networks.network_classes import Network, errors_only

KERNELS = {
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_math": SDPBackend.MATH,
}


class AttentionSwitch:
    """Sets the backend of one network, and back.

    diffusers' UNets and CogVideoX call torch's attention directly, where a backend is preferred: shapes that it cannot
    compute, such as short rows of motion modules, take the next one. Wan's dispatcher raises for such shapes.
    """

    def __init__(self, network: Network) -> None:
        self._network, self._preferred = network, list[SDPBackend]()
        processors = (getattr(module, "processor", None) for module in network.modules())
        self.has_dispatcher = any(hasattr(processor, "_attention_backend") for processor in processors)
        self._name: AttentionBackend = "native"

    def use(self, name: AttentionBackend) -> None:
        """Raises ConfigurationError if the network or this machine has no such backend."""
        if name == self._name:
            return
        if self.has_dispatcher:
            self._dispatch(name)
        elif name in KERNELS:
            others = [] if name == "_native_math" else [kernel for other, kernel in KERNELS.items() if other != name]
            self._preferred = [KERNELS[name], *others]  # math computes every shape; a CPU prefers flash where it is on
        elif name == "native":
            self._preferred = []
        else:
            kind, known = type(self._network).__name__, ", ".join(("native", *KERNELS))
            raise ConfigurationError(f"optimise.attention_backend={name}: {kind} has none of this name; use {known}")
        self._name = name

    def active(self) -> AbstractContextManager[object]:
        return sdpa_kernel(self._preferred, set_priority=True) if self._preferred else nullcontext()

    def _dispatch(self, name: AttentionBackend) -> None:
        try:
            with errors_only("diffusers"):
                self._network.set_attention_backend(name)
        except (ImportError, RuntimeError, ValueError) as e:
            raise ConfigurationError(f"optimise.attention_backend={name} cannot be used here: {e}") from e
