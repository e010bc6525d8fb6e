"""`python -m worker.child.ranks PIPE STORE PARENT`: a further rank, started by `launch`."""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from service.log_config import configure_logging
from service.process.parent_watch import end_with_parent
from service.process.quick_imports import quick_imports
from worker.child.ranks.orders import Place


def main(pipe: int, store: int, parent: int) -> None:
    end_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    with Connection(pipe) as connection:
        try:
            place: Place = connection.recv()
        except EOFError:
            return
        configure_logging(place.log_format)
        with quick_imports():
            from worker.child.ranks.follower import Follower  # imports torch

        Follower(connection, store, place).serve()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
