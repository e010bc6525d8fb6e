"""With this folder on PYTHONPATH, the child of every worker gets the engine of tests/drawing_engine.py, without torch.

For tests of what the processes around it show and do. If LOAD_ERROR is set, the engine does not load, for that reason;
if LOAD_ERRORS is set, models do not load that have a file of their name, with the reason, in that folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def light_engine(entry: Any, _on: Any = None, *, previews: bool = False) -> Any:
    from service.errors import ConfigurationError
    from tests.drawing_engine import DrawingEngine

    if reason := os.environ.get("LOAD_ERROR"):
        raise ConfigurationError(reason)
    if (file := Path(os.environ.get("LOAD_ERRORS", "/nowhere"), entry.id)).exists():
        raise ConfigurationError(file.read_text())
    return DrawingEngine()


def replace(name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


replace("worker.child.engine", Engine=light_engine)
replace("worker.child.tuning.start", configure=lambda *_args: None)  # there is nothing to measure
