"""Maps exceptions of loading to one sentence for the operator, and one without folders of the server for clients."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from service.catalog.registry import ModelRegistry
from service.errors import ServiceError
from service.settings import Settings
from worker.messages import CannotLoad

OUT_OF_MEMORY = "There is not enough memory to load it."
INTERNAL_ERROR = "Loading it failed with an internal error; see the server log."
MAX_SHOWN = 500  # characters of a sentence for clients

# An absolute path up to its last folder but one; of /srv/models/unet/config.json it leaves unet/config.json.
_FOLDERS = re.compile(r"(?<![\w.~/-])~?/(?:[^\s/'\"]+/)*(?=[^\s/'\"]+/[^\s/'\"]+)")


def cannot_load(e: Exception, settings: Settings) -> CannotLoad:
    """The message for an exception that was raised while the models were loading."""
    if isinstance(e, ServiceError):  # the files, or the entry: only people can change them
        return CannotLoad(e.message, without_folders(e.message, _folders(settings)), is_final=True)
    reason = f"{type(e).__name__}: {e}"
    if _is_out_of_memory(e):
        return CannotLoad(f"{OUT_OF_MEMORY} ({reason})", OUT_OF_MEMORY)
    details = "".join(traceback.format_exception(e))
    return CannotLoad(reason, INTERNAL_ERROR, details=details)


def without_folders(message: str, folders: Iterable[Path]) -> str:
    """The message in one line, with paths that begin with their last folder; `folders` may contain spaces."""
    for folder in sorted(map(str, folders), key=len, reverse=True):
        message = message.replace(f"{folder.rstrip('/')}/", "")
    return _FOLDERS.sub("", " ".join(message.split()))[:MAX_SHOWN]


def _folders(settings: Settings) -> set[Path]:
    """All folders above the files of models."""
    try:
        entries = ModelRegistry.of(settings).known.values()
    except ServiceError:
        entries = ()
    components = (part.path for entry in entries for part in entry.all_components.values())
    places = {settings.models_file, *components, *(entry.path for entry in entries)}
    above = {folder for place in places if place is not None for folder in place.absolute().parents}
    return (above | {settings.weights_dir.absolute()}) - {Path("/")}


def _is_out_of_memory(e: Exception) -> bool:
    torch = sys.modules.get("torch")  # if it cannot be imported, that is the failure
    return isinstance(e, MemoryError) or (torch is not None and isinstance(e, torch.OutOfMemoryError))
