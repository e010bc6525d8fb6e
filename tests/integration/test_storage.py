"""Behaviour of every storage in one class; then what only file storage has."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ConfigurationError, StorageError
from service.settings import Settings
from service.storage import FileStorage, VideoStorage, read, sha256_of
from service.wiring import open_storage
from tests.processes import wait_for

KEY = "videos/video_1/e1/video.mp4"


@pytest.fixture(params=["settings", "s3", "swift", "swift_tls"], ids=["file", "moto", "swift", "swift-tls"])
def storage(request: pytest.FixtureRequest) -> VideoStorage:
    return open_storage(request.getfixturevalue(request.param))


@pytest.fixture
def files(settings: Settings) -> FileStorage:
    opened = open_storage(settings)
    assert isinstance(opened, FileStorage)
    return opened


def put(storage: VideoStorage, folder: Path, content: bytes, *, key: str = KEY, sha256: str | None = None) -> None:
    path = folder / "made.mp4"
    path.write_bytes(content)
    storage.put(path, key=key, media_type="video/mp4", sha256=sha256 or sha256_of(path))


def whole(parts: Iterator[bytes]) -> bytes:
    return b"".join(parts)


class TestEveryStorage:
    def test_what_was_put_can_be_read(self, storage: VideoStorage, tmp_path: Path) -> None:
        content = bytes(range(256)) * 5000
        put(storage, tmp_path, content)
        assert storage.size(KEY) == len(content)
        assert whole(storage.open(KEY)) == content

    def test_keys_below_a_prefix_are_listed(self, storage: VideoStorage, tmp_path: Path) -> None:
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
        assert whole(storage.open(KEY, start, end)) == b"0123456789"[start:end]

    def test_what_is_opened_and_never_read_is_closed(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"abc")
        storage.open(KEY).close()
        gc.collect()  # an open file would be a ResourceWarning, which fails the test

    def test_the_same_key_again_replaces(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"first")
        put(storage, tmp_path, b"second one")
        assert whole(storage.open(KEY)) == b"second one"

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

    def test_matches_compares_size_and_checksum(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"abc")
        digest = sha256_of(tmp_path / "made.mp4")
        assert storage.matches(KEY, size_bytes=3, sha256=digest)
        assert not storage.matches(KEY, size_bytes=4, sha256=digest)
        assert not storage.matches(KEY, size_bytes=3, sha256="0" * 64)
        assert not storage.matches("videos/nothing", size_bytes=3, sha256=digest)

    def test_everything_below_a_prefix_is_listed_in_order(self, storage: VideoStorage, tmp_path: Path) -> None:
        for key in ("videos/v10/e/a", "videos/v1/e/b", "videos/v1-x", "videos/v1/a", "other/v1/a"):
            put(storage, tmp_path, key.encode(), key=key)
        assert [stored.key for stored in storage.list("videos/v1/")] == ["videos/v1/a", "videos/v1/e/b"]
        everything = {stored.key: stored.size_bytes for stored in storage.list("")}
        assert list(everything) == sorted(everything)
        assert everything["other/v1/a"] == 10
        assert len(list(storage.list("videos/v1"))) == 4
        assert list(storage.list("nothing/")) == []

    def test_listed_objects_have_their_modification_time(self, storage: VideoStorage, tmp_path: Path) -> None:
        before = time.time()
        put(storage, tmp_path, b"abc")
        (stored,) = storage.list(KEY)
        assert before - 2 <= stored.modified_at <= time.time() + 2  # Swift rounds up to whole seconds

    def test_something_small_is_read_at_once(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"abc")
        assert read(storage, KEY) == b"abc"

    def test_an_empty_file_is_a_file(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"")
        assert (storage.size(KEY), read(storage, KEY)) == (0, b"")

    def test_a_check_of_what_works_leaves_nothing(self, storage: VideoStorage) -> None:
        storage.check()
        assert list(storage.list("")) == []

    def test_cleaning_leaves_what_was_put(self, storage: VideoStorage, tmp_path: Path) -> None:
        put(storage, tmp_path, b"abc")
        assert storage.clean(older_than_s=-5) == 0
        assert storage.size(KEY) == 3

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

    def test_what_a_killed_put_left_is_cleaned_and_never_shown(
        self, files: FileStorage, settings: Settings, tmp_path: Path
    ) -> None:
        put(files, tmp_path, b"abc")
        os.mkfifo(tmp_path / "endless")
        command = [sys.executable, "-c", _PUT_AND_HANG, str(settings.data_dir), str(tmp_path / "endless")]
        with subprocess.Popen(command) as process, (tmp_path / "endless").open("wb") as pipe:
            pipe.write(b"x" * 100_000)
            pipe.flush()
            wait_for(lambda: list((settings.data_dir / "storage").rglob(".part-*")) or None)
            process.kill()
            process.wait()
        assert [stored.key for stored in files.list("")] == [KEY]
        assert files.clean(older_than_s=3600) == 0  # it may still be going on
        assert files.clean(older_than_s=0) == 1
        assert list((settings.data_dir / "storage").rglob(".part-*")) == []

    def test_a_folder_that_cannot_be_written_is_named_with_its_setting(self, tmp_path: Path) -> None:
        (tmp_path / "storage").write_text("a file where the folder should be")
        with pytest.raises(ConfigurationError, match="IVMIX_DATA_DIR"):
            FileStorage(tmp_path / "storage").check()

    def test_a_new_name_is_on_the_disk_with_every_folder_above_it(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rename, and a folder made for it, survive a power cut only if the folder that got the name is synced."""
        synced: list[str] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            real(descriptor)

        monkeypatch.setattr("os.fsync", fsync)
        put(FileStorage(tmp_path / "new" / "root"), tmp_path, b"abc")
        root = tmp_path / "new" / "root"
        parents = [
            tmp_path,
            tmp_path / "new",
            root,
            root / "videos",
            root / "videos/video_1",
            root / "videos/video_1/e1",
        ]
        assert [path for path in synced if "/.part-" not in path] == [str(path) for path in parents]
        assert sum("/.part-" in path for path in synced) == 1


# The source never ends, so the put never does.
_PUT_AND_HANG = """
import sys
from pathlib import Path
from service.storage import FileStorage
from service.storage import file as files
files.verify_sha256 = lambda path, sha256: None
FileStorage(Path(sys.argv[1]) / "storage").put(Path(sys.argv[2]), key="videos/v/e/x", media_type="", sha256="")
"""
