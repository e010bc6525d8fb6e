"""A sign of life on the disk: a file that a process touches while it goes round. A probe looks at how old it is.

For processes without a port. A thread that answers HTTP would go on answering while the one that works hangs.
"""

from __future__ import annotations

from pathlib import Path

from service.errors import ConfigurationError


class HeartbeatFile:
    """Without a file it does nothing. Raises ConfigurationError if the file cannot be there."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        if file is None:
            return
        if not file.parent.is_dir():
            raise ConfigurationError(f"IVMIX_PULSE_FILE={file}: there is no folder {file.parent}; use another")
        try:
            file.unlink(missing_ok=True)  # an earlier process' in the same container is no sign of our life
        except OSError as e:
            raise ConfigurationError(f"IVMIX_PULSE_FILE={file}: {e.strerror}; use another") from e

    def beat(self) -> None:
        if self._file is not None:
            self._file.touch()
