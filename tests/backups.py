"""A service that is backed up: jobs in every state, keys and webhooks; and the commands that do it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.jobs.model import Job, JobError, Phase
from service.jobs.record_reader import Idempotency
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services
from tests.commands import ivmix_here
from tests.factories import create_job, finish, make_job
from tests.processes import clean_environment

Command = Callable[..., subprocess.CompletedProcess[str]]


class Deployment:
    """Jobs in every state, keys, webhooks, as a service that runs has them."""

    def __init__(self, services: Services, scratch: Path) -> None:
        self.services = services
        key, self.secret = services.keys.create("a client", max_waiting=7)
        revoked, self.revoked_secret = services.keys.create("revoked")
        services.keys.revoke(revoked.id)
        self.owner = key.owner
        store, queue = services.store, generate_queue(services.redis, "demo")
        self.idempotency = Idempotency("key-1", "fingerprint")
        endpoint = services.webhooks.endpoints.create(
            self.owner, name="main", url="https://hooks.example.com/", event_types=("video.completed", "video.failed")
        )
        self.endpoint, self.callback_secrets = endpoint, services.webhooks.endpoints.callback_secrets(self.owner)
        self.completed = self._job()
        finish(services, self.completed.id, b"a video", scratch=scratch)
        self.failed = self._job()
        store.start(self.failed.id, "e1")
        store.fail(self.failed.id, "e1", JobError(code="out_of_memory", message="It is too large."))
        self.running = self._job(metadata={"project": "shapes"})
        store.start(self.running.id, "e2")
        store.report_progress(self.running.id, "e2", 5, 20, Phase.SAMPLING, gpu_seconds=2.5)
        self.deleted_while_running = self._job()
        store.start(self.deleted_while_running.id, "e3")
        store.delete(self.deleted_while_running.id)
        self.queued = [self._job(owner=owner) for owner in (self.owner, "key_other", self.owner, "key_other")]
        self.first = store.create(make_job(owner=self.owner), queue, idempotency=self.idempotency)
        # As RQ does when it hands jobs out.
        for job in (self.completed, self.failed, self.running, self.deleted_while_running):
            services.redis.lrem(queue.key, 1, job.id)

    def _job(self, **over: Any) -> Job:
        queue = generate_queue(self.services.redis, "demo")
        return create_job(self.services.store, queue, **({"owner": self.owner} | over))

    @property
    def queue(self) -> list[str]:
        return generate_queue(self.services.redis, "demo").job_ids


def back_up(command: Command, folder: Path) -> Path:
    ran = command("backup", str(folder))
    assert ran.returncode == 0, ran.stderr
    (file,) = folder.glob("ivmix-*.jsonl.gz")
    assert file.stat().st_mode & 0o777 == 0o600
    return file


def commands_for(settings: Settings, folder: Path) -> Command:
    """Runs `ivmix` with these settings, in this folder."""
    environment = clean_environment() | {
        "IVMIX_REDIS_URL": settings.redis_url or "",
        "IVMIX_DATA_DIR": str(settings.data_dir),
    }
    return lambda *arguments: ivmix_here(*arguments, cwd=folder, environment=environment)
