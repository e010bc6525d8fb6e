"""The outbox: ended jobs whose end nobody has told yet. Written inside the transaction that ends a job, so an end is
never lost; emptied inside the transaction that makes deliveries of it, so none is made twice. Knows no receiver.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis import Redis

from service.jobs.model import Job

OUTBOX = "ivm:outbox"
LISTENERS = "ivm:webhook:listeners"  # owners (JSON) with at least one endpoint: nothing is kept for the others

KEEP_S = 4 * 86400  # longer than the retries last; bounds the outbox where no courier runs

# For the store's scripts: tell(record, outbox, listeners, oldest) puts a copy of the whole record into the outbox, so
# that deleting the video right after its end does not delete the news of it.
TELL = """
local function tell(record, outbox, listeners, oldest)
  local owner, callback = unpack(redis.call('HMGET', record, 'owner', 'callback'))
  if callback or redis.call('SISMEMBER', listeners, owner or '"local"') == 1 then
    redis.call('XADD', outbox, 'MINID', '~', oldest, '*', unpack(redis.call('HGETALL', record)))
  end
end
"""

# KEYS: outbox. ARGV: entry, commands (JSON: a list of lists). Only the one who removes the entry runs the commands.
_SETTLE = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
for _, command in ipairs(cjson.decode(ARGV[2])) do redis.call(unpack(command)) end
return 1
"""

Command = Sequence[str]  # of Redis: name and arguments
Record = Mapping[bytes, bytes]  # field -> JSON


def oldest_kept() -> str:
    """The stream id before which entries may be dropped."""
    return str(int((time.time() - KEEP_S) * 1000))


class Outbox:
    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._settle_script = self._redis.register_script(_SETTLE)

    def read(self, limit: int) -> list[tuple[str, Record]]:
        """The oldest entries: their ids and the records of the jobs as they ended, as they lie there."""
        return [(entry.decode(), record) for entry, record in self._redis.xrange(OUTBOX, count=limit)]

    def depth(self) -> int:
        """Ends that are not told yet, and not made into deliveries."""
        return self._redis.xlen(OUTBOX)

    def settle(self, entry: str, commands: Sequence[Command] = ()) -> bool:
        """Remove an entry and run the commands, both or neither. False if somebody else was faster."""
        return bool(self._settle_script([OUTBOX], [entry, json.dumps(commands)]))


def job_of(record: Record) -> Job:
    """Raises ValueError for one that is damaged."""
    return Job.model_validate({field.decode(): json.loads(value) for field, value in record.items()})
