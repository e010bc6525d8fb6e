"""What the service image is made of: the extra `api`, in an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clients import run
from tests.containers import IMAGES, ROOT


@pytest.mark.slow
def test_api_extra_alone_runs_the_service_and_has_no_torch(tmp_path: Path) -> None:
    """Installs as docker/service.Dockerfile does: same extra, same constraints, not editable."""
    assert "-c constraints.txt '.[api]'" in IMAGES["ivmix-service"].read_text()
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    source = tmp_path / "source"  # what .dockerignore lets through; a build leaves nothing behind in the checkout
    source.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            run("cp", "-r", str(ROOT / line[1:]), str(source))
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "-c", "constraints.txt", ".[api]", cwd=source)
    installed = {name.partition("==")[0].lower() for name in run(*pip, "list", "--format=freeze").split()}
    assert not {"torch", "diffusers", "transformers", "numpy", "av"} & installed
    program = "import service.api.app, service.courier.running, service.maintenance, service.cli, service.recovery"
    run(str(python), "-c", program, cwd=tmp_path, env={})
    helped = run(str(python.with_name("ivmix")), "--help", cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert "maintenance" in helped
    listed = run(
        *(str(python.with_name("ivmix")), "models", "list"),
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "IVMIX_MODELS": "animatediff", "IVMIX_DATA_DIR": str(tmp_path)},
    )
    assert "animatediff" in listed
