"""A file that a process touches periodically, for liveness probes of processes without an HTTP port.

The main loop touches it. An HTTP endpoint would keep responding from its own thread while the main loop hangs. A worker
also writes into it whether its models are loaded, for readiness probes. The same calls notify systemd's watchdog.
"""

from __future__ import annotations

from pathlib import Path

from service.errors import ConfigurationError
from service.process.service_manager import ServiceManager


class HeartbeatFile:
    def __init__(self, file: Path | None = None, manager: ServiceManager | None = None) -> None:
        """
        Args:
            file: None disables the heartbeat.
            manager: informed as well; None: not.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        self._file, self._manager = file, manager or ServiceManager()
        if file is None:
            return
        if not file.parent.is_dir():
            raise ConfigurationError(f"IVMIX_PULSE_FILE={file}: the folder {file.parent} does not exist; create it")
        try:
            file.unlink(missing_ok=True)  # left by an earlier process in the same container
        except OSError as e:
            raise ConfigurationError(f"IVMIX_PULSE_FILE={file}: {e.strerror}; use another path") from e

    @classmethod
    def of_process(cls, file: Path | None) -> HeartbeatFile:
        """That of the main loop, which systemd's watchdog observes too. Raises as the constructor does."""
        return cls(file, ServiceManager.of_environment())

    def beat(self) -> None:
        if self._file is not None:
            self._file.touch()
        self._manager.beat()

    def set_ready(self, *, is_ready: bool) -> None:
        """Write `ready` or `not ready` into the file."""
        if self._file is not None:
            self._file.write_text("ready\n" if is_ready else "not ready\n")
        self._manager.set_status("models loaded" if is_ready else "loading the models")
