"""Redis keys of jobs."""

from __future__ import annotations

import hashlib

INDEX = "ivm:jobs"  # sorted set of all job ids, with equal scores: they sort by id, that is by age
ACTIVE = "ivm:active"  # ids of all jobs that have not ended, and of ended ones until retention takes them over

ENDED = "ivm:ended"  # sorted set: ids of ended and deleted jobs, scored by the unix time of their next clean-up


def job_key(job_id: str) -> str:
    """Return the key of a record: a hash with one JSON value per field of `Job`; None is null or absent."""
    return f"ivm:job:{job_id}"


def owner_index(owner: str) -> str:
    """Return the key of the index of one owner's jobs, a sorted set like INDEX."""
    return f"ivm:jobs:{owner}"


# Sorted sets like INDEX, from which filtered lists are answered: ids of the jobs ...
MODEL_INDEX = "ivm:index:model:"  # ... of a model, by its id
STATE_INDEX = "ivm:index:state:"  # ... in a state
METADATA_INDEX = "ivm:index:metadata:"  # ... with a pair of metadata, by its hash

INDEXED = "ivm:index:complete"  # exists if every job is in these indexes; else lists read records instead
DELETED = "ivm:deleted"  # sorted set of recently deleted job ids, scored by unix time: a list may go on after them


def metadata_index(name: str, value: str) -> str:
    """Return the key of the index of a pair of metadata; shared/indexes.lua computes the same."""
    pair = f"{len(name.encode())}:{name}{value}"
    return f"{METADATA_INDEX}{hashlib.sha1(pair.encode(), usedforsecurity=False).hexdigest()}"


def waiting_key(owner: str) -> str:
    """Return the key of the set of one owner's queued jobs; `create` removes those that are no longer queued."""
    return f"ivm:waiting:{owner}"


def lease_key(job_id: str) -> str:
    """Return the key of a running job's lease, which holds the execution id.

    It expires by Redis' clock unless the worker renews it. Expiry alone changes no state: the lost-job reaper requeues
    the job by the same compare-and-set as any other change.
    """
    return f"ivm:lease:{job_id}"


def preview_key(job_id: str) -> str:
    """Return the key of a running job's newest preview, a WebP file. It is deleted when the execution ends, and expires
    soon after the lease in case nothing does that."""
    return f"ivm:preview:{job_id}"


def idempotency_key(owner: str, key: str) -> str:
    """Return the key of the hash that holds the job id and the fingerprint of the first request with this key."""
    return f"ivm:idem:{owner}:{key}"


def durations_key(model: str) -> str:
    """Return the key of the list of [completion in unix seconds, seconds spent] of a model's last videos."""
    return f"ivm:finished:{model}"


def loads_key(model: str) -> str:
    """Return the key of the hash of workers that have not loaded this model; see shared/model_loads.lua."""
    return f"ivm:loads:{model}"
