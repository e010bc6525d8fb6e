"""Opens what is closed of standard input, output and error, as daemons and some init systems start processes.

Otherwise the next file or socket gets descriptor 0, 1 or 2, and what is printed goes into it.
"""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Call it before anything is opened."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one, because those below it are open by now.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)  # its only parameter
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115  # stays open
