"""A disk that is full: backups and the data folder say so, and nothing incomplete is left."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api_keys import digest_of
from service.errors import ConfigurationError
from service.maintenance.backup_file import BackupWriter
from service.process.data_folder import prepare_folder


@pytest.fixture(params=[0, 100])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder whose files cannot become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (request.param, hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_much(file: Path) -> None:
    """More than the buffers hold."""
    with BackupWriter(file, made_by="a test") as writer:
        for number in range(20_000):
            writer.write({"key": digest_of(str(number))})


def test_a_backup_names_its_file_and_leaves_nothing(full: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"b\.gz cannot be written: File too large; make room, or name"):
        write_much(full / "b.gz")
    assert list(full.iterdir()) == []


def test_the_data_folder_needs_room_and_no_rights(full: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"IVMIX_DATA_DIR=.*; make room, or set IVMIX_DATA_DIR to"):
        prepare_folder(full, "IVMIX_DATA_DIR")
