"""Creates the clients of Redis, storage and webhooks from the settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from redis import Redis

from service.api_keys import KeyStore
from service.audit_log import AuditLog
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, StorageError
from service.jobs.model_loads import ModelLoads
from service.jobs.outbox import Outbox
from service.jobs.store import JobStore
from service.redis_connection.client import open_redis
from service.settings import Settings
from service.signatures import Signer
from service.storage import FileStorage, VideoStorage
from service.storage.free_space import FreeSpace
from service.storage.reference_files import ReferenceFiles
from service.storage.s3_endpoint import is_bucket_in_path, without_bucket
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
        assert self.settings.redis_url is not None  # open_services requires it
        return self.settings.redis_url

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
    if settings.redis_url is None:
        raise ConfigurationError("IVMIX_REDIS_URL is not set; set it, or use `ivmix up`, which starts a server")
    redis = open_redis(settings.redis_url)
    storage = open_storage(settings)
    return Services(
        settings=settings,
        redis=redis,
        probe=open_redis(settings.redis_url, reply_timeout_s=0.4, connect_timeout_s=0.4, retries=0),
        store=JobStore(redis, retention_seconds=settings.retention_seconds, lease_s=settings.lease_s),
        loads=ModelLoads(redis),
        keys=KeyStore(redis),
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
    if settings.storage == "file":
        return FileStorage(settings.data_dir / "storage")
    # boto3 is a fifth of what a process imports, and needed only here
    from service.storage.s3 import S3Storage

    assert settings.s3_bucket is not None  # Settings rejects storage=s3 without it
    public = settings.s3_public_endpoint_url
    _check_public_url(public, settings.s3_bucket)
    return S3Storage(
        _s3_client(settings, settings.s3_endpoint_url),
        bucket=settings.s3_bucket,
        presign_seconds=settings.presign_seconds,
        public_client=_s3_client(settings, public) if public else None,
    )


def _check_public_url(public: str | None, bucket: str) -> None:
    """Only clients would notice the bucket in it. Of the other URL the server's answer shows whether it is wrong."""
    shorter = without_bucket(public, bucket)
    if shorter is None:
        return
    problem = (
        f"IVMIX_S3_PUBLIC_ENDPOINT_URL contains the bucket, which only IVMIX_S3_BUCKET={bucket} should name; set "
        f"IVMIX_S3_PUBLIC_ENDPOINT_URL={shorter}"
    )
    if is_bucket_in_path(public, bucket):
        raise ConfigurationError(problem)
    log.warning("%s, unless the host is really called so", problem)  # s3.example.com with a bucket `s3`


def check_storage(storage: VideoStorage) -> None:
    """Raises ConfigurationError if the storage rejects requests. An unreachable storage is only logged."""
    try:
        storage.check()
    except StorageError as e:
        log.warning("the storage is unreachable: %s", e)


def _s3_client(settings: Settings, endpoint_url: str | None) -> Any:  # boto3 has no types
    """Raises ConfigurationError for an invalid URL."""
    import boto3
    from botocore.config import Config

    secret = settings.s3_secret_access_key
    try:
        return boto3.client(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            "s3",
            endpoint_url=endpoint_url,
            verify=str(settings.s3_ca_file) if settings.s3_ca_file else None,
            region_name=settings.s3_region or "us-east-1",
            aws_access_key_id=settings.s3_access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                signature_version="s3v4",
                # Sign the payload, so that the server rejects corrupted bytes, over TLS as well.
                s3={"addressing_style": settings.s3_addressing_style, "payload_signing_enabled": True},
                # botocore >= 1.36 sends checksum trailers by default, which many servers reject (botocore#3277).
                request_checksum_calculation=settings.s3_checksum,
                response_checksum_validation=settings.s3_checksum,
                connect_timeout=3,
                read_timeout=settings.s3_timeout_s,
                retries={"mode": "standard", "total_max_attempts": 2},  # workers add StorageRetry
                tcp_keepalive=True,
            ),
        )
    except ValueError as e:
        raise ConfigurationError(f"IVMIX_S3_ENDPOINT_URL or IVMIX_S3_PUBLIC_ENDPOINT_URL: {e}") from e
