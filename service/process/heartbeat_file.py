"""A file that a process touches periodically, for liveness probes of processes without an HTTP port.

The main loop touches it. An HTTP endpoint would keep responding from its own thread while the main loop hangs. A worker
also writes into it whether its models are loaded, for readiness probes.
"""

from __future__ import annotations

from pathlib import Path

from service.errors import ConfigurationError


class HeartbeatFile:
    def __init__(self, file: Path | None = None) -> None:
        """
        Args:
            file: None disables the heartbeat.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        self._file = file
        if file is None:
            return
        if not file.parent.is_dir():
            raise ConfigurationError(f"IVMIX_PULSE_FILE={file}: the folder {file.parent} does not exist; create it")
        try:
            file.unlink(missing_ok=True)  # left by an earlier process in the same container
        except OSError as e:
            raise ConfigurationError(f"IVMIX_PULSE_FILE={file}: {e.strerror}; use another path") from e

    def beat(self) -> None:
        if self._file is not None:
            self._file.touch()

    def set_ready(self, *, is_ready: bool) -> None:
        """Write `ready` or `not ready` into the file."""
        if self._file is not None:
            self._file.write_text("ready\n" if is_ready else "not ready\n")
