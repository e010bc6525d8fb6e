"""The installation steps of the service image's Dockerfile, in a separate environment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.containers import IMAGES, ROOT
from tests.external_programs import run

FORBIDDEN = {"torch", "diffusers", "transformers", "numpy", "av"}


@pytest.mark.slow
def test_service_image_runs_the_service_and_has_no_torch(tmp_path: Path) -> None:
    venv, source = tmp_path / "venv", tmp_path / "source"
    run(sys.executable, "-m", "venv", str(venv))
    build = IMAGES["ivmix-service"].read_text().replace("\\\n", " ").partition("\nFROM ")[2].partition("\nFROM ")[0]
    for verb, text in re.findall(r"^(COPY|RUN) (.*)$", build, re.MULTILINE):
        if verb == "COPY":
            _copy(text.split(), source)
        elif "pip install" in text:  # the environment itself is made above
            command = re.sub(r"^--mount=\S+ *", "", text).replace("/opt/ivmix", str(venv))
            run("sh", "-c", command, cwd=source)
    python, ivmix = venv / "bin" / "python", venv / "bin" / "ivmix"
    installed = {name.partition("==")[0].lower() for name in run(str(python), "-m", "pip", "freeze").split()}
    assert "fastapi" in installed
    assert not FORBIDDEN & installed
    modules = ("api.app", "webhook_dispatcher.dispatcher", "maintenance.leader", "maintenance.recovery")
    program = "; ".join(f"import service.{module}" for module in modules)
    environment = {"HOME": str(tmp_path), "IVMIX_DATA_DIR": str(tmp_path), "COLUMNS": "200"}
    run(str(python), "-c", program, cwd=tmp_path, env=environment)
    assert "maintenance" in run(str(ivmix), "--help", cwd=tmp_path, env=environment)
    listed = run(str(ivmix), "models", "list", cwd=tmp_path, env=environment)
    assert re.search(r"^demo +animatediff +yes", listed, re.MULTILINE)  # the weights came along


def _copy(names: list[str], target: Path) -> None:
    """Of the build context only what .dockerignore lets through."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    *sources, to = names
    for name in allowed if sources == ["."] else sources:
        place = target / (name if to.endswith(("/", ".")) else to)
        place.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-rT", str(ROOT / name), str(place))
