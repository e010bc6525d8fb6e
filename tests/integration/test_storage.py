"""One class for both storages: what is true of one must be true of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.errors import StorageError
from service.settings import Settings
from service.storage import FileStorage, S3Storage, VideoStorage, sha256_of
from service.wiring import open_storage

KEY = "videos/video_1/e1/video.mp4"


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest) -> VideoStorage:
    return open_storage(request.getfixturevalue("s3" if request.param == "s3" else "settings"))


@pytest.fixture
def files(settings: Settings) -> FileStorage:
    opened = open_storage(settings)
    assert isinstance(opened, FileStorage)
    return opened


@pytest.fixture
def objects(s3: Settings) -> S3Storage:
    opened = open_storage(s3)
    assert isinstance(opened, S3Storage)
    return opened


def put(storage: VideoStorage, folder: Path, content: bytes, *, key: str = KEY, sha256: str | None = None) -> None:
    path = folder / "made.mp4"
    path.write_bytes(content)
    storage.put(path, key=key, media_type="video/mp4", sha256=sha256 or sha256_of(path))


def read(parts: Iterator[bytes]) -> bytes:
    return b"".join(parts)


class TestEveryStorage:
    def test_what_was_put_can_be_read(self, storage: VideoStorage, tmp_path: Path) -> None:
        content = bytes(range(256)) * 5000
        put(storage, tmp_path, content)
        assert storage.size(KEY) == len(content)
        assert read(storage.open(KEY)) == content

    def test_what_lies_below_a_name_is_listed(self, storage: VideoStorage, tmp_path: Path) -> None:
        for key in ("videos/a/e2/video.mp4", "videos/a/e1/video.mp4", "videos/ab/e1/video.mp4", "checkpoints/a"):
            put(storage, tmp_path, b"0123456789", key=key)
        found = list(storage.list("videos/a/"))
        assert [file.key for file in found] == ["videos/a/e1/video.mp4", "videos/a/e2/video.mp4"]
        assert found[0].size_bytes == 10
        assert list(storage.list("videos/b/")) == []

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (3, 7), (9, 10), (4, None), (0, None), (5, 5)])
    def test_a_part_is_the_same_as_a_slice(
        self, storage: VideoStorage, tmp_path: Path, start: int, end: int | None
    ) -> None:
        put(storage, tmp_path, b"0123456789")
        assert read(storage.open(KEY, start, end)) == b"0123456789"[start:end]

    def test_the_same_key_again_replaces(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"first")
        put(storage, tmp_path, b"second one")
        assert read(storage.open(KEY)) == b"second one"

    def test_a_file_that_changed_on_its_way_is_refused_and_not_kept(
        self, storage: VideoStorage, tmp_path: Path
    ) -> None:
        with pytest.raises(StorageError, match="sha256"):
            put(storage, tmp_path, b"abc", sha256="0" * 64)
        assert storage.size(KEY) is None

    def test_nothing_is_known_of_a_key_that_was_never_put(self, storage: VideoStorage) -> None:
        assert storage.size(KEY) is None

    def test_opening_a_missing_key_fails_at_the_call(self, storage: VideoStorage) -> None:
        with pytest.raises(StorageError, match=KEY):
            storage.open(KEY)

    def test_deleting_twice_is_fine(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"abc")
        storage.delete(KEY)
        storage.delete(KEY)
        assert storage.size(KEY) is None

    def test_deleting_one_leaves_the_others(self, storage: VideoStorage, tmp_path: Path) -> None:
        other = "videos/video_1/e2/video.mp4"
        put(storage, tmp_path, b"abc")
        put(storage, tmp_path, b"abcd", key=other)
        storage.delete(KEY)
        assert storage.size(other) == 4

    def test_a_file_that_is_not_there_cannot_be_put(self, storage: VideoStorage, tmp_path: Path) -> None:
        with pytest.raises(StorageError):
            storage.put(tmp_path / "nothing", key=KEY, media_type="video/mp4", sha256="0" * 64)


class TestFiles:
    @pytest.mark.parametrize(
        "key", ["", ".", "../out", "a/../../out", "/etc/passwd", "a\0b", "videos/../../data2/x"], ids=repr
    )
    def test_no_key_leads_out_of_the_folder(self, files: FileStorage, tmp_path: Path, key: str) -> None:
        for attempt in (
            lambda: put(files, tmp_path, b"abc", key=key),
            lambda: files.open(key),
            lambda: files.size(key),
            lambda: files.delete(key),
        ):
            with pytest.raises(StorageError):
                attempt()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["made.mp4"]

    def test_no_link_leads_out_of_the_folder(self, files: FileStorage, settings: Settings, tmp_path: Path) -> None:
        (settings.data_dir / "storage").mkdir(parents=True)
        (tmp_path / "secret").write_text("x")
        (settings.data_dir / "storage" / "link").symlink_to(tmp_path)
        with pytest.raises(StorageError):
            files.open("link/secret")

    def test_a_failed_put_leaves_no_rest(
        self, files: FileStorage, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_space(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", no_space)
        with pytest.raises(StorageError, match="No space"):
            put(files, tmp_path, b"abc")
        assert [path for path in (settings.data_dir / "storage").rglob("*") if path.is_file()] == []

    def test_deleting_takes_the_empty_folders_along(
        self, files: FileStorage, settings: Settings, tmp_path: Path
    ) -> None:
        put(files, tmp_path, b"abc")
        files.delete(KEY)
        assert [path.name for path in (settings.data_dir / "storage").rglob("*")] == ["videos"]

    def test_the_service_serves_files_itself(self, files: FileStorage, tmp_path: Path) -> None:
        put(files, tmp_path, b"abc")
        assert files.url(KEY, filename="a.mp4", media_type="video/mp4") is None


class TestS3:
    def test_the_address_serves_the_file_with_type_and_name(self, objects: S3Storage, tmp_path: Path) -> None:
        put(objects, tmp_path, b"abc")
        url = objects.url(KEY, filename="video_1.mp4", media_type="video/mp4")
        answer = httpx2.get(url, headers={"range": "bytes=1-1"})
        assert (answer.status_code, answer.content) == (206, b"b")
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"] == 'inline; filename="video_1.mp4"'

    def test_the_address_is_signed_and_ends(self, objects: S3Storage) -> None:
        url = httpx2.URL(objects.url(KEY, filename="a.mp4", media_type="video/mp4"))
        assert url.params["X-Amz-Expires"] == "3600"
        assert "X-Amz-Signature" in url.params

    def test_a_server_that_does_not_answer_is_a_storage_error(self, s3: Settings, tmp_path: Path) -> None:
        away = open_storage(s3.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
        for attempt in (lambda: put(away, tmp_path, b"abc"), lambda: away.size(KEY), lambda: away.open(KEY)):
            with pytest.raises(StorageError):
                attempt()

    def test_a_missing_bucket_is_a_storage_error(self, s3: Settings, tmp_path: Path) -> None:
        away = open_storage(s3.model_copy(update={"s3_bucket": "no-such-bucket"}))
        with pytest.raises(StorageError, match="NoSuchBucket"):
            put(away, tmp_path, b"abc")
