"""Other users of the machine can read neither prompts nor videos."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.process.data_folder import keep_private
from service.process.embedded_valkey import running_server_url
from tests.containers import ROOT
from tests.processes import clean_environment, ivmix_up, started, wait_for


@pytest.fixture(autouse=True)
def umask_of_a_shell() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in paths}


def old_folder(data: Path) -> None:
    """As version 0.1.0 left it."""
    for folder in ("valkey/appendonlydir", "storage/videos/video_1", "scratch/video_2", "models"):
        (data / folder).mkdir(parents=True)
    for file in ("valkey/server.log", "valkey/appendonlydir/a.aof", "storage/videos/video_1/video.mp4"):
        (data / file).write_text("secret")
        (data / file).chmod(0o644)


def test_what_up_creates_is_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ivmix_up(data, "--workers", "0") as (_, url), httpx2.Client(base_url=url) as http:
        assert http.post("/v1/videos", json={"prompt": "a red circle"}).status_code == 200
        environment = {"IVMIX_DATA_DIR": str(data), "IVMIX_REDIS_URL": redis_url(data)}
        with started(environment | {"FAKE_STEP_S": "0.01"}, "tests.fake_worker"):
            wait_for(lambda: next(data.glob("storage/**/*.mp4"), None), timeout_s=60)
        found = modes(data)
    assert len(found) > 10
    loose = {path: oct(mode) for path, mode in found.items() if mode & 0o077}
    assert not loose


def redis_url(data: Path) -> str:
    url = running_server_url(data)
    assert url is not None
    return url


def test_the_folder_of_an_earlier_version_becomes_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    old_folder(data)
    keep_private(data)
    loose = {path for path, mode in modes(data).items() if mode & 0o077}
    assert loose <= {"models"}  # weights are no secret, and the folder above is closed


def test_a_folder_that_is_not_only_ours_keeps_its_mode(tmp_path: Path) -> None:
    """`--data .` in a home folder, or --data /tmp."""
    data = tmp_path / "data"
    old_folder(data)
    data.chmod(0o755)
    (data / "letters.txt").write_text("mine")
    keep_private(data)
    found = modes(data)
    assert found["."] == 0o755
    assert found["letters.txt"] == 0o644
    assert found["storage"] == found["valkey"] == found["scratch"] == 0o700


def test_a_volume_shared_by_a_group_stays_shared(tmp_path: Path) -> None:
    """Kubernetes' fsGroup sets the set-group-id bit and gives the group full access."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o2775)
    program = (
        "from pathlib import Path; import sys; from service.process.data_folder import keep_private\n"
        "data = Path(sys.argv[1]); keep_private(data)\n"
        "(data / 'storage').mkdir(); (data / 'storage' / 'a').touch()"
    )
    command = [sys.executable, "-c", program, str(data)]
    subprocess.run(command, check=True, env=clean_environment() | {"PYTHONPATH": str(ROOT)})
    assert modes(data) == {".": 0o2770, "storage": 0o2770, "storage/a": 0o660}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    old_folder(data)
    os.chown(data / "valkey" / "server.log", 12345, 12345)
    os.chmod(data / "valkey" / "server.log", 0o644)
    keep_private(data)
    assert modes(data)["valkey/server.log"] == 0o644
