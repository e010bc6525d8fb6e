import shutil
from pathlib import Path

import pytest
import torch

from sampler import IncompatibleInputs
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, InvalidParameter
from tests.factories import make_generation, make_request
from worker.models import Models, load
from worker.verify import verify

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


def test_files_that_are_never_read_do_not_block_a_folder(copied: ModelEntry) -> None:
    """A plain clone of a hub's repository holds pickles, single-file checkpoints, pictures and a README."""
    assert copied.path is not None
    for name in (
        "model.ckpt",
        "model.safetensors",
        "README.md",
        "safety_checker/pytorch_model.bin",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/flax_model.msgpack",
    ):
        (copied.path / name).parent.mkdir(exist_ok=True)
        (copied.path / name).write_bytes(b"never read")
    assert all(any(line.startswith(f"{name}: OK") for line in verify(copied)) for name in ("unet", "vae"))
    load(copied, CPU)


def test_prediction_types_come_from_the_scheduler_files(copied: ModelEntry) -> None:
    models = load(copied, CPU)
    assert models.image_schedule.prediction_type == "epsilon"
    assert models.video_schedule.prediction_type == "v_prediction"


# -- the public interface


@pytest.fixture(scope="module")
def models() -> Models:
    return load("demo", "cpu")


def test_repr_is_short_and_names_what_was_loaded(models: Models) -> None:
    shown = repr(models)
    assert len(shown.splitlines()) <= 3
    assert len(shown) < 300
    for part in ("'demo'", "'animatediff'", "'cpu'", "torch.float32", "384x384"):
        assert part in shown


@pytest.mark.parametrize(
    ("prompt", "negative", "message"),
    [
        ("a cat", "", "prompt: model 'demo' does not know 'cat'. It draws"),
        ("a circle", "blurry", "negative_prompt: model 'demo' does not know 'blurry'. It draws"),
    ],
)
def test_words_outside_a_closed_vocabulary_are_refused_as_by_the_api(
    models: Models, prompt: str, negative: str, message: str
) -> None:
    with pytest.raises(InvalidParameter) as raised:
        models.denoisers(prompt, negative)
    assert message in raised.value.message
    with pytest.raises(InvalidParameter) as by_the_api:
        ENTRY.resolve(make_request(prompt=prompt, negative_prompt=negative))
    assert raised.value.message == by_the_api.value.message
    if "cat" in prompt:
        with pytest.raises(InvalidParameter, match="does not know 'cat'"):
            models.encode(["a circle", prompt])


def test_latents_of_more_frames_than_the_motion_modules_take_are_refused(models: Models) -> None:
    assert models.latents_shape(make_generation(num_frames=4)) == (1, 4, 4, 12, 12)
    most = models.video_unet.config.motion_max_seq_length
    with pytest.raises(InvalidParameter, match=rf"num_frames={most + 1}: .* takes at most {most} frames") as raised:
        models.latents_shape(make_generation(num_frames=most + 1))
    assert raised.value.param == "num_frames"


@pytest.mark.parametrize("shape", [(2, 4, 8, 12, 12), (4, 8, 12, 12), (1, 3, 8, 12, 12)])
def test_decode_takes_one_clip(models: Models, shape: tuple[int, ...]) -> None:
    """Bug: of a batch of two clips the first was decoded and the second dropped."""
    with pytest.raises(IncompatibleInputs, match=r"must be \(1, 4, F, h, w\); decode one clip at a time"):
        models.decode(torch.zeros(shape))
