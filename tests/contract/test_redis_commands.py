"""The permissions that every process checks at its start include each command of our scripts."""

from __future__ import annotations

import re

from service.redis_connection.permissions import commands_on
from tests.containers import ROOT


def test_every_command_of_a_script_is_checked_at_the_start() -> None:
    scripts = "\n".join(file.read_text() for file in sorted((ROOT / "service").rglob("*.lua")))
    used = set(re.findall(r"call\('([A-Z]+)'", scripts))
    assert {"HSET", "ZADD"} <= used
    assert used <= {command[0] for command in commands_on("ivm:x")}
