"""Turns the outbox into deliveries: one per ended video and subscribed endpoint, plus one for a request's callback.

It may be interrupted at any point, and several processes may run it at once: an entry leaves the outbox in the same
transaction that writes its deliveries.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from service.jobs.model import EventType, Job, JobState
from service.jobs.outbox import job_of
from service.redis_records import Record
from service.webhooks.deliveries import Delivery, creation_commands, new_delivery, video_index
from service.wire.video import Renderer
from service.wire.webhook import payload
from service.wiring import Webhooks

log = logging.getLogger("ivmix.webhooks")

BATCH = 20  # few, because due deliveries wait while the outbox is read

EVENT_OF: dict[JobState, EventType] = {
    JobState.COMPLETED: "video.completed",
    JobState.FAILED: "video.failed",
    JobState.CANCELLED: "video.failed",
}


@dataclass(frozen=True)
class FanOut:
    webhooks: Webhooks
    renderer: Renderer

    def run_once(self) -> int:
        """Process the oldest entries; returns how many there were."""
        entries = self.webhooks.outbox.read(BATCH)
        for entry_id, record in entries:
            self._process(entry_id, record)
        return len(entries)

    def _process(self, entry_id: str, record: Record) -> None:
        try:
            job = job_of(record)
        except ValueError as e:
            # It will never become readable, and would block every entry after it.
            log.error("dropping outbox entry %s: not a valid job record: %s", entry_id, e)
            self.webhooks.outbox.settle(entry_id)
            return
        deliveries = self._deliveries(job)
        commands = [command for delivery in deliveries for command in creation_commands(delivery)]
        if self.webhooks.outbox.settle(entry_id, commands, creates=video_index(job.id)):
            log.info("%s %s: %d webhook deliveries", job.id, job.state, len(deliveries))
            self.webhooks.deliveries.trim(job.owner)

    def _deliveries(self, job: Job) -> list[Delivery]:
        event_type = EVENT_OF[job.state]
        event_id = f"evt_{job.id.removeprefix('video_')}"  # a video ends only once
        event = {
            "event_id": event_id,
            "event_type": event_type,
            "video_id": job.id,
            "owner": job.owner,
            "body": payload(event_id, event_type, job, self.renderer),
            "traceparent": job.traceparent,
        }
        deliveries = [
            new_delivery(endpoint_id=endpoint.id, **event)
            for endpoint in self.webhooks.endpoints.subscribed(job.owner, event_type)
        ]
        if job.callback and event_type in job.callback.events:
            deliveries.append(new_delivery(url=job.callback.url, **event))
        return deliveries
