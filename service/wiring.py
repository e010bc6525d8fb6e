"""Creates the clients of Redis, storage and webhooks from the settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from redis import Redis

from service.api_keys import KeyStore
from service.audit_log import AuditLog
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, StorageError
from service.jobs.model_loads import ModelLoads
from service.jobs.outbox import Outbox
from service.jobs.store import JobStore
from service.redis_connection.client import open_redis
from service.redis_connection.replication import Replication
from service.settings import Settings
from service.signatures import Signer
from service.storage import FileStorage, VideoStorage
from service.storage.free_space import FreeSpace
from service.storage.reference_files import ReferenceFiles
from service.tracing import Tracing
from service.webhooks.deliveries import DeliveryStore
from service.webhooks.endpoints import EndpointStore
from service.webhooks.sender import Sender
from service.webhooks.url_policy import UrlPolicy
from service.wire.video import Renderer

log = logging.getLogger("ivmix.storage")


@dataclass(frozen=True, kw_only=True)
class Webhooks:
    url_policy: UrlPolicy
    sender: Sender
    outbox: Outbox
    endpoints: EndpointStore
    deliveries: DeliveryStore


@dataclass(frozen=True, kw_only=True)
class Services:
    settings: Settings
    redis: Redis
    probe: Redis  # the same server with short timeouts, for health checks
    replication: Replication
    store: JobStore
    loads: ModelLoads
    keys: KeyStore
    audit: AuditLog
    storage: VideoStorage
    models: ModelRegistry
    webhooks: Webhooks
    free_space: FreeSpace
    references: ReferenceFiles
    signer: Signer
    tracing: Tracing

    @property
    def redis_url(self) -> str:
        """For `open_redis` and the checks of the connection."""
        assert self.settings.redis_address is not None  # open_services requires it
        return self.settings.redis_address

    @property
    def renderer(self) -> Renderer:
        """Shows jobs to clients of the API, with the URLs of this server."""
        return Renderer(self.settings, self.storage, self.signer)

    def close(self) -> None:
        self.tracing.close()
        self.signer.close()
        self.redis.close()
        self.probe.close()


def open_services(settings: Settings, process: str = "") -> Services:
    """Create all clients without connecting yet. Raises ConfigurationError if a setting is missing.

    Args:
        process: what this process is, for its traces.
    """
    url = settings.redis_address
    if url is None:
        raise ConfigurationError("IVMIX_REDIS_URL is not set; set it, or use `ivmix up`, which starts a server")
    redis = open_redis(url)
    storage = open_storage(settings)
    replication = Replication(settings.redis_wait_replicas, settings.redis_wait_s)
    return Services(
        settings=settings,
        redis=redis,
        probe=open_redis(url, reply_timeout_s=0.4, connect_timeout_s=0.4, retries=0),
        replication=replication,
        store=JobStore(
            redis,
            retention_seconds=settings.retention_seconds,
            lease_s=settings.lease_s,
            replication=replication,
        ),
        loads=ModelLoads(redis),
        keys=KeyStore(redis, replication),
        audit=AuditLog(redis),
        storage=storage,
        references=ReferenceFiles(redis, storage),
        models=ModelRegistry.of(settings),
        webhooks=open_webhooks(settings, redis),
        signer=Signer(redis),
        tracing=Tracing(settings.otlp_endpoint, process),
        free_space=FreeSpace(settings.data_dir if settings.needs_disk else None, settings.min_free_mb),
    )


def open_webhooks(settings: Settings, redis: Redis) -> Webhooks:
    url_policy = UrlPolicy(settings.webhook_allow, allow_http=settings.webhook_allow_http)
    return Webhooks(
        url_policy=url_policy,
        sender=Sender(url_policy, timeout_s=settings.webhook_timeout_s),
        outbox=Outbox(redis),
        endpoints=EndpointStore(redis),
        deliveries=DeliveryStore(redis),
    )


def open_storage(settings: Settings) -> VideoStorage:
    """Raises ConfigurationError for settings that cannot be right."""
    if settings.storage == "file":
        return FileStorage(settings.data_dir / "storage")
    # boto3 is a fifth of what a process imports, and needed only here
    from service.storage.s3_settings import open_s3_storage

    return open_s3_storage(settings)


def check_storage(storage: VideoStorage) -> None:
    """Raises ConfigurationError if the storage rejects requests. An unreachable storage is only logged."""
    try:
        storage.check()
    except StorageError as e:
        log.warning("the storage is unreachable: %s", e)
