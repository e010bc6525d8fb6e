"""All settings. The field `redis_url` is the environment variable IVMIX_REDIS_URL; importing reads no variables."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from service.environment import PREFIX, is_service_address, refuse_unknown_variables
from service.errors import ConfigurationError
from service.setting_types import (
    BaseUrl,
    CommaSeparated,
    Delay,
    ExpandedPath,
    HostName,
    Network,
    NetworkOrHost,
    Origin,
    PathPrefix,
    Section,
)
from service.store_settings import MODELS_FILE as MODELS_FILE
from service.store_settings import StoreSettings
from service.store_settings import default_data_dir as default_data_dir
from service.validation_messages import invalid_setting

LogFormat = Literal["auto", "json", "text"]


class Settings(StoreSettings):
    host: Annotated[str, Section("API")] = "127.0.0.1"
    """Address to listen on; also used for metrics ports."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on. 0: any free port."""
    public_base_url: BaseUrl | None = None
    """Base URL under which clients reach the API, such as `https://video.example.com`. If set, videos contain their
    `url`."""
    root_path: PathPrefix = ""
    """Path prefix under which a reverse proxy publishes the API, such as `/ivmix`. The proxy may remove or keep it."""
    trusted_proxies: CommaSeparated[Network] = ("127.0.0.1", "::1")
    """Comma-separated addresses and networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are
    believed."""
    allowed_hosts: CommaSeparated[HostName] = ()
    """Comma-separated host names and .domains under which clients may call the API, in addition to loopback names,
    IVMIX_HOST and the host of IVMIX_PUBLIC_BASE_URL. With IVMIX_AUTH=off any other Host is refused (DNS rebinding);
    with keys only if this is set. Where IVMIX_HOST is not a loopback address, IP addresses are accepted too."""
    max_body_bytes: int = Field(default=2**20, ge=1024)
    """Largest accepted request body in bytes. The default holds two texts of 32,000 characters in any script and
    encoding."""
    max_reference_bytes: int = Field(default=20 * 2**20, ge=1024, le=2**31)
    """Largest `input_reference`, a picture or clip, in bytes."""
    max_data_url_bytes: int = Field(default=4 * 2**20, ge=1024, le=2**28)
    """Largest request body in bytes that contains `input_reference` as a data URL, which is read into memory. Files in
    multipart forms are not; only IVMIX_MAX_REFERENCE_BYTES limits them."""
    max_reference_pixels: int = Field(default=2**25, ge=1, le=2**28)
    """Largest `input_reference` in pixels, width x height. A picture takes about 8 bytes of memory per pixel while it
    is read, two at a time."""
    max_reference_frames: int = Field(default=256, ge=1, le=4096)
    """Frames of a clip that are kept; a longer `input_reference` is cut. Videos use their first frames only."""
    upload_dir: ExpandedPath | None = None
    """Folder in which an API process keeps an `input_reference` until its video is created: up to 16 files at a time.
    Default: in IVMIX_DATA_DIR with file storage, else the system's folder for temporary files."""
    page: bool = True
    """Serve the page for people at `/`. Its calls of the API need a key like all others."""
    cors_origins: CommaSeparated[Origin] = ()
    """Comma-separated exact origins whose web pages may call the API, such as `https://dash.example.com`. With
    IVMIX_AUTH=off the pages of all other origins are refused."""
    keep_alive_s: int = Field(default=75, ge=1)
    """Seconds for which an idle connection stays open. Longer than a proxy in front keeps it and than clients wait
    between polls; otherwise they send requests on a connection that is just being closed."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds within which a client must send a whole request, headers and body, and take 64 KiB of a response.
    Otherwise it is disconnected."""
    max_connections: int = Field(default=1000, ge=1)
    """Largest number of connections to one API process; less if the limit on open files is low. At the limit, the
    connection that has been idle for longest is closed for a new one."""
    max_connections_per_address: int = Field(default=250, ge=1)
    """Largest number of connections from one address (IPv6: one /64 network) to one API process. Trusted proxies are
    exempt."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Serve `/metrics` on this port instead of IVMIX_PORT. Health endpoints are on both."""
    sync_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for which `POST /v1/videos/sync` waits for the video."""
    max_held: int = Field(default=100, ge=0)
    """Largest number of requests that one API process keeps open for event streams, `POST /v1/videos/sync` and webhook
    tests; more are rejected."""
    max_held_per_key: int = Field(default=25, ge=0)
    """Largest number of those requests for one API key; with IVMIX_AUTH=off, for one client address."""

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
    gpu_seconds_per_day: int | None = Field(default=None, ge=1)
    """Largest number of GPU seconds per day (UTC) and API key; further videos get 429. Keys can override it."""
    max_videos_per_request: int = Field(default=4, ge=1, le=16)
    """Largest `num_videos` of a request."""

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
    webhook_concurrency: int = Field(default=32, ge=1, le=64)
    """Largest number of webhooks that one dispatcher sends at the same time. One API key gets at most half of what the
    others leave free, one receiver of a key at most a quarter of the whole."""
    webhook_sends_per_minute: int = Field(default=30, ge=1)
    """Largest number of webhook tests and redeliveries per minute and API key; four times as many to one host."""
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
    preview_seconds: float = Field(default=2, ge=0)
    """Seconds between two previews of a video that is being sampled; the first one comes sooner. They are fewer where
    they would take more than 2 % of its sampling time. 0: no previews."""
    worker_metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which a worker serves `/metrics`. 0: any free port. If unset: no metrics."""

    log_format: Annotated[LogFormat, Section("Logging and probes")] = "auto"
    """`json`: one object per line. `auto`: `text` in a terminal, otherwise `json`."""
    otlp_endpoint: BaseUrl | None = None
    """Base URL of an OpenTelemetry receiver (OTLP/HTTP) for traces, such as `http://collector:4318`. If unset: none."""
    pulse_file: ExpandedPath | None = None
    """File that a worker, a webhook dispatcher or a maintenance process touches every few seconds, for liveness probes.
    A worker writes `ready` or `not ready` into it, for readiness probes. One file per process."""

    @model_validator(mode="after")
    def _renews_leases_in_time(self) -> Self:
        if self.beat_s > self.lease_s / 3:
            raise ValueError(
                f"{PREFIX}BEAT_S={self.beat_s:g} is more than a third of {PREFIX}LEASE_S={self.lease_s:g}, so two "
                "failed renewals would cost a job; lower it"
            )
        return self

    @property
    def client_base_url(self) -> str | None:
        """The public base URL with the path prefix, also where only one of the two settings contains it."""
        if self.public_base_url is None:
            return None
        base = self.public_base_url.rstrip("/")
        return base if base.endswith(self.root_path) else base + self.root_path

    @property
    def redis_retry_s(self) -> float:
        """Seconds between a worker's attempts to reach Redis. Well below the grace of half a beat that the reaper gives
        after an outage, so that a worker renews its lease in time."""
        return self.beat_s / 10

    @property
    def upload_folder(self) -> Path:
        in_data = self.data_dir / "uploads" if self.storage == "file" else Path(tempfile.gettempdir())
        return self.upload_dir or in_data

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
    """Settings from the environment. Raises ConfigurationError that lists all problems, without secrets."""
    refuse_unknown_variables(os.environ, Settings.model_fields)
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        if is_service_address(name, os.environ[name]):  # of a Service `ivmix`; IVMIX_PORT is not meant
            del os.environ[name]
    try:
        return Settings()
    except ValidationError as e:
        problems = (
            invalid_setting(PREFIX + str(error["loc"][0]).upper() if error["loc"] else "", error)
            for error in e.errors(include_url=False)
            if error["type"] != "default_factory_not_called"  # it follows another one
        )
        raise ConfigurationError("; ".join(problems)) from e
