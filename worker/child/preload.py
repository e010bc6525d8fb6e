"""What the fork server of a worker imports, so that a child that replaces another one begins with its models.

Nothing here may start CUDA or a thread that stays: a fork copies neither.
"""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress
from importlib import import_module

from service.process.quick_imports import quick_imports
from worker.child.fork_server import IMPORT_TIMEOUT_S

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, which would start threads; torch has its own

# An import that hangs ends this process, also inside C code, and says where it hangs. The worker starts another one.
faulthandler.dump_traceback_later(IMPORT_TIMEOUT_S, exit=True)
with quick_imports(), suppress(Exception):  # the child imports it again, and reports what is wrong
    for name in ("worker.child.engine", "worker.child.main"):
        import_module(name)
faulthandler.cancel_dump_traceback_later()
