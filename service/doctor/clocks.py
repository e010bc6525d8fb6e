"""How far clocks may differ. Leases and webhook times go by Redis' clock; creation times, signatures of S3 requests
and of webhooks by that of each machine."""

from __future__ import annotations

from service.doctor.finding import Finding, ok, problem, warning

NOTABLE_S = 2.0
HARMFUL_S = 30.0


def clock_finding(whose: str, skew_s: float, *, precision_s: float = 0.1) -> Finding:
    """
    Args:
        skew_s: how much that clock is ahead of this machine's, in seconds; negative if it is behind.
        precision_s: how exactly that is known.
    """
    off = abs(skew_s)
    if off < NOTABLE_S + precision_s:
        return ok("clock", f"{whose} agrees with this machine's")
    message = f"{whose} is {off:.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    advice = "start NTP (chrony, systemd-timesyncd) on both machines"
    return problem("clock", message, advice) if off > HARMFUL_S else warning("clock", message, advice)
