"""The settings of queue, models and storage: what the processes of one ivmix share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.environment import PREFIX
from service.errors import ConfigurationError
from service.redis_connection.url_options import option_problem, with_options
from service.setting_types import (
    CommaSeparated,
    ExistingFile,
    ExpandedPath,
    Internal,
    ModelAlias,
    S3Prefix,
    Section,
    StorageClass,
)

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


class StoreSettings(BaseSettings):
    # hide_input: an error about one field must not print the secrets of others
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    redis_url: Annotated[str | None, Section("Queue and data")] = Field(default=None, repr=False)
    """URL of a Redis 6.2+ or Valkey server with `appendonly yes`, `appendfsync always` and `maxmemory-policy
    noeviction`: `redis://`, `rediss://`, `unix:///PATH?db=0`, or of its Sentinels, `redis+sentinel://`. If unset,
    `ivmix up` starts an embedded server."""
    redis_ca_file: ExistingFile | None = None
    """PEM file with the CA of the certificates of Redis and its Sentinels. If unset: the system's CAs."""
    redis_cert_file: ExistingFile | None = None
    """PEM file with the client certificate, if Redis requires one."""
    redis_key_file: ExistingFile | None = None
    """PEM file with the key of the client certificate."""
    redis_sentinel_user: str | None = None
    """User at the Sentinels, if they have users."""
    redis_sentinel_password: SecretStr | None = None
    """Password of the Sentinels. That of Redis itself is part of IVMIX_REDIS_URL."""
    redis_wait_replicas: int = Field(default=0, ge=0, le=10)
    """Replicas that must have a new video before it is accepted, so that a failover cannot lose it; the same for
    cancelling and deleting. 0: accepted when the primary has it on disk."""
    redis_wait_s: float = Field(default=2.0, gt=0, le=4.0)
    """Seconds for which a request waits for these replicas before it is answered with 503."""
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
    model_aliases: CommaSeparated[ModelAlias] = ()
    """Comma-separated further names of models, for clients with a fixed model name: `sora-2=demo`. Models files can
    contain aliases too."""
    models_file: ExpandedPath = MODELS_FILE
    """Model registry (TOML): every model, its limits and the source of its weights."""
    weights_dir: ExpandedPath = Field(default_factory=lambda settings: settings["data_dir"] / "models")
    """Folder into which `ivmix models fetch` downloads weights."""

    storage: Annotated[Literal["file", "s3"], Section("Storage")] = "file"
    """Where videos are stored: `file` (in IVMIX_DATA_DIR) or `s3`."""
    s3_bucket: str | None = None
    """Bucket; required with `s3`."""
    s3_prefix: S3Prefix = ""
    """Begin of every key, such as `team-a/ivmix`, for a bucket that others use too. Each ivmix needs its own."""
    s3_endpoint_url: str | None = None
    """URL of the S3 server, without the bucket. If unset: AWS."""
    s3_public_endpoint_url: str | None = None
    """URL under which clients reach the S3 server, if it differs from IVMIX_S3_ENDPOINT_URL; used in download URLs."""
    s3_ca_file: ExistingFile | None = None
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
    s3_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption to request for every object. If unset: what the bucket does by default."""
    s3_kms_key_id: str | None = None
    """Key of `aws:kms` and `aws:kms:dsse`, as id, ARN or alias. If unset: the account's key for S3."""
    s3_storage_class: StorageClass | None = None
    """Storage class of videos and what belongs to them, such as `STANDARD_IA`. Checkpoints and references, which are
    deleted soon, have the bucket's default."""
    s3_part_mb: int = Field(default=16, ge=5, le=1024)
    """Megabytes from which, and of which, a file is uploaded in parts, four at a time."""
    s3_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds without a byte from the server after which a request is aborted."""
    presign_seconds: int = Field(default=3600, ge=0, le=7 * 86400)
    """Lifetime of download URLs in seconds. 0: no URLs, the API serves the bytes itself."""
    storage_retry_s: float = Field(default=600.0, ge=0)
    """Seconds for which a worker retries to store a finished video before the job fails with `storage_unavailable`.
    Long, because sampling it again costs more."""
    scratch_dir: ExpandedPath | None = None
    """Folder in which a worker keeps finished files until they are stored."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, given: dict[str, Any]) -> dict[str, Any]:
        """As Compose's ${NAME:-} leaves a variable. An empty path would be the current folder, an empty host all
        addresses. Only of a list it has a meaning: none."""
        lists = {name for name, field in cls.model_fields.items() if isinstance(field.default, tuple)}
        return {name: value for name, value in given.items() if value != "" or name in lists}

    @model_validator(mode="after")
    def _has_s3_settings(self) -> Self:
        missing = [PREFIX + name.upper() for name in self._missing()]
        if missing:
            raise ValueError(
                f"{PREFIX}STORAGE=s3 needs {', '.join(missing)}; set what is missing, or use {PREFIX}STORAGE=file"
            )
        return self

    @model_validator(mode="after")
    def _has_kms_for_key(self) -> Self:
        if self.s3_kms_key_id is not None and not (self.s3_encryption or "").startswith("aws:kms"):
            raise ValueError(
                f"{PREFIX}S3_KMS_KEY_ID is the key of another encryption than {PREFIX}S3_ENCRYPTION="
                f"{self.s3_encryption or ''}; set {PREFIX}S3_ENCRYPTION=aws:kms, or unset the key"
            )
        return self

    @model_validator(mode="after")
    def _has_fitting_redis_options(self) -> Self:
        if problem := option_problem(self.redis_url, self._redis_options()):
            raise ValueError(problem)
        if self.redis_wait_replicas and self.redis_url is None:
            raise ValueError(
                f"{PREFIX}REDIS_WAIT_REPLICAS={self.redis_wait_replicas} is set, but {PREFIX}REDIS_URL is not, and the "
                "embedded server has no replicas; set both, or none"
            )
        return self

    def _missing(self) -> list[str]:
        if self.storage != "s3":
            return []
        has_one_key = self.s3_access_key_id is not None or self.s3_secret_access_key is not None
        needed = ["s3_bucket", *(["s3_access_key_id", "s3_secret_access_key"] if has_one_key else [])]
        return [name for name in needed if not getattr(self, name)]

    def _redis_options(self) -> dict[str, str | None]:
        password = self.redis_sentinel_password
        options = {
            "ssl_ca_certs": self.redis_ca_file,
            "ssl_certfile": self.redis_cert_file,
            "ssl_keyfile": self.redis_key_file,
            "sentinel_username": self.redis_sentinel_user or None,
            "sentinel_password": password.get_secret_value() or None if password else None,
        }
        return {name: None if value is None else str(value) for name, value in options.items()}

    @property
    def redis_address(self) -> str | None:
        """IVMIX_REDIS_URL with the settings of TLS and Sentinel, for `open_redis`; secret."""
        return None if self.redis_url is None else with_options(self.redis_url, self._redis_options())

    @property
    def needs_disk(self) -> bool:
        """Whether the queue or the videos are in IVMIX_DATA_DIR."""
        return self.storage == "file" or self.embedded_queue

    @property
    def scratch_folder(self) -> Path:
        return self.scratch_dir or self.data_dir / "scratch"
