"""Features that only S3 has, and its failures. The server is Swift, except where moto's behaviour matters."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from service.errors import ConfigurationError, StorageError
from service.settings import Settings
from service.storage import StorageRetry, VideoStorage, read, sha256_of
from service.storage.s3 import S3Storage
from service.wiring import check_storage, open_storage
from tests.conftest import open_s3
from tests.faulty_proxy import Fault, FaultyProxy
from tests.processes import wait_for
from tests.swift import DOMAIN

KEY = "videos/video_1/e1/video.mp4"
MIB = 1024 * 1024


def change(settings: Settings, **fields: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **fields})


def put(storage: VideoStorage, folder: Path, content: bytes = b"abc" * 1000) -> None:
    path = folder / "made.mp4"
    path.write_bytes(content)
    storage.put(path, key=KEY, media_type="video/mp4", sha256=sha256_of(path))


class TestUpload:
    def test_the_object_says_what_it_is(self, swift: Settings, tmp_path: Path) -> None:
        put(open_storage(swift), tmp_path)
        with closing(open_s3(swift)) as admin:
            head = admin.head_object(Bucket=swift.s3_bucket, Key=KEY)
        assert (head["ContentType"], head["ContentLength"]) == ("video/mp4", 3000)
        assert head["Metadata"] == {"sha256": sha256_of(tmp_path / "made.mp4")}

    @pytest.mark.parametrize("checksum", ["when_required", "when_supported"])
    @pytest.mark.parametrize("server", ["swift", "swift_tls"])
    def test_a_large_file_goes_in_parts(
        self, request: pytest.FixtureRequest, server: str, checksum: str, tmp_path: Path
    ) -> None:
        settings = change(request.getfixturevalue(server), s3_checksum=checksum)
        assert settings.s3_bucket is not None
        storage = open_storage(settings)
        assert isinstance(storage, S3Storage)
        small_parts = S3Storage(storage._client, bucket=settings.s3_bucket, presign_seconds=60, part_bytes=5 * MIB)
        content = bytes(range(256)) * (11 * MIB // 256)
        put(small_parts, tmp_path, content)
        assert read(storage, KEY) == content
        with closing(open_s3(settings)) as admin:
            head = admin.head_object(Bucket=settings.s3_bucket, Key=KEY)
            assert head["ETag"].endswith('-3"')
            assert (head["ContentType"], "sha256" in head["Metadata"]) == ("video/mp4", True)

    def test_an_upload_in_parts_that_was_given_up_is_cleaned(self, swift: Settings) -> None:
        storage = open_storage(swift)
        with closing(open_s3(swift)) as admin:
            admin.create_multipart_upload(Bucket=swift.s3_bucket, Key=KEY)
            assert storage.clean(older_than_s=3600) == 0
            assert storage.clean(older_than_s=-5) == 1
            assert "Uploads" not in admin.list_multipart_uploads(Bucket=swift.s3_bucket)


class TestAddress:
    @pytest.mark.parametrize("server", ["s3", "swift", "swift_tls"])
    def test_the_address_serves_the_file_with_type_and_name(
        self, request: pytest.FixtureRequest, server: str, tmp_path: Path
    ) -> None:
        settings: Settings = request.getfixturevalue(server)
        storage = open_storage(settings)
        put(storage, tmp_path, b"abc")
        with browser(settings) as http:
            answer = http.get(address(storage), headers={"range": "bytes=1-1"})
        assert (answer.status_code, answer.content) == (206, b"b")
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"] == 'inline; filename="video_1.mp4"'

    def test_the_address_ends(self, swift: Settings, tmp_path: Path) -> None:
        storage = open_storage(change(swift, presign_seconds=1))
        put(storage, tmp_path)
        url = httpx2.URL(address(storage))
        assert url.params["X-Amz-Expires"] == "1"
        with browser(swift) as http:
            wait_for(lambda: http.get(url).status_code == 403, timeout_s=20)

    def test_the_address_serves_nothing_else(self, swift: Settings, tmp_path: Path) -> None:
        storage = open_storage(swift)
        put(storage, tmp_path)
        with browser(swift) as http:
            assert http.get(address(storage)).status_code == 200
            assert http.get(address(storage).replace("video_1/e1", "video_2/e1")).status_code == 403

    def test_zero_seconds_mean_that_the_service_serves_it_itself(self, swift: Settings) -> None:
        storage = open_storage(change(swift, presign_seconds=0))
        assert storage.url(KEY, filename="a.mp4", media_type="video/mp4") is None

    def test_clients_get_the_name_by_which_they_reach_the_server(self, swift: Settings, tmp_path: Path) -> None:
        """With the bucket in the host name, as AWS prefers. The test connects to 127.0.0.1 without DNS."""
        assert swift.s3_endpoint_url is not None
        port = urlsplit(swift.s3_endpoint_url).port
        public = f"http://{DOMAIN}:{port}"
        put(open_storage(swift), tmp_path)
        storage = open_storage(change(swift, s3_public_endpoint_url=public, s3_addressing_style="virtual"))
        url = httpx2.URL(address(storage))
        assert (url.host, url.path) == (f"{swift.s3_bucket}.{DOMAIN}", f"/{KEY}")
        with browser(swift) as http:
            answer = http.get(url.copy_with(host="127.0.0.1"), headers={"host": f"{url.host}:{port}"})
        assert (answer.status_code, answer.content) == (200, (tmp_path / "made.mp4").read_bytes())


class TestRefusal:
    """At start-up, errors that need another setting name it; temporary errors are only logged."""

    @pytest.mark.parametrize("server", ["swift", "swift_tls"])
    def test_a_wrong_secret_is_named(self, request: pytest.FixtureRequest, server: str) -> None:
        settings = change(request.getfixturevalue(server), s3_secret_access_key="wrong")
        with pytest.raises(ConfigurationError, match="IVMIX_S3_SECRET_ACCESS_KEY do not belong together") as caught:
            check_storage(open_storage(settings))
        assert "wrong" not in str(caught.value)

    def test_a_missing_bucket_is_named(self, swift: Settings) -> None:
        with pytest.raises(ConfigurationError, match=r"'no-such-bucket'.*IVMIX_S3_BUCKET"):
            check_storage(open_storage(change(swift, s3_bucket="no-such-bucket")))

    def test_an_invalid_bucket_name_is_named(self, swift: Settings) -> None:
        with pytest.raises(ConfigurationError, match="IVMIX_S3_BUCKET"):
            check_storage(open_storage(change(swift, s3_bucket="no bucket!")))

    def test_an_unknown_ca_is_named(self, swift_tls: Settings) -> None:
        with pytest.raises(ConfigurationError, match="IVMIX_S3_CA_FILE"):
            check_storage(open_storage(change(swift_tls, s3_ca_file=None)))

    def test_an_invalid_url_is_named(self, swift: Settings) -> None:
        with pytest.raises(ConfigurationError, match="IVMIX_S3_ENDPOINT_URL"):
            open_storage(change(swift, s3_endpoint_url="swift:8080/no scheme"))

    def test_no_credentials_anywhere_are_named(self, swift: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        without = change(swift, s3_access_key_id=None, s3_secret_access_key=None)
        with pytest.raises(ConfigurationError, match="IVMIX_S3_ACCESS_KEY_ID"):
            check_storage(open_storage(without))

    def test_an_unreachable_server_does_not_stop_the_start(
        self, swift: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A process must be able to start while the storage is down: status polls do not need it."""
        check_storage(open_storage(change(swift, s3_endpoint_url="http://127.0.0.1:9")))
        assert "is unreachable" in caplog.text

    def test_an_unreachable_server_is_a_storage_error(self, swift: Settings, tmp_path: Path) -> None:
        unreachable = open_storage(change(swift, s3_endpoint_url="http://127.0.0.1:9"))
        for attempt in (
            lambda: put(unreachable, tmp_path),
            lambda: unreachable.size(KEY),
            lambda: unreachable.open(KEY),
            lambda: unreachable.matches(KEY, size_bytes=3, sha256=""),
            lambda: list(unreachable.list("")),
            lambda: unreachable.delete(KEY),
            lambda: unreachable.clean(older_than_s=0),
        ):
            with pytest.raises(StorageError):
                attempt()


@pytest.fixture
def proxy(swift: Settings) -> Iterator[FaultyProxy]:
    assert swift.s3_endpoint_url is not None
    with FaultyProxy(swift.s3_endpoint_url) as running:
        yield running


class TestFaults:
    """Three faults in a row, because boto3 itself retries once."""

    @pytest.mark.parametrize("fault", ["drop", "503", "hang", "cut", "flip", "late"])
    def test_an_upload_survives_it(self, swift: Settings, proxy: FaultyProxy, tmp_path: Path, fault: Fault) -> None:
        storage = open_storage(change(swift, s3_endpoint_url=proxy.url, s3_timeout_s=1))
        proxy.faults.extend([fault] * 3)
        StorageRetry(budget_s=120).call(lambda: put(storage, tmp_path))
        assert not proxy.faults
        assert read(open_storage(swift), KEY) == (tmp_path / "made.mp4").read_bytes()

    @pytest.mark.parametrize("fault", ["drop", "503", "cut", "flip"])
    def test_an_upload_that_failed_is_not_there(
        self, swift: Settings, proxy: FaultyProxy, tmp_path: Path, fault: Fault
    ) -> None:
        storage = open_storage(change(swift, s3_endpoint_url=proxy.url))
        proxy.faults.extend([fault] * 2)
        with pytest.raises(StorageError, match=KEY):
            put(storage, tmp_path)
        assert open_storage(swift).size(KEY) is None

    def test_corruption_is_found_on_a_server_that_checks_nothing(self, s3: Settings, tmp_path: Path) -> None:
        """moto, like some real servers, checks nothing that it receives."""
        assert s3.s3_endpoint_url is not None
        with FaultyProxy(s3.s3_endpoint_url) as proxy:
            storage = open_storage(change(s3, s3_endpoint_url=proxy.url))
            proxy.faults.append("flip")
            with pytest.raises(StorageError, match="stored bytes differ"):
                put(storage, tmp_path)
            assert storage.size(KEY) is None
            proxy.faults.append("flip")
            StorageRetry(budget_s=60).call(lambda: put(storage, tmp_path))
        assert read(storage, KEY) == (tmp_path / "made.mp4").read_bytes()

    def test_retries_end_when_the_storage_stays_unavailable(
        self, swift: Settings, proxy: FaultyProxy, tmp_path: Path
    ) -> None:
        storage = open_storage(change(swift, s3_endpoint_url=proxy.url))
        proxy.faults.extend(["503"] * 1000)
        began = time.monotonic()
        with pytest.raises(StorageError):
            StorageRetry(budget_s=2).call(lambda: put(storage, tmp_path))
        assert time.monotonic() - began < 60
        assert len(proxy.seen) > 2


def browser(settings: Settings) -> httpx2.Client:
    """A client that trusts the CA of the server, but has no key."""
    verify = ssl.create_default_context(cafile=settings.s3_ca_file) if settings.s3_ca_file else True
    return httpx2.Client(verify=verify, trust_env=False, timeout=30)


def address(storage: VideoStorage) -> str:
    url = storage.url(KEY, filename="video_1.mp4", media_type="video/mp4")
    assert url is not None
    return url
