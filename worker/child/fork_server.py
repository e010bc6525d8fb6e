"""Imported by the fork server of a worker before anything else; `worker.parent.child_process` names this module."""

from __future__ import annotations

import signal

# Like SIGINT, which multiprocessing ignores here: one for all processes of the worker is for its parent, which drains.
# Without its fork server the child would end at once.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

IMPORT_TIMEOUT_S = 300.0  # torch from a cold network disk takes minutes
