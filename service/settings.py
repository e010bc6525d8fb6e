"""All settings. The field `redis_url` is the environment variable IVMIX_REDIS_URL; importing reads no variables."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.environment import PREFIX, is_service_address, refuse_unknown_variables
from service.errors import ConfigurationError

LogFormat = Literal["auto", "json", "text"]
MODELS_FILE = Path(__file__).resolve().parent / "catalog" / "models.toml"


def default_data_dir() -> Path:
    """Raises ConfigurationError if this user has no home folder."""
    try:
        home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError as e:
        raise ConfigurationError(
            f"this user has no home folder (HOME is not set), so there is no place for data; set {PREFIX}DATA_DIR"
        ) from e
    return Path(home) / "ivmix"


def _expand(path: Path) -> Path:
    """`~` at the start, which only shells expand."""
    try:
        return path.expanduser()
    except RuntimeError as e:
        raise ValueError(f"'{path}': there is no such home folder; write the path in full") from e


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _network_or_host(entry: str) -> str:
    try:
        ipaddress.ip_network(entry)
    except ValueError:
        if not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", entry, re.IGNORECASE):
            raise ValueError(f"'{entry}' is not a network (10.0.0.0/8), host name or .domain") from None
    return entry


def _origin(value: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+", value):
        raise ValueError(f"'{value}' is not an origin as browsers send it: scheme://host[:port]")
    return value


T = TypeVar("T")
CommaSeparated = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split)]
NetworkOrHost = Annotated[str, AfterValidator(_network_or_host)]
Origin = Annotated[str, AfterValidator(_origin)]
Delay = Annotated[float, Field(ge=0)]
ExpandedPath = Annotated[Path, AfterValidator(_expand)]


class Section(str):
    """Marks the first field of a section of docs/settings.md."""


class Internal:
    """Marks a field that is not in docs/settings.md."""


class Settings(BaseSettings):
    # hide_input: an error about one field must not print the secrets of others
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    redis_url: Annotated[str | None, Section("Queue and data")] = Field(default=None, repr=False)
    """URL of a Redis 6.2+ or Valkey server with `appendonly yes`, `appendfsync always` and `maxmemory-policy
    noeviction`. If unset, `ivmix up` starts an embedded server."""
    data_dir: ExpandedPath = Field(default_factory=default_data_dir)
    """Folder of the embedded server and of file storage."""
    min_free_mb: int = Field(default=200, ge=0)
    """Free megabytes of IVMIX_DATA_DIR's disk below which new videos are refused with `no_space`. Applies when the
    embedded server or file storage uses that disk."""
    embedded_queue: Annotated[bool, Internal()] = False
    """Set by `ivmix up` for its processes: the queue is in IVMIX_DATA_DIR."""
    retention_seconds: int = Field(default=7 * 86400, ge=60)
    """Seconds after which an ended video's record and files are deleted."""

    models: Annotated[CommaSeparated[str], Section("Models")] = ()
    """Comma-separated model ids to offer; the first is the default model. If unset: all models whose weights are on
    this machine."""
    models_file: ExpandedPath = MODELS_FILE
    """Model registry (TOML): every model, its limits and the source of its weights."""
    weights_dir: ExpandedPath = Field(default_factory=lambda settings: settings["data_dir"] / "models")
    """Folder into which `ivmix models fetch` downloads weights."""

    storage: Annotated[Literal["file", "s3"], Section("Storage")] = "file"
    """Where videos are stored: `file` (in IVMIX_DATA_DIR) or `s3`."""
    s3_bucket: str | None = None
    """Bucket; required with `s3`."""
    s3_endpoint_url: str | None = None
    """URL of the S3 server. If unset: AWS."""
    s3_public_endpoint_url: str | None = None
    """URL under which clients reach the S3 server, if it differs from IVMIX_S3_ENDPOINT_URL; used in download URLs."""
    s3_ca_file: FilePath | None = None
    """PEM file with the CA of the server's certificate. If unset: the system's CAs."""
    s3_region: str | None = None
    """Region of the bucket. If unset: `us-east-1`."""
    s3_access_key_id: str | None = None
    """Access key. If both keys are unset, boto3 looks for credentials (instance role, `~/.aws`)."""
    s3_secret_access_key: SecretStr | None = None
    """Secret of the access key."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "path"
    """`virtual` puts the bucket into the host name, as AWS prefers; `path` always works."""
    s3_checksum: Literal["when_required", "when_supported"] = "when_required"
    """`when_supported` sends checksums with every request: for AWS; many other servers reject them."""
    s3_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds without a byte from the server after which a request is aborted."""
    presign_seconds: int = Field(default=3600, ge=0, le=7 * 86400)
    """Lifetime of download URLs in seconds. 0: no URLs, the API serves the bytes itself."""
    storage_retry_s: float = Field(default=600.0, ge=0)
    """Seconds for which a worker retries to store a finished video before the job fails with `storage_unavailable`.
    Long, because sampling it again costs more."""
    scratch_dir: ExpandedPath | None = None
    """Folder in which a worker keeps finished files until they are stored."""

    host: Annotated[str, Section("API")] = "127.0.0.1"
    """Address to listen on; also used for metrics ports."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on. 0: any free port."""
    public_base_url: str | None = None
    """Base URL under which clients reach the API, such as `https://video.example.com`. If set, videos contain their
    `url`."""
    max_body_bytes: int = Field(default=65536, ge=1024)
    """Largest accepted request body in bytes."""
    cors_origins: CommaSeparated[Origin] = ()
    """Comma-separated origins whose web pages may call the API, such as `https://dash.example.com`."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Serve `/metrics` on this port instead of IVMIX_PORT. Health endpoints are on both."""
    sync_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for which `POST /v1/videos/sync` waits for the video."""
    max_held: int = Field(default=100, ge=0)
    """Largest number of requests that one API process keeps open for event streams and `POST /v1/videos/sync`; more are
    rejected."""

    auth: Annotated[Literal["keys", "off"], Section("Authentication and limits")] = "keys"
    """`keys`: clients need an API key. `off`: no authentication; the default of `ivmix up` on a loopback address."""
    allow_open: bool = False
    """Allow IVMIX_AUTH=off on an address that other machines can reach. Only for protected networks."""
    requests_per_minute: int = Field(default=120, ge=1)
    """Largest number of new videos per minute and API key. Keys can override it."""
    max_waiting_per_key: int = Field(default=100, ge=1)
    """Largest number of queued videos per API key. Keys can override it."""
    max_waiting: int = Field(default=1000, ge=1)
    """Largest number of queued videos per model."""

    webhook_allow: Annotated[CommaSeparated[NetworkOrHost], Section("Webhooks")] = ()
    """Comma-separated networks, hosts and .domains of receivers without a public address, such as
    `10.0.0.0/8,.svc.cluster.local`. Link-local addresses are never allowed."""
    webhook_allow_http: bool = False
    """Allow receivers with unencrypted `http://` URLs."""
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=30)
    """Seconds for a whole request to a receiver, including its response."""
    webhook_retry_delays_s: CommaSeparated[Delay] = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
    """Comma-separated seconds between attempts, each extended randomly by up to a fifth. The default is the schedule of
    the Standard Webhooks specification: ten attempts in three days."""
    webhook_concurrency: int = Field(default=8, ge=1, le=64)
    """Largest number of webhooks that one dispatcher sends at the same time."""
    webhook_metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which a webhook dispatcher serves `/metrics`. 0: any free port. If unset: no metrics."""

    job_timeout_s: Annotated[int, Section("Jobs and workers")] = Field(default=1800, ge=1)
    """Seconds of running after which a job fails with `timeout`."""
    stall_timeout_s: float = Field(default=300, gt=0)
    """Seconds without a finished step after which a worker counts as stuck and its process is replaced."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts after which a job whose worker dies fails with `worker_lost`. Shutdowns do not count."""
    lease_s: float = Field(default=45, gt=0)
    """Seconds for which a worker owns a job without renewing its lease. After that the job is requeued."""
    beat_s: float = Field(default=10, gt=0)
    """Seconds between two renewals of the lease. At most a third of IVMIX_LEASE_S, so that two failed renewals do not
    cost a job."""
    look_s: float = Field(default=2, gt=0)
    """Seconds between two searches for lost jobs by the maintenance process."""
    stop_grace_s: float = Field(default=20, gt=0)
    """Seconds that a stopping worker has to finish the step in progress before its process is killed."""
    commit_patience_s: float = Field(default=600, gt=0)
    """Seconds for which a worker retries to record a finished video while Redis is unreachable."""
    checkpoint_s: float = Field(default=20, gt=0)
    """Seconds between two checkpoints of a running job: the most work that a killed worker loses."""
    worker_metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which a worker serves `/metrics`. 0: any free port. If unset: no metrics."""

    log_format: Annotated[LogFormat, Section("Logging and probes")] = "auto"
    """`json`: one object per line. `auto`: `text` in a terminal, otherwise `json`."""
    pulse_file: ExpandedPath | None = None
    """File that a worker with loaded models, a webhook dispatcher or a maintenance process touches every few seconds,
    for liveness probes. One file per process."""

    @model_validator(mode="after")
    def _has_s3_settings(self) -> Self:
        missing = [PREFIX + name.upper() for name in self._missing()]
        if missing:
            raise ValueError(f"storage=s3 needs {', '.join(missing)}; set them or use {PREFIX}STORAGE=file")
        return self

    @model_validator(mode="after")
    def _renews_leases_in_time(self) -> Self:
        if self.beat_s > self.lease_s / 3:
            raise ValueError(
                f"{PREFIX}BEAT_S={self.beat_s:g} is more than a third of {PREFIX}LEASE_S={self.lease_s:g}, so two "
                "failed renewals would cost a job; lower it"
            )
        return self

    def _missing(self) -> list[str]:
        if self.storage != "s3":
            return []
        has_one_key = self.s3_access_key_id is not None or self.s3_secret_access_key is not None
        needed = ["s3_bucket", *(["s3_access_key_id", "s3_secret_access_key"] if has_one_key else [])]
        return [name for name in needed if not getattr(self, name)]

    @property
    def redis_retry_s(self) -> float:
        """Seconds between a worker's attempts to reach Redis. Well below the grace of half a beat that the reaper gives
        after an outage, so that a worker renews its lease in time."""
        return self.beat_s / 10

    @property
    def needs_disk(self) -> bool:
        """Whether the queue or the videos are in IVMIX_DATA_DIR."""
        return self.storage == "file" or self.embedded_queue

    @property
    def scratch_folder(self) -> Path:
        return self.scratch_dir or self.data_dir / "scratch"

    def require_auth_on_public_host(self) -> None:
        """Raises ConfigurationError if other machines could use the GPU without authentication."""
        if self.auth == "off" and not self.allow_open and not self.is_loopback:
            raise ConfigurationError(
                f"host={self.host} is reachable from other machines and authentication is off: use {PREFIX}AUTH=keys "
                f"or {PREFIX}HOST=127.0.0.1, or set {PREFIX}ALLOW_OPEN=true if the network is protected"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load_settings() -> Settings:
    """Settings from the environment. Raises ConfigurationError that lists all problems, without values."""
    refuse_unknown_variables(os.environ, Settings.model_fields)
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        if is_service_address(name, os.environ[name]):  # of a Service `ivmix`; IVMIX_PORT is not meant
            del os.environ[name]
    try:
        return Settings()
    except ValidationError as e:
        problems = (
            ": ".join(filter(None, (PREFIX + str(error["loc"][0]).upper() if error["loc"] else "", error["msg"])))
            for error in e.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError("; ".join(problems)) from e
