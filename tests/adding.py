"""A machine on which a user runs `ivmix models add`, and a tiny model in the layouts that people have."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from typer.testing import CliRunner

from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from service.jobs.request import VideoRequest
from tests import original_layout
from tests.fake_hub import Hub
from tests.tiny_models import save_model
from worker.add import app


def save_originals(folder: Path) -> Path:
    """An AnimateDiff model in the diffusers layout, and the same in original files."""
    save_model("animatediff", folder)
    (folder / "models.toml").unlink()
    save_file(original_layout.checkpoint(folder, layers=1), folder / "sd.safetensors")
    save_file(
        original_layout.motion_modules(original_layout.read(folder / "motion_adapter")), folder / "mm.safetensors"
    )
    save_file(original_layout.original_vae(original_layout.read(folder / "vae")), folder / "vae.safetensors")
    return folder


def use_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@dataclass
class Machine:
    weights: Path

    def add(self, *arguments: object) -> str:
        """Raises what the command line turns into one sentence."""
        ran = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return ran.output

    def refused(self, match: str, *arguments: object) -> None:
        """Refused in one sentence, and nothing has changed."""
        before = self.content()
        with pytest.raises(ConfigurationError, match=match) as raised:
            self.add(*arguments)
        assert "\n" not in raised.value.message
        assert self.content() == before

    def content(self) -> dict[str, bytes]:
        locks = (".adding", ".fetching")
        files = [file for file in self.weights.rglob("*") if file.is_file() and file.name not in locks]
        return {str(file.relative_to(self.weights)): file.read_bytes() for file in files}

    def registry(self) -> ModelRegistry:
        return ModelRegistry.load(weights_dir=self.weights)

    def frames(self, name: str) -> torch.Tensor:
        from worker.child.engine import Engine

        entry = self.registry().get(name)
        request = VideoRequest(prompt="a red circle", num_frames=8, num_inference_steps=4, seed=1, negative_prompt="a")
        return Engine(entry, torch.device("cpu")).generate(entry.resolve(request)).frames


@contextmanager
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("IVMIX_DATA_DIR", str(tmp_path / "data"))
    # The command imports the hub's client before diffusers, which loading switches offline; here a test did before.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    mask, handler = os.umask(0o022), signal.getsignal(signal.SIGTERM)
    yield Machine(tmp_path / "data" / "models")
    os.umask(mask)
    signal.signal(signal.SIGTERM, handler)
