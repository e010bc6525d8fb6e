"""The queues of all models at one time, from which every caller gets a separate report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from service.api.auth import Principal
from service.api.schemas import QueueReport, model_queue
from service.jobs.queue_and_waiting_time import QueueStats, queue_stats, with_jobs_ahead
from service.wiring import Services


@dataclass(frozen=True)
class Audience:
    """Callers that see the same.

    Attributes:
        owner: owner of the videos that they create.
        visible_owner: the owner whose videos they can see; None means every owner.
    """

    owner: str
    visible_owner: str | None

    @classmethod
    def of(cls, principal: Principal) -> Self:
        return cls(principal.owner, principal.visible_owner)

    def sees(self, owner: str | None) -> bool:
        return self.visible_owner is None or self.visible_owner == owner


@dataclass(frozen=True)
class QueueSnapshot:
    stats: Sequence[QueueStats]
    unavailable: Mapping[str, str]  # why no worker can load a model

    @classmethod
    def read(cls, services: Services) -> Self:
        models = services.models.ids()
        stats = [queue_stats(services.redis, services.store, model) for model in models]
        return cls(stats, services.loads.failures(models))

    def reports(self, services: Services, audiences: Iterable[Audience]) -> dict[Audience, QueueReport]:
        """The report of each audience: the estimated wait depends on the owner, the visible video ids on the scopes."""
        audiences = list(audiences)
        owners = [audience.owner for audience in audiences]
        by_model = [with_jobs_ahead(services.store, stats, owners) for stats in self.stats]
        return {
            audience: QueueReport(
                data=[
                    model_queue(stats[i], audience.visible_owner, self.unavailable.get(stats[i].model))
                    for stats in by_model
                ]
            )
            for i, audience in enumerate(audiences)
        }
