"""Every knob as one field: field `redis_url` is the environment variable IVMIX_REDIS_URL. Nothing is read at import."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import ConfigurationError

PREFIX = "IVMIX_"
LogFormat = Literal["auto", "json", "text"]
MODELS_FILE = Path(__file__).resolve().parent / "catalog" / "models.toml"


def default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "ivmix"


class Settings(BaseSettings):
    # hide_input: a complaint about one field must not print the secrets of the others
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: str | None = Field(default=None, repr=False, description="a Redis or Valkey; `ivmix up` starts its own")
    data_dir: Path = Field(default_factory=default_data_dir, description="embedded server and file storage live here")
    models_file: Path = Field(
        default=MODELS_FILE, description="the registry, TOML: every model and where its files are"
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="names, joined by ','; empty: all whose weights are on this machine. The first is the default",
    )
    weights_dir: Path = Field(
        default_factory=lambda settings: settings["data_dir"] / "models",
        description="where `ivmix models fetch` puts weights; data_dir/models if left out",
    )

    storage: Literal["file", "s3"] = "file"
    s3_bucket: str | None = None
    s3_endpoint_url: str | None = None
    s3_public_endpoint_url: str | None = Field(
        default=None, description="how clients reach the same server, if not by s3_endpoint_url; signed into addresses"
    )
    s3_ca_file: FilePath | None = Field(default=None, description="PEM file of the authority that the server's TLS has")
    s3_region: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_addressing_style: Literal["auto", "path", "virtual"] = "path"
    s3_checksum: Literal["when_required", "when_supported"] = Field(
        default="when_required", description="when_supported for AWS"
    )
    s3_timeout_s: float = Field(default=30.0, gt=0, description="without a byte from the server for so long: it hangs")
    presign_seconds: int = Field(
        default=3600,
        ge=0,
        le=7 * 86400,
        description="life of a download address; 0: the API hands out the bytes itself",
    )
    storage_retry_s: float = Field(
        default=600.0, ge=0, description="how long a worker tries to store a finished video before the job fails"
    )
    scratch_dir: Path | None = Field(
        default=None, description="where finished files wait until they are stored; else data_dir/scratch"
    )
    retention_seconds: int = Field(default=7 * 86400, ge=60)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_base_url: str | None = Field(
        default=None, description="how clients reach us, e.g. https://video.example.com"
    )
    max_body_bytes: int = Field(default=65536, ge=1024)
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="web pages that may call the API, e.g. https://dash.example.com; joined by ','"
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="serve /metrics on this port instead of `port`; health is on both"
    )

    auth: Literal["keys", "off"] = Field(
        default="keys", description="`ivmix up` on a loopback address uses off unless told otherwise"
    )
    allow_open: bool = Field(default=False, description="serve other machines without authentication")
    requests_per_minute: int = Field(default=120, ge=1, description="new videos asked for, per key; a key may differ")
    max_waiting_per_key: int = Field(default=100, ge=1, description="queued videos of one key; a key may differ")
    max_waiting: int = Field(default=1000, ge=1, description="queued videos per model, all keys together")
    sync_timeout_s: float = Field(default=600.0, gt=0, description="how long POST /v1/videos/sync waits")
    max_held: int = Field(default=100, ge=0, description="requests held open, events and sync, per API process")

    webhook_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="receivers that are not public: networks, hosts and .domains, joined by ',' (link-local never)",
    )
    webhook_allow_http: bool = Field(default=False, description="webhooks may go to http:// addresses, unencrypted")
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=30, description="for one whole exchange with a receiver")
    webhook_retry_delays_s: Annotated[tuple[Annotated[float, Field(ge=0)], ...], NoDecode] = Field(
        default=(5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),  # the Standard Webhooks specification's
        description="between the attempts of a webhook, joined by ','; each is lengthened by chance by up to a fifth",
    )
    webhook_concurrency: int = Field(default=8, ge=1, le=64, description="webhooks that are under way at one time")

    log_format: LogFormat = Field(default="auto", description="auto: text in a terminal, JSON everywhere else")
    worker_metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="a worker serves /metrics there, on `host`; 0: any free one"
    )
    webhook_metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="a courier serves /metrics there, on `host`; 0: any free one"
    )
    pulse_file: Path | None = Field(
        default=None,
        description="touched every few seconds by a worker whose models are loaded, by webhooks and by maintenance; "
        "one file per process, for liveness probes",
    )

    job_timeout_s: int = Field(default=1800, ge=1)
    stall_timeout_s: float = Field(default=300, gt=0, description="no finished step for so long: the worker is stuck")
    max_attempts: int = Field(
        default=3, ge=1, description="a job whose worker dies so often fails; drains do not count"
    )
    lease_s: float = Field(default=45, gt=0, description="a worker that is silent for longer loses its job")
    beat_s: float = Field(default=10, gt=0, description="how often a worker renews its lease")
    look_s: float = Field(default=2, gt=0, description="how often the maintenance looks for lost jobs")
    stop_grace_s: float = Field(default=20, gt=0, description="for the step under way, before its process is killed")
    commit_patience_s: float = Field(default=600, gt=0, description="how long a finished video waits for Redis")
    checkpoint_s: float = Field(default=20, gt=0, description="how much work a killed worker can lose")

    @field_validator("models", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("webhook_allow", "webhook_retry_delays_s", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("webhook_allow")
    @classmethod
    def _is_network_or_host(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if not _is_network(entry) and not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", entry, re.IGNORECASE):
                raise ValueError(f"'{entry}' is neither a network (10.0.0.0/8), a host nor a .domain")
        return entries

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return (
            tuple(origin.strip() for origin in value.split(",") if origin.strip()) if isinstance(value, str) else value
        )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"'{origin}' is not scheme://host[:port], as browsers send it")
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        missing = [PREFIX + name.upper() for name in self._missing()]
        if missing:
            raise ValueError(f"storage=s3 needs {', '.join(missing)}; set them or use {PREFIX}STORAGE=file")
        return self

    @model_validator(mode="after")
    def _beats_often_enough(self) -> Self:
        if self.beat_s > self.lease_s / 3:
            raise ValueError(
                f"beat_s={self.beat_s:g} is above a third of lease_s={self.lease_s:g}: two lost beats would cost a job"
            )
        return self

    def _missing(self) -> list[str]:
        if self.storage != "s3":
            return []
        has_one_key = self.s3_access_key_id is not None or self.s3_secret_access_key is not None
        # Without any key boto3 looks in its own places (instance role, ~/.aws).
        needed = ["s3_bucket", *(["s3_access_key_id", "s3_secret_access_key"] if has_one_key else [])]
        return [name for name in needed if not getattr(self, name)]

    @property
    def redis_retry_s(self) -> float:
        """Between two tries of a worker while Redis is away: well below the reaper's grace of half a beat, so that who
        has a job says so in time when Redis is back."""
        return self.beat_s / 10

    @property
    def scratch_folder(self) -> Path:
        return self.scratch_dir or self.data_dir / "scratch"

    def require_auth_on_public_host(self) -> None:
        """Raises ConfigurationError if strangers could use the GPU: reachable from outside and no authentication."""
        if self.auth == "off" and not self.allow_open and not self.is_loopback:
            raise ConfigurationError(
                f"host={self.host} is reachable from other machines and authentication is off: use {PREFIX}AUTH=keys "
                f"or {PREFIX}HOST=127.0.0.1, or say {PREFIX}ALLOW_OPEN=true if the network protects it"
            )

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches the API."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load_settings() -> Settings:
    """Settings from the environment. Raises ConfigurationError with everything that is wrong, without values."""
    try:
        return Settings()
    except ValidationError as e:
        problems = (
            ": ".join(filter(None, (PREFIX + str(error["loc"][0]).upper() if error["loc"] else "", error["msg"])))
            for error in e.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError("; ".join(problems)) from e


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
