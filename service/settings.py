"""Every knob as one field: field `redis_url` is the environment variable IVMIX_REDIS_URL. Nothing is read at import."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import ConfigurationError

PREFIX = "IVMIX_"
DEMO_MODEL = Path(__file__).resolve().parents[1] / "demo" / "model.toml"


def default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "ivmix"


class Settings(BaseSettings):
    # hide_input: a complaint about one field must not print the secrets of the others
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: str | None = Field(default=None, repr=False, description="a Redis or Valkey; `ivmix up` starts its own")
    data_dir: Path = Field(default_factory=default_data_dir, description="embedded server and file storage live here")
    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(DEMO_MODEL,), min_length=1, description="TOML files, joined by ':'"
    )

    storage: Literal["file", "s3"] = "file"
    s3_bucket: str | None = None
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_addressing_style: Literal["auto", "path", "virtual"] = "path"
    s3_checksum: Literal["when_required", "when_supported"] = Field(
        default="when_required", description="when_supported for AWS"
    )
    presign_seconds: int = Field(default=3600, ge=1, le=7 * 86400)
    retention_seconds: int = Field(default=7 * 86400, ge=60)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_base_url: str | None = Field(
        default=None, description="how clients reach us, e.g. https://video.example.com"
    )
    max_body_bytes: int = Field(default=65536, ge=1024)
    auth: Literal["off"] = "off"
    allow_open: bool = Field(default=False, description="serve other machines without authentication")

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
    def _split_paths(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

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

    def refuse_open_host(self) -> None:
        """Raises ConfigurationError if strangers could use the GPU: reachable from outside and no authentication."""
        if self.auth == "off" and not self.allow_open and not _is_loopback(self.host):
            raise ConfigurationError(
                f"host={self.host} is reachable from other machines and authentication is off: "
                f"use {PREFIX}HOST=127.0.0.1, or say {PREFIX}ALLOW_OPEN=true if the network protects it"
            )


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
