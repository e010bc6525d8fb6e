"""Broken and odd model folders: `verify` and loading refuse the same ones with the same sentence, or accept them."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from tests.broken_cases import CASES
from tests.broken_models import Broken, broken_model, good_model, mutate
from tests.broken_sdxl import SDXL_CASES, good_sdxl
from tests.tiny_models import write_entry
from worker.models import load
from worker.networks.assembly import fit_together
from worker.networks.component_loader import load_component
from worker.verify import app, verify

ROUNDS, SEED = int(os.environ.get("BROKEN_ROUNDS", "4")), int(os.environ.get("BROKEN_SEED", "0"))
LONGEST = 700  # characters of a sentence


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    entry = good_model(folder)
    assert [line.split(":")[0] for line in verify(entry)][:6] == list(entry.all_components)
    load(entry, "cpu")
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    entry = good_sdxl(folder)
    assert refusal_of_both(entry) is None
    return folder


def refusal_of_both(entry: ModelEntry) -> str | None:
    """What `verify` and loading say; None if both accept. Any other exception than a ConfigurationError gets out."""
    said: list[str | None] = []
    for check in (lambda: list(verify(entry)), lambda: load(entry, "cpu")):
        try:
            check()
            said.append(None)
        except ConfigurationError as e:
            said.append(e.message)
    assert said[0] == said[1], "verify and load disagree"
    return said[0]


@pytest.mark.sample(32)
@pytest.mark.parametrize("name", CASES)
def test_broken_folder_is_refused_by_name_and_with_the_way_out(good: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    check(case, refusal_of_both(broken_model(good, tmp_path / "model", case)))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SDXL_CASES)
def test_broken_sdxl_folder_is_refused_by_name_and_with_the_way_out(sdxl: Path, tmp_path: Path, name: str) -> None:
    case = SDXL_CASES[name]
    check(case, refusal_of_both(broken_model(sdxl, tmp_path / "model", case)))


def check(case: Broken, said: str | None) -> None:
    assert (said is None) == (not case.says), said
    if said is not None:
        assert [part for part in case.says if part not in said] == [], said
        assert "\n" not in said
        assert len(said) <= LONGEST


@pytest.mark.sample(3)
@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("family", ["animatediff", "animatediff-sdxl"])
def test_randomly_damaged_folder_is_loaded_or_refused_by_name(
    good: Path, sdxl: Path, tmp_path: Path, family: str, number: int
) -> None:
    rng, folder = random.Random(SEED * 100_003 + number), tmp_path / "model"
    shutil.copytree(good if family == "animatediff" else sdxl, folder)
    done = mutate(folder, rng)
    said = refusal_of_both(write_entry(folder, family))
    assert said is None or str(folder) in said or "model tiny" in said, f"{done}: {said}"


@pytest.mark.sample(1)
@pytest.mark.parametrize("where", ["with spaces", "Modèle 模型", "-r"])
def test_folder_may_have_any_name(good: Path, tmp_path: Path, where: str) -> None:
    shutil.copytree(good, tmp_path / where)
    assert refusal_of_both(write_entry(tmp_path / where, "animatediff")) is None


def test_command_prints_one_line_per_component_and_the_error(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_MODELS_FILE", str(good / "models.toml"))
    ran = CliRunner().invoke(app, ["tiny"])
    lines = [line for line in ran.output.splitlines() if not line.startswith("warning: ")]
    assert lines == [
        "tokenizer: OK (present)",
        "text_encoder: OK (names, shapes and values of all weights)",
        "vae: OK (names, shapes and values of all weights)",
        "unet: OK (names, shapes and values of all weights)",
        "motion_adapter: OK (names, shapes and values of all weights)",
        "scheduler: OK (present)",
        "tiny: OK",
    ]


def test_only_variant_is_named(good: Path, tmp_path: Path) -> None:
    said = list(verify(broken_model(good, tmp_path / "model", CASES["only variant"])))
    assert "unet: OK (names, shapes and values of all weights, variant fp16)" in said


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("unreadable", ["vae", "vae/config.json", "unet/diffusion_pytorch_model.safetensors", "."])
def test_what_this_user_may_not_read_is_named(good: Path, unreadable: str) -> None:
    with tempfile.TemporaryDirectory() as outside:  # pytest's folders are closed to another user
        folder = Path(outside, "model")
        shutil.copytree(good, folder)
        for path in (Path(outside), *folder.rglob("*")):
            path.chmod(0o755)
        entry = write_entry(folder, "animatediff")
        os.chmod(folder / unreadable, 0)
        with as_another_user():
            said = refusal_of_both(entry)
        os.chmod(folder / unreadable, 0o755)
    assert said is not None
    assert "cannot be read: Permission denied" in said
    assert str(folder / unreadable) in said


def test_checking_needs_no_memory_for_the_weights(good: Path, tmp_path: Path) -> None:
    entry = broken_model(good, tmp_path / "model", CASES["LoRA within the precision"])
    parts = {name: load_component(entry, name, torch.float32, only_check=True) for name in entry.all_components}
    checked = fit_together(entry, parts)
    networks = (checked.image_unet, checked.video_unet, checked.vae, checked.video_text_encoder.encoder)
    assert all(weight.is_meta for network in networks for weight in network.state_dict().values())
