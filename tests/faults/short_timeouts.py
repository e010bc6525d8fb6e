"""`python -m tests.faults.short_timeouts MODULE ..` runs a module of ours with timeouts of seconds, not minutes.

It shortens only timeouts that no setting controls. FAKE_CLOCK_S shifts the process's clock by that many seconds.
"""

from __future__ import annotations

import importlib
import sys

from tests.skewed_clock import skew_clock


def shorten_timeouts() -> None:
    from service import wiring
    from service.maintenance import leader as maintenance
    from service.maintenance import retention
    from service.webhooks import deliveries

    _defaults(wiring.open_redis)(reply_timeout_s=1.5, connect_timeout_s=1.0)
    _defaults(maintenance.MaintenanceLeader.__init__)(lock_ttl_s=3.0, renew_s=1.0)
    retention.RETRY_S = 3.0
    deliveries.CLAIM_S = 5.0  # type: ignore[assignment]
    deliveries.GRACE_S = 2.0


def _defaults(function):
    return function.__kwdefaults__.update


if __name__ == "__main__":
    del sys.argv[0]
    skew_clock()
    shorten_timeouts()
    sys.exit(importlib.import_module(sys.argv[0]).main())
