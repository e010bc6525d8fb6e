"""Checks the promises from a history alone: client responses, the Redis log and the final contents of the storage.

I1  every accepted video reaches exactly one terminal state and is not lost
I2  a terminal state never changes, neither in the record nor for clients
I3  a completed video's file is stored with the size and SHA-256 of its record
I4  one idempotency key creates at most one video
I5  no video is attempted more often than allowed, not counting drains
I6  every terminal state is delivered at least once, under one webhook-id, signed, as the right event
I7  a video belongs to one execution at a time, and only one commits
I8  no process exits unexpectedly, and each stops on SIGTERM
I9  a revoked key is refused once other processes may no longer remember it
I10 a second `ivmix up` on one data folder is refused
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.faults.history import Line

ENDS = ("completed", "failed", "cancelled")
SPARE_ATTEMPTS = 1  # a worker that dies between dequeuing and starting is charged one unseen attempt
EVENT = {"completed": "video.completed", "failed": "video.failed", "cancelled": "video.failed"}
DELIVERED = (204, 410)  # 410 also ends delivery: the receiver wants no further events


class Violation(NamedTuple):
    invariant: str
    id: str
    text: str


@dataclass
class Video:
    """The history of one video, each list in chronological order."""

    states: list[tuple[str | None, str | None]] = field(default_factory=list)  # from the Redis log: state, execution
    responses: list[Line] = field(default_factory=list)  # to clients
    webhooks: list[Line] = field(default_factory=list)
    commits: set[str] = field(default_factory=set)  # executions whose worker logged a commit
    record: Line | None = None
    is_accepted: bool = False
    is_corrupted: bool = False
    delete_asked_at: float | None = None

    @property
    def ends(self) -> list[str]:
        return [state for state, _ in self.states if state in ENDS]


def check(lines: Sequence[Line]) -> list[Violation]:
    videos, objects = _videos(lines), _objects(lines)
    found = [
        Violation(invariant, video_id, text)
        for video_id, video in videos.items()
        for invariant, check_video in CHECKS.items()
        for text in check_video(video, objects, _most_attempts(lines))
    ]
    return sorted([*found, *_reused_keys(lines), *_processes(lines)])


Check = Callable[[Video, dict[str, Line], int], Iterator[str]]


def _one_terminal_state(video: Video, _objects: dict[str, Line], _attempts: int) -> Iterator[str]:
    if not video.ends and (video.is_accepted or video.states):
        yield "never reached a terminal state"
    if len(video.ends) > 1:
        yield f"reached {len(video.ends)} terminal states: {', '.join(video.ends)}"
    if video.is_corrupted:
        return  # an unreadable record is given up
    gone = video.states and video.states[-1][0] is None
    if (gone or not video.states) and video.delete_asked_at is None:
        yield "its record is gone without a delete request"
    for line in video.responses:
        if line.get("answer") == 404 and (video.delete_asked_at is None or line["t"] < video.delete_asked_at):
            yield f"{line['who']} got a 404"


def _terminal_state_is_final(video: Video, _objects: dict[str, Line], _attempts: int) -> Iterator[str]:
    end = None
    for state, _ in video.states:
        if end is not None and state not in (end, None):
            yield f"the record went from {end} to {state}"
        end = state if state in ENDS else end
    seen = None
    for line in sorted(video.responses, key=lambda line: line["t"]):
        now = (line.get("status"), line.get("code"))
        if seen is not None and line.get("answer") == 200 and now[0] and now != seen:
            yield f"{line['who']} got {seen}, then {now}"
        if now[0] in ("completed", "failed"):
            seen = now


def _file_is_stored(video: Video, objects: dict[str, Line], _attempts: int) -> Iterator[str]:
    if video.record is None or video.record["state"] != "completed" or video.is_corrupted:
        return
    output = video.record["output"]
    if output is None:
        yield "completed without a file"
    elif (stored := objects.get(output["key"])) is None:
        yield f"{output['key']} is missing"
    elif (stored["size"], stored["sha256"]) != (output["size_bytes"], output["sha256"]):
        yield f"{output['key']} differs from its record"


def _attempts_bounded(video: Video, _objects: dict[str, Line], most: int) -> Iterator[str]:
    if video.record is not None and not video.is_corrupted and video.record["attempt"] > most + SPARE_ATTEMPTS:
        yield f"{video.record['attempt']} attempts"


def _webhook_is_delivered(video: Video, _objects: dict[str, Line], _attempts: int) -> Iterator[str]:
    if video.is_corrupted or not video.ends:
        return
    if not any(line["answer"] in DELIVERED for line in video.webhooks):
        yield f"no webhook delivered in {len(video.webhooks)} attempts"
    if len(ids := {line["webhook_id"] for line in video.webhooks}) > 1:
        yield f"delivered under {len(ids)} webhook-ids"
    for line in video.webhooks:
        if line["type"] != EVENT[video.ends[0]]:
            yield f"{video.ends[0]}, but the event is {line['type']}"


def _one_commits(video: Video, _objects: dict[str, Line], _attempts: int) -> Iterator[str]:
    owner, commits = None, 0
    for state, execution in video.states:
        match state:
            case "running":
                if owner is not None:
                    yield f"taken from {owner} by {execution} without being requeued"
                owner = execution
            case "completed":
                commits += 1
                if execution != owner:
                    yield f"committed by {execution}, but it belonged to {owner}"
            case "queued":
                owner = None
            case _:
                pass
    if commits > 1:
        yield f"committed {commits} times"
    if len(video.commits) > 1:
        yield f"{len(video.commits)} executions logged a commit: {', '.join(sorted(video.commits))}"
    if owner is not None and video.commits - {owner}:
        yield f"{video.commits} committed what belonged to {owner}"


CHECKS: dict[str, Check] = {
    "I1": _one_terminal_state,
    "I2": _terminal_state_is_final,
    "I3": _file_is_stored,
    "I5": _attempts_bounded,
    "I6": _webhook_is_delivered,
    "I7": _one_commits,
}


def _reused_keys(lines: Sequence[Line]) -> Iterator[Violation]:
    made: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if line["what"] == "submit" and line.get("key") and line.get("id"):
            made[line["key"]].add(line["id"])
    for key, ids in made.items():
        if len(ids) > 1:
            yield Violation("I4", key, f"created {len(ids)} videos: {', '.join(sorted(ids))}")


def _processes(lines: Sequence[Line]) -> Iterator[Violation]:
    for line in lines:
        match line:
            case {"who": "cluster", "what": "ended", "by": "itself", "name": name, "code": code}:
                yield Violation("I8", name, f"exited unexpectedly with code {code}")
            case {"who": "cluster", "what": "stopped", "name": name, "code": code} if code not in (0, -15):
                yield Violation("I8", name, f"stopped with exit code {code}")
            case {"who": "cluster", "what": "does not stop", "name": name}:
                yield Violation("I8", name, "does not stop")
            case {"who": "nemesis", "kind": "key revoked", "old_key_answer": 200}:
                yield Violation("I9", line["target"], "its revoked key still works")
            case {"who": "nemesis", "what": "repaired", "kind": "second ivmix up", "refused": False}:
                yield Violation(
                    "I10", "ivmix up", f"a second one ran on the same folder, exit code {line['exit_code']}"
                )
            case {"who": "receiver", "signed": False}:
                yield Violation("I6", str(line["webhook_id"]), f"a webhook with a wrong signature: {line.get('error')}")
            case _:
                pass


def _videos(lines: Sequence[Line]) -> dict[str, Video]:
    videos: dict[str, Video] = defaultdict(Video)
    for line in lines:
        match line:
            case {"who": "redis", "what": "state", "id": video_id}:
                videos[video_id].states.append((line["state"], line["execution"]))
            case {"who": "final", "what": "record", "id": video_id}:
                videos[video_id].record = line
            case {"who": "receiver", "id": video_id}:
                videos[video_id].webhooks.append(line)
            case {"what": "commit", "id": video_id}:
                videos[video_id].commits.add(line["execution"])
            case {"who": "nemesis", "what": "corrupted", "id": video_id}:
                videos[video_id].is_corrupted = True
            case {"what": "submit" | "poll" | "cancel" | "delete", "id": video_id}:
                _add_response(videos[video_id], line)
            case _:
                pass
    return dict(videos)


def _add_response(video: Video, line: Line) -> None:
    video.responses.append(line)
    if line["what"] == "submit":
        video.is_accepted |= line["answer"] == 200
    if line["what"] == "delete" and video.delete_asked_at is None:
        video.delete_asked_at = line["t"] - line.get("s", 0)


def _objects(lines: Sequence[Line]) -> dict[str, Line]:
    return {line["key"]: line for line in lines if (line["who"], line["what"]) == ("final", "object")}


def _most_attempts(lines: Sequence[Line]) -> int:
    return next((int(line["max_attempts"]) for line in lines if line["what"] == "settings"), 3)


def ends_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Terminal states by video id."""
    return {video_id: video.ends[0] for video_id, video in _videos(lines).items() if video.ends}
