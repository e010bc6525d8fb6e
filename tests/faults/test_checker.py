"""The checker on synthetic histories: a good one passes, one that breaks a promise is caught for that promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults import aof, history
from tests.faults.checker import check
from tests.faults.history import History, Line
from tests.faults.report import recoveries
from tests.valkey import Valkey

V = "video_1"
OUTPUT = {"key": "videos/video_1/e1/video.mp4", "size_bytes": 3, "sha256": "abc"}


def line(who: str, what: str, *, t: float = 0.0, **details: Any) -> Line:
    return {"t": t, "wall": t, "who": who, "what": what, **details}


def state(state: str | None, execution: str | None = None, video: str = V) -> Line:
    return line("redis", "state", id=video, state=state, execution=execution)


def poll(status: str | None, *, t: float, answer: int = 200, code: str | None = None) -> Line:
    return line("client-0", "poll", t=t, id=V, answer=answer, status=status, code=code, s=0.1)


def webhook(webhook_id: str = "whd_1", kind: str = "video.completed", answer: int = 204) -> Line:
    return line("receiver", "webhook", id=V, webhook_id=webhook_id, type=kind, answer=answer, signed=True)


SUBMITTED = line("client-0", "submit", t=1.0, id=V, key="k1", answer=200, status="queued", code=None, s=0.1)
STATES = [state("queued"), state("running", "e1"), state("completed", "e1")]
STORED = line("final", "object", key=OUTPUT["key"], size=3, sha256="abc")
RECORD = line("final", "record", id=V, state="completed", attempt=1, output=OUTPUT)
POLLS = [poll("in_progress", t=2.0), poll("completed", t=3.0), poll("completed", t=4.0)]
DELETED = line("client-0", "delete", t=5.0, id=V, answer=200, status=None, code=None, s=0.1)


def history_of(
    *,
    states: list[Line] = STATES,
    polls: list[Line] = POLLS,
    webhooks: list[Line] | None = None,
    last: tuple[Line, ...] = (RECORD, STORED),
    more: tuple[Line, ...] = (),
) -> list[Line]:
    deliveries = [webhook()] if webhooks is None else webhooks
    return [line("run", "settings", max_attempts=3), SUBMITTED, *polls, *deliveries, *states, *more, *last]


def broken(lines: list[Line]) -> set[str]:
    return {violation.invariant for violation in check(lines)}


GOOD = {
    "completed": history_of(),
    "cancelled while queued": history_of(
        states=[state("queued"), state("cancelled")],
        polls=[poll("failed", t=2.0, code="cancelled")],
        webhooks=[webhook(kind="video.failed")],
        last=(line("final", "record", id=V, state="cancelled", attempt=0, output=None),),
    ),
    "killed, requeued, completed": history_of(
        states=[state("queued"), state("running", "e0"), state("queued"), state("running", "e1"), STATES[-1]]
    ),
    "deleted after it completed": history_of(
        states=[*STATES, state(None, "e1")], more=(DELETED, poll(None, t=6.0, answer=404)), last=()
    ),
    "a response was lost": history_of(more=(line("client-0", "submit", key="k1", error="ReadTimeout", s=8.0),)),
    "delivered in the second attempt": history_of(webhooks=[webhook(answer=0), webhook()]),
    "receiver is gone": history_of(webhooks=[webhook(answer=410)]),
    "corrupted": history_of(
        states=[state("queued"), state("failed"), state(None)],
        polls=[],
        webhooks=[],
        last=(),
        more=(line("nemesis", "corrupted", id=V),),
    ),
    "its worker logged the commit": history_of(more=(line("worker-0", "commit", id=V, execution="e1"),)),
    "killed on purpose": history_of(more=(line("cluster", "ended", name="api", code=-9, by="hit"),)),
}

BAD = {
    "never terminal": ("I1", history_of(states=STATES[:2], polls=POLLS[:1], webhooks=[], last=())),
    "two terminal states": ("I1", history_of(states=[*STATES, state("failed", "e1")])),
    "record is lost": ("I1", history_of(states=[*STATES, state(None, "e1")], last=())),
    "record was never written": ("I1", history_of(states=[], polls=[], webhooks=[], last=())),
    "client gets a 404": ("I1", history_of(polls=[*POLLS, poll(None, t=5.0, answer=404)])),
    "corrupted and never terminal": (
        "I1",
        history_of(states=[state("queued")], webhooks=[], last=(), more=(line("nemesis", "corrupted", id=V),)),
    ),
    "terminal state changes in the record": ("I2", history_of(states=[*STATES, state("queued")])),
    "terminal state changes to a client": (
        "I2",
        history_of(polls=[*POLLS, poll("failed", t=5.0, code="worker_lost")]),
    ),
    "terminal state is revoked for a client": ("I2", history_of(polls=[*POLLS, poll("in_progress", t=5.0)])),
    "file is missing": ("I3", history_of(last=(RECORD,))),
    "file has other bytes": ("I3", history_of(last=(RECORD, {**STORED, "sha256": "xyz"}))),
    "file has another size": ("I3", history_of(last=(RECORD, {**STORED, "size": 2}))),
    "completed without a file": ("I3", history_of(last=({**RECORD, "output": None},))),
    "one key, two videos": (
        "I4",
        history_of(
            more=(
                {**SUBMITTED, "id": "video_2"},
                *(state(s, e, "video_2") for s, e in (("queued", None), ("cancelled", None))),
                {**webhook(kind="video.failed"), "id": "video_2"},
                {**RECORD, "id": "video_2", "state": "cancelled", "output": None},
            )
        ),
    ),
    "too many attempts": ("I5", history_of(last=({**RECORD, "attempt": 5}, STORED))),
    "no webhook": ("I6", history_of(webhooks=[])),
    "no successful webhook": ("I6", history_of(webhooks=[webhook(answer=0)])),
    "two webhook-ids": ("I6", history_of(webhooks=[webhook(), webhook("whd_2")])),
    "wrong event": ("I6", history_of(webhooks=[webhook(kind="video.failed")])),
    "wrong signature": (
        "I6",
        history_of(webhooks=[webhook(), line("receiver", "webhook", webhook_id="whd_1", signed=False, answer=204)]),
    ),
    "two executions commit": ("I7", history_of(states=[*STATES, state("completed", "e2")])),
    "a zombie commits": (
        "I7",
        history_of(states=[*STATES[:2], state("queued"), state("running", "e2"), state("completed", "e1")]),
    ),
    "two log a commit": (
        "I7",
        history_of(more=tuple(line(f"worker-{i}", "commit", id=V, execution=f"e{i}") for i in (1, 2))),
    ),
    "a zombie logs a commit": ("I7", history_of(more=(line("worker-0", "commit", id=V, execution="e0"),))),
    "taken from its owner": ("I7", history_of(states=[*STATES[:2], state("running", "e2"), state("completed", "e2")])),
    "process crashes": ("I8", history_of(more=(line("cluster", "ended", name="dispatcher-0", code=1, by="itself"),))),
    "process does not stop": ("I8", history_of(more=(line("cluster", "does not stop", name="worker-0"),))),
    "process stops with an error": ("I8", history_of(more=(line("cluster", "stopped", name="worker-0", code=1),))),
    "a second ivmix up that is not refused": (
        "I10",
        history_of(more=(line("nemesis", "repaired", kind="second ivmix up", exit_code=0, refused=False),)),
    ),
    "a revoked key that still works": (
        "I9",
        history_of(more=(line("nemesis", "repaired", kind="key revoked", target="client-0", old_key_answer=200),)),
    ),
}


@pytest.mark.parametrize("lines", GOOD.values(), ids=GOOD)
def test_history_that_keeps_all_promises_passes(lines: list[Line]) -> None:
    assert check(lines) == []


@pytest.mark.parametrize(("invariant", "lines"), BAD.values(), ids=BAD)
def test_broken_promise_is_caught(invariant: str, lines: list[Line]) -> None:
    assert invariant in broken(lines)


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = History(tmp_path / "history.jsonl")
    written.record("client-0", "poll", id=V, answer=200)
    written.close()
    written.record("client-0", "poll", id="too late")
    (found,) = history.read(written.path)
    assert {name: found[name] for name in ("who", "what", "id", "answer")} == {
        "who": "client-0",
        "what": "poll",
        "id": V,
        "answer": 200,
    }


def test_redis_log_has_every_state_also_those_of_a_script_and_from_before_it_was_killed(tmp_path: Path) -> None:
    from redis import Redis

    script = "redis.call('HSET', KEYS[1], 'state', '\"running\"'); redis.call('HSET', KEYS[1], 'state', '\"failed\"')"
    with Valkey(tmp_path) as server, Redis.from_url(server.url) as redis:
        redis.hset("ivm:job:v", mapping={"state": '"queued"', "execution_id": '"e1"'})
        redis.eval(script, 1, "ivm:job:v")
        server.kill()
        server.start()
        redis.hset("ivm:job:v", "state", "garbage")
        redis.hset("ivm:job:v", "step", "1")
        redis.delete("ivm:job:v", "another")
    found = list(aof.transitions(tmp_path / "appendonlydir"))
    assert [line["state"] for line in found] == ["queued", "running", "failed", "garbage", None]
    assert {(line["id"], line["execution"]) for line in found} == {("v", "e1")}


def test_truncated_log_is_read_up_to_its_last_whole_command(tmp_path: Path) -> None:
    whole = b'*4\r\n$4\r\nHSET\r\n$9\r\nivm:job:v\r\n$5\r\nstate\r\n$8\r\n"queued"\r\n'
    (tmp_path / "appendonly.aof.1.incr.aof").write_bytes(b"#TS:1\r\n" + whole + b"*4\r")
    assert [line["state"] for line in aof.transitions(tmp_path)] == ["queued"]


def test_victim_has_recovered_when_another_worker_runs_it() -> None:
    def seen(t: float, state: str, execution: str | None) -> Line:
        return line("observer", "job", t=t, id=V, state=state, execution_id=execution)

    fault = line("nemesis", "fault", t=2.0, kind="kill -9 parent", victim=V)
    lines = [seen(1.0, "running", "e1"), fault, seen(5.0, "queued", None), seen(6.5, "running", "e2")]
    assert recoveries(lines) == {"kill -9 parent": [4.5]}
