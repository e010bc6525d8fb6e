"""Moves what is due: ended jobs from the outbox to deliveries, and deliveries from the schedule to the queue.

Every move may be cut off at any point and be made by several pumps at once: the outbox is left only together with the
deliveries made of it, and what was handed to the queue comes due again until somebody has finished it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rq import Queue

from service.jobs.model import EventType, Job, JobState
from service.jobs.outbox import Outbox, Record, job_of
from service.jobs.rq_queues import send_delivery
from service.webhooks.deliveries import Delivery, DeliveryStore, commands_for, new_delivery
from service.webhooks.endpoints import EndpointStore
from service.wire.video import Renderer
from service.wire.webhook import payload

log = logging.getLogger("ivmix.webhooks")

BATCH = 100
WAITING = 64  # handed to the queue and not yet taken: few enough to be taken long before they come due again

EVENT_OF: dict[JobState, EventType] = {
    JobState.COMPLETED: "video.completed",
    JobState.FAILED: "video.failed",
    JobState.CANCELLED: "video.failed",
}


@dataclass(frozen=True)
class Pump:
    outbox: Outbox
    endpoints: EndpointStore
    deliveries: DeliveryStore
    queue: Queue
    renderer: Renderer

    def once(self) -> int:
        """How much was moved."""
        return self.empty_outbox() + self.send_due()

    def empty_outbox(self) -> int:
        entries = self.outbox.read(BATCH)
        for entry, record in entries:
            self._settle(entry, record)
        return len(entries)

    def send_due(self) -> int:
        room = WAITING - self.queue.count
        due = self.deliveries.claim(min(room, BATCH)) if room > 0 else []
        for delivery_id, attempts in due:
            send_delivery(self.queue, delivery_id, attempts)
        return len(due)

    def _settle(self, entry: str, record: Record) -> None:
        try:
            job = job_of(record)
        except ValueError as e:
            # It would never become readable, and stand in the way of all others.
            log.error("outbox entry %s is no job's record and is dropped: %s", entry, e)
            self.outbox.settle(entry)
            return
        made = self._deliveries(job)
        commands = [command for delivery in made for command in commands_for(delivery)]
        if self.outbox.settle(entry, commands):
            log.info("%s %s: %d receivers", job.id, job.state, len(made))
            self.deliveries.trim(job.owner)

    def _deliveries(self, job: Job) -> list[Delivery]:
        event_type = EVENT_OF[job.state]
        event_id = f"evt_{job.id.removeprefix('video_')}"  # a video ends once
        event = {
            "event_id": event_id,
            "event_type": event_type,
            "video_id": job.id,
            "owner": job.owner,
            "body": payload(event_id, event_type, job, self.renderer),
        }
        made = [
            new_delivery(endpoint_id=endpoint.id, **event)
            for endpoint in self.endpoints.subscribed(job.owner, event_type)
        ]
        if job.callback and event_type in job.callback.events:
            made.append(new_delivery(url=job.callback.url, **event))
        return made
