"""The audit log has every action of an administrator: who, what, when; in the log and in Redis."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from rq import Queue

from service.api_keys import Scope
from service.audit_log import AUDIT, KEPT, AuditEntry, AuditLog
from service.jobs.store import JobStore
from service.maintenance.recovery import LOST_AFTER_S
from service.process.command_audit import record_from_command
from service.settings import Settings
from service.settings_audit import note_settings
from service.wiring import Services
from tests.api_calls import services_for
from tests.commands import ivmix_here
from tests.factories import create_job
from tests.ports import free_port
from tests.processes import clean_environment
from tests.quick_app import quick_app


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": "keys"})


def entries(services: Services) -> list[AuditEntry]:
    return list(AuditLog(services.redis).newest_first())


def run(services: Services, tmp_path: Path, *arguments: str, returncode: int = 0, **more: str) -> str:
    environment = clean_environment() | {"IVMIX_REDIS_URL": services.redis_url, "IVMIX_DATA_DIR": str(tmp_path)} | more
    ran = ivmix_here(*arguments, cwd=tmp_path, environment=environment)
    assert ran.returncode == returncode, ran.stderr
    return ran.stdout


def test_commands_are_recorded_and_shown(services: Services, tmp_path: Path) -> None:
    secret = run(services, tmp_path, "keys", "create", "--name", "dash").strip()
    (key, _), *_ = services.keys.list()
    run(services, tmp_path, "keys", "revoke", key.id)
    run(services, tmp_path, "backup", str(tmp_path))
    run(services, tmp_path, "recover")
    record_from_command(services.settings, "model.added", "mine", source="folder")
    actions = ["model.added", "records.recovered", "backup.made", "key.revoked", "key.created"]
    found = entries(services)
    assert [entry.action for entry in found] == actions
    assert (found[-1].target, found[-1].details["name"], found[-1].actor.startswith("cli:")) == (key.id, "dash", True)
    shown = [json.loads(line) for line in run(services, tmp_path, "audit", "--json", "-n", "2").splitlines()]
    assert [entry["action"] for entry in shown] == actions[:2]
    assert found[0].at.endswith("+00:00")
    table = run(services, tmp_path, "audit", "--action", "key.revoked")
    assert (key.id in table, "backup.made" in table, secret in table) == (True, False, False)


def test_deleted_files_of_lost_jobs_are_recorded(services: Services, tmp_path: Path) -> None:
    left = [tmp_path / "storage" / "references" / f"video_{digit * 32}" for digit in "12"]
    left[0].parent.mkdir(parents=True)
    for file in left:
        file.write_bytes(b"a picture")
        os.utime(file, (time.time() - 2 * LOST_AFTER_S,) * 2)
    for _ in range(2):  # the second one finds none
        run(services, tmp_path, "recover", "--delete-lost")
    actions = [(entry.action, entry.target, entry.details) for entry in reversed(entries(services))]
    recovered = ("records.recovered", "storage", {"rebuilt": 0})
    assert actions == [recovered, ("files.deleted", "storage", {"deleted": 2}), recovered]


def test_videos_of_others_are_recorded_and_own_ones_are_not(
    services: Services, store: JobStore, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ivmix.audit")
    owner, own_secret = services.keys.create("own", scopes=(Scope.READ, Scope.WRITE))
    admin, secret = services.keys.create("admin", scopes=(Scope.ADMIN,))
    jobs = [create_job(store, queue, owner=owner.owner) for _ in range(4)]
    with TestClient(quick_app(services)) as client:
        headers = {"authorization": f"Bearer {secret}", "x-request-id": "r1"}
        client.post(f"/v1/videos/{jobs[0].id}/cancel", headers=headers)
        client.delete(f"/v1/videos/{jobs[1].id}", headers=headers)
        client.post("/v1/videos/cancel", json={"ids": [jobs[2].id]}, headers=headers)
        client.delete(f"/v1/videos/{jobs[3].id}", headers={"authorization": f"Bearer {own_secret}"})
    found = [(entry.action, entry.target, entry.actor, entry.details) for entry in reversed(entries(services))]
    details = {"owner": owner.owner, "request_id": "r1"}
    assert found == [
        ("video.cancelled", jobs[0].id, admin.id, details),
        ("video.deleted", jobs[1].id, admin.id, details),
        ("video.cancelled", jobs[2].id, admin.id, details),
    ]
    assert [jobs[0].id in record.message for record in caplog.records] == [True, False, False]


def test_what_replicas_do_not_confirm_is_recorded_with_that(
    services: Services, store: JobStore, queue: Queue, tmp_path: Path
) -> None:
    """Every change is made before the wait for the replica, which is not there."""
    admin, secret = services.keys.create("admin", scopes=(Scope.ADMIN,))
    jobs = [create_job(store, queue, owner="key_other") for _ in range(3)]
    waits = {"redis_wait_replicas": 1, "redis_wait_s": 0.02}
    headers = {"authorization": f"Bearer {secret}"}
    with services_for(services.settings.model_copy(update=waits)) as strict, TestClient(quick_app(strict)) as client:
        client.headers.update(headers)
        answers = [
            client.post(f"/v1/videos/{jobs[0].id}/cancel"),
            client.delete(f"/v1/videos/{jobs[1].id}"),
            client.post("/v1/videos/cancel", json={"ids": [jobs[2].id]}),
            client.delete("/v1/videos/video_none"),
        ]
    environment = {f"IVMIX_{name.upper()}": str(value) for name, value in waits.items()}
    run(services, tmp_path, "keys", "revoke", admin.id, returncode=1, **environment)
    run(services, tmp_path, "keys", "revoke", "key_none", returncode=1, **environment)
    assert [answer.status_code for answer in answers] == [503, 503, 503, 404]
    found = [(entry.action, entry.target, entry.details["outcome"]) for entry in reversed(entries(services))]
    targets = [("video.cancelled", jobs[0].id), ("video.deleted", jobs[1].id), ("video.cancelled", jobs[2].id)]
    outcome = "error: NotReplicated"
    assert found == [(*target, outcome) for target in [*targets, ("key.revoked", admin.id)]]


def test_changed_settings_are_recorded_without_secrets(services: Services, settings: Settings) -> None:
    def start(**changes: Any) -> None:
        note_settings(services.redis, Settings.model_validate({**settings.model_dump(), **changes}), services.signer)

    s3 = {"storage": "s3", "s3_bucket": "b", "s3_access_key_id": "id", "port": 1}
    start(**s3, s3_secret_access_key="first-secret")
    start(**s3 | {"port": 2}, s3_secret_access_key="first-secret")
    assert entries(services) == []
    start(**s3, s3_secret_access_key="second-secret", max_waiting=7)
    (entry,) = entries(services)
    assert entry.details["changes"].keys() == {"IVMIX_S3_SECRET_ACCESS_KEY", "IVMIX_MAX_WAITING"}
    assert entry.details["changes"]["IVMIX_MAX_WAITING"] == ["1000", "7"]
    stored = repr(services.redis.hgetall("ivm:audit:settings")) + entry.model_dump_json()
    assert "second-secret" not in stored
    assert "redis://" not in stored


def test_the_log_is_bounded_and_skips_what_it_cannot_read(services: Services) -> None:
    redis: Any = services.redis
    fill = "for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'actor', 'a', 'details', 'not JSON') end"
    redis.eval(fill, 1, AUDIT, KEPT + 500)
    AuditLog(services.redis).record("key.created", "key_1", actor="cli:x@y")
    assert redis.xlen(AUDIT) <= KEPT + 100  # Redis trims whole nodes
    assert [entry.target for entry in entries(services)] == ["key_1"]


def test_without_redis_the_action_stays_done(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    absent = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}"})
    record_from_command(absent, "model.removed", "mine")
    record_from_command(settings.model_copy(update={"redis_url": None}), "model.removed", "mine")
    first, second = capsys.readouterr().err.splitlines()
    assert (first.startswith("not in the audit log: "), "no `ivmix up` runs" in second) == (True, True)
