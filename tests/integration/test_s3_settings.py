"""Encryption, storage class, parts and wrong settings, on real servers: moto, Swift."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import ConfigurationError, StorageError
from service.settings import Settings, load_settings
from service.storage import object_keys, read, sha256_of
from service.wiring import check_storage, open_storage
from tests.conftest import open_s3
from tests.faulty_proxy import FaultyProxy

VIDEO, CHECKPOINT = "videos/video_1/e1/video.mp4", object_keys.checkpoint("video_1")
MIB = 2**20


def change(settings: Settings, **fields: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **fields})


def store_two(settings: Settings, folder: Path, content: bytes = b"video") -> None:
    storage, file = open_storage(settings), folder / "file"
    file.write_bytes(content)
    for key in (VIDEO, CHECKPOINT):
        storage.put(file, key=key, media_type="video/mp4", sha256=sha256_of(file))
        assert read(storage, key) == content


def heads(settings: Settings) -> list[dict[str, str]]:
    with closing(open_s3(settings)) as admin:
        return [
            admin.head_object(Bucket=settings.s3_bucket, Key=settings.s3_prefix + key) for key in (VIDEO, CHECKPOINT)
        ]


@pytest.mark.sample(2)
@pytest.mark.parametrize("size", [5, 6 * MIB], ids=["at-once", "in-parts"])
@pytest.mark.parametrize("encryption", ["AES256", "aws:kms"])
def test_objects_are_encrypted_as_asked(encryption: str, size: int, s3: Settings, tmp_path: Path) -> None:
    key_id = "alias/videos" if encryption == "aws:kms" else None
    settings = change(s3, s3_encryption=encryption, s3_kms_key_id=key_id, s3_prefix="team-a", s3_part_mb=5)
    check_storage(open_storage(settings))
    store_two(settings, tmp_path, b"x" * size)
    for head in heads(settings):
        assert head["ServerSideEncryption"] == encryption
        assert head.get("SSEKMSKeyId") == key_id


def test_only_what_is_kept_has_the_storage_class(s3: Settings, tmp_path: Path) -> None:
    """A class for rare access bills a checkpoint, which is replaced every 20 s, for a month."""
    settings = change(s3, s3_storage_class="STANDARD_IA")
    check_storage(open_storage(settings))
    store_two(settings, tmp_path)
    assert [head.get("StorageClass") for head in heads(settings)] == ["STANDARD_IA", None]


@pytest.mark.parametrize("server", ["swift", pytest.param("seaweed", marks=pytest.mark.slow)])
def test_encryption_that_a_server_does_not_offer_is_refused(server: str, request: pytest.FixtureRequest) -> None:
    """Swift says so; SeaweedFS without a key answers that it has an internal error."""
    settings: Settings = request.getfixturevalue(server)
    with pytest.raises(ConfigurationError, match=r"^IVMIX_S3_ENCRYPTION=AES256: the server (rejects|stores)"):
        check_storage(open_storage(change(settings, s3_encryption="AES256")))
    with closing(open_s3(settings)) as admin:
        assert "Contents" not in admin.list_objects_v2(Bucket=settings.s3_bucket)


@pytest.mark.slow
def test_seaweed_keeps_the_storage_class_and_files_in_parts(seaweed: Settings, tmp_path: Path) -> None:
    settings = change(seaweed, s3_storage_class="STANDARD_IA", s3_part_mb=5, s3_prefix="team-a")
    check_storage(open_storage(settings))
    store_two(settings, tmp_path, b"x" * (6 * MIB))
    assert [head.get("StorageClass", "STANDARD") for head in heads(settings)] == ["STANDARD_IA", "STANDARD"]


@pytest.fixture
def proxy(swift: Settings) -> Iterator[FaultyProxy]:
    assert swift.s3_endpoint_url is not None
    with FaultyProxy(swift.s3_endpoint_url) as running:
        yield running


def test_a_failed_upload_in_parts_leaves_nothing(swift: Settings, proxy: FaultyProxy, tmp_path: Path) -> None:
    settings = change(swift, s3_endpoint_url=proxy.url, s3_part_mb=5, s3_timeout_s=2)
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * (11 * MIB // 256))
    proxy.faults.extend(["503"] * 20)  # every part, but not the request that aborts the upload
    with pytest.raises(StorageError):
        open_storage(settings).put(file, key=VIDEO, media_type="video/mp4", sha256=sha256_of(file))
    with closing(open_s3(swift)) as admin:
        assert "Uploads" not in admin.list_multipart_uploads(Bucket=swift.s3_bucket)
        assert "Contents" not in admin.list_objects_v2(Bucket=swift.s3_bucket)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"s3_bucket": "s3://clips/team-a/"}, "set IVMIX_S3_BUCKET=clips and IVMIX_S3_PREFIX=team-a"),
        ({"s3_bucket": "arn:aws:s3:::clips"}, "set IVMIX_S3_BUCKET=clips"),
        ({"s3_bucket": "clips/videos of b"}, "set IVMIX_S3_BUCKET=clips"),
        ({"s3_bucket": "https://host/clips"}, "is not the name of a bucket; write its name only"),
        ({"s3_endpoint_url": "s3://clips"}, "IVMIX_S3_ENDPOINT_URL=s3://clips does not begin with https://"),
        ({"s3_endpoint_url": "s3.example.com:9000"}, "does not begin with https://"),
        ({"s3_endpoint_url": "https://user:hush@host"}, "IVMIX_S3_ENDPOINT_URL contains a user"),
        ({"s3_endpoint_url": "https://host?token=hush"}, "IVMIX_S3_ENDPOINT_URL goes on after its path"),
        ({"s3_endpoint_url": "https://eu-west-1.console.aws.amazon.com/s3"}, "is a console for people"),
        ({"s3_endpoint_url": "https://s3.console.aws.amazon.com/s3"}, "is a console for people"),
        (
            {"s3_endpoint_url": "https://clips.s3.eu-west-1.amazonaws.com"},
            "set IVMIX_S3_ENDPOINT_URL=https://s3.eu-west-1.amazonaws.com",
        ),
        (
            {"s3_public_endpoint_url": "https://clips.s3-accelerate.amazonaws.com"},
            "set IVMIX_S3_PUBLIC_ENDPOINT_URL=https://s3-accelerate.amazonaws.com",
        ),
        ({"s3_secret_access_key": "hush\n"}, "IVMIX_S3_SECRET_ACCESS_KEY contains a space or line break"),
        ({"s3_access_key_id": " key"}, "IVMIX_S3_ACCESS_KEY_ID contains a space or line break"),
    ],
)
def test_values_that_cannot_be_right(fields: dict[str, str], words: str) -> None:
    """Without a server."""
    given = {"storage": "s3", "s3_bucket": "clips", "s3_access_key_id": "key", "s3_secret_access_key": "hush"}
    settings = Settings.model_validate({**given, **fields})
    with pytest.raises(ConfigurationError) as raised:
        open_storage(settings)
    assert words in raised.value.message
    assert "hush" not in raised.value.message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("S3_PREFIX", "/team-a", "IVMIX_S3_PREFIX: '/team-a' is not a prefix such as team-a/ivmix"),
        ("S3_PREFIX", "team//a", "is not a prefix"),
        ("S3_PREFIX", "../other", "is not a prefix"),
        ("S3_PREFIX", "team a", "is not a prefix"),
        ("S3_PREFIX", "team-a/videos", "contains 'videos', a name of ivmix's own folders"),
        ("S3_PREFIX", "x" * 201, "201 characters; 200 are possible"),
        ("S3_ENCRYPTION", "AES-256", "IVMIX_S3_ENCRYPTION"),
        ("S3_STORAGE_CLASS", "GLACIER", "use GLACIER_IR or STANDARD_IA"),
        ("S3_STORAGE_CLASS", "standard-ia", "is not a storage class"),
        ("S3_KMS_KEY_ID", "alias/x", "set IVMIX_S3_ENCRYPTION=aws:kms"),
        ("S3_PART_MB", "4", "IVMIX_S3_PART_MB"),
        ("REDIS_CA_FILE", __file__, "IVMIX_REDIS_CA_FILE is set, but IVMIX_REDIS_URL is not"),
        ("REDIS_CA_FILE", "/nowhere", "'/nowhere' is not a file"),
        ("REDIS_WAIT_S", "5", "IVMIX_REDIS_WAIT_S"),
    ],
)
def test_settings_that_are_refused(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"IVMIX_{name}", value)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert words in raised.value.message


def test_a_prefix_ends_with_one_slash() -> None:
    assert [Settings(s3_prefix=given).s3_prefix for given in ("", "a", "a/", "a/b")] == ["", "a/", "a/", "a/b/"]
