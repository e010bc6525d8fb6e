import shutil
from pathlib import Path

import pytest
import torch

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from worker.networks.models import load

CPU = torch.device("cpu")
ENTRY = ModelRegistry.load().get("demo")


@pytest.fixture
def copied(tmp_path: Path) -> ModelEntry:
    shutil.copytree(ENTRY.path, tmp_path / "weights")
    return ENTRY.model_copy(update={"path": tmp_path / "weights"})


def test_weights_are_small_enough_to_ship() -> None:
    assert sum(f.stat().st_size for f in ENTRY.path.rglob("*") if f.is_file()) <= 15_000_000


def test_incomplete_folder_is_refused_with_what_it_lacks(copied: ModelEntry) -> None:
    shutil.rmtree(copied.path / "motion_adapter")
    with pytest.raises(ConfigurationError, match="lacks motion_adapter"):
        load(copied, CPU)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "unet/extra.ckpt", "vae/weights.pkl"])
def test_pickles_are_refused_before_anything_is_loaded(copied: ModelEntry, name: str) -> None:
    (copied.path / name).write_bytes(b"")
    with pytest.raises(ConfigurationError, match=rf"holds {name}; only safetensors"):
        load(copied, CPU)


def test_tokenizer_of_another_model_is_refused(copied: ModelEntry) -> None:
    """transformers 5 makes up a tokenizer of a few tokens when its files are gone, and every prompt becomes noise."""
    for file in (copied.path / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises((ConfigurationError, OSError, ValueError, TypeError)):
        load(copied, CPU)


def test_prediction_types_come_from_the_scheduler_files(copied: ModelEntry) -> None:
    models = load(copied, CPU)
    assert models.image_schedule.prediction_type == "epsilon"
    assert models.video_schedule.prediction_type == "v_prediction"
