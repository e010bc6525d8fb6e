"""Reproduces the released loops of three families; tests/data/README.md names the source of the expected latents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from safetensors import safe_open
from torch import Generator, Tensor

from sampler import ImageDenoiser, NoiseSchedule, Plan, VideoDenoiser, official_plan, sample
from worker.networks.videocrafter_unet import VideoCrafterUNet

DATA = Path(__file__).parents[2] / "data"
CASES = {
    "animatediff": ("default_10", "interval_2_5", "zz2", "dynamic_cfg", "steps_50"),
    "modelscope": ("default_6", "interval_1_3"),
    "videocrafter": ("default_6", "idm_always"),
}

MIDWAY = DATA / "golden_midway.safetensors"
# Seconds each: ModelScope's image model sees 64x64. `make test` runs the two with a number from that step to the end.
SLOW = {("modelscope", "default_6"): None, ("modelscope", "interval_1_3"): 3, ("animatediff", "steps_50"): 46}


class Golden:
    """One family's file: `meta`, `tensors`, and the two denoisers built from them."""

    def __init__(self, family: str) -> None:
        with safe_open(DATA / f"golden_{family}.safetensors", "pt") as file:
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        self.image, self.video = DENOISERS[family](self)

    def part(self, name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}

    def text(self, prefix: str = "", suffix: str = "") -> tuple[Tensor, Tensor]:
        return self.tensors[f"{prefix}prompt_embeds"], self.tensors[f"{prefix}negative_{suffix}embeds"]

    def load(self, network: Any, name: str) -> Any:
        network.load_state_dict(self.part(name))
        return network.eval()

    def idm(self) -> UNet2DConditionModel:
        return self.load(UNet2DConditionModel(**self.meta["idm_config"]), "idm")


def animatediff(golden: Golden) -> tuple[ImageDenoiser, VideoDenoiser]:
    base = golden.load(UNet2DConditionModel(**golden.meta["idm_config"]), "base")
    adapter = golden.load(MotionAdapter(**golden.meta["adapter_config"]), "adapter")
    text = golden.text(suffix="prompt_")  # the released code feeds both networks the same embeddings
    return ImageDenoiser(golden.idm(), *text), VideoDenoiser(UNetMotionModel.from_unet2d(base, adapter).eval(), *text)


def modelscope(golden: Golden) -> tuple[ImageDenoiser, VideoDenoiser]:
    unet = golden.load(UNet3DConditionModel(**golden.meta["vdm_config"]), "vdm")
    image = ImageDenoiser(golden.idm(), *golden.text("idm_"), resize=(64, 64))
    return image, VideoDenoiser(unet, *golden.text("vdm_"))


def videocrafter(golden: Golden) -> tuple[ImageDenoiser, VideoDenoiser]:
    unet = golden.load(VideoCrafterUNet.from_config(golden.meta["vdm_config"]), "vdm")
    video = VideoDenoiser(unet, *golden.text("vdm_"), network_args={"fps": golden.meta["fps"]})
    return ImageDenoiser(golden.idm(), *golden.text("idm_")), video


DENOISERS: dict[str, Callable[[Golden], tuple[ImageDenoiser, VideoDenoiser]]] = {
    "animatediff": animatediff,
    "modelscope": modelscope,
    "videocrafter": videocrafter,
}


def plan_of(family: str, meta: dict[str, Any], case: dict[str, Any]) -> Plan:
    guidance = {"gi": "image_guidance", "gv": "video_guidance"}
    settings = {guidance.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in case.items() if k != "seed"}
    schedule = NoiseSchedule.from_config(meta["scheduler"] if "scheduler" in meta else meta["inner_scheduler"])
    return official_plan(family, schedule, guidance=meta["guidance_scale"], **settings)


@pytest.fixture(scope="module")
def files() -> dict[str, Golden]:
    return {family: Golden(family) for family in CASES}


def test_every_case_of_every_file_is_checked(files: dict[str, Golden]) -> None:
    assert {family: set(golden.meta["cases"]) for family, golden in files.items()} == {
        family: set(cases) for family, cases in CASES.items()
    }


def close(actual: Tensor, expected: Tensor) -> bool:
    """Float32 on another machine's matrix kernels: 2e-6 was seen, a wrong timestep or sign gives 1e-2."""
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


EVERY_CASE = [
    pytest.param(family, case, marks=[pytest.mark.slow] if (family, case) in SLOW else [])
    for family, cases in CASES.items()
    for case in cases
]


@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_released_loop_is_reproduced(files: dict[str, Golden], family: str, case: str) -> None:
    golden = files[family]
    settings = golden.meta["cases"][case]
    x = golden.tensors["latents"]
    generator = Generator().manual_seed(settings["seed"]) if "seed" in settings else None
    plan = plan_of(family, golden.meta, settings)
    for done, step in enumerate(sample(x, plan, image=golden.image, video=golden.video, generator=generator), 1):
        x = step.latents
        if done == SLOW.get((family, case)):
            assert close(x, midway(family, case))
    assert close(x, golden.tensors[f"out.{case}"])


def midway(family: str, case: str) -> Tensor:
    """Latents of our own run, which ended as the released one."""
    with safe_open(MIDWAY, "pt") as file:
        return file.get_tensor(f"{family}.{case}")


@pytest.mark.parametrize(("family", "case", "done"), [(*key, done) for key, done in SLOW.items() if done])
def test_released_results_are_reached_from_midway(files: dict[str, Golden], family: str, case: str, done: int) -> None:
    """The last mixed step and the ordinary ones after it; `make soak` runs all of them and checks the start, too."""
    golden, plan = files[family], plan_of(family, files[family].meta, files[family].meta["cases"][case])
    assert len(plan.steps[done]) > 1
    *_, last = sample(midway(family, case), plan, image=golden.image, video=golden.video, start=done)
    assert close(last.latents, golden.tensors[f"out.{case}"])


def test_modelscopes_interval_has_the_mixed_steps_of_its_default(files: dict[str, Golden]) -> None:
    """So that the quick case shows most of the slow one."""
    meta = files["modelscope"].meta
    default, interval = (plan_of("modelscope", meta, meta["cases"][case]) for case in CASES["modelscope"])
    assert interval.steps[1:4] == default.steps[1:4]
    assert all(len(step) > 1 for step in default.steps[1:4])
    assert [len(step) for step in (interval.steps[0], *interval.steps[4:])] == [1, 1, 1]


def test_videocrafter_runs_from_its_outer_schedulers_config_too(files: dict[str, Golden]) -> None:
    """That one says nothing of set_alpha_to_one, which by default is True; the inner moves do not use it."""
    golden = files["videocrafter"]
    schedules = [NoiseSchedule.from_config(golden.meta[name]) for name in ("outer_scheduler", "inner_scheduler")]
    assert official_plan("videocrafter", schedules[0], 6) == official_plan("videocrafter", schedules[1], 6)


@pytest.mark.parametrize(("timestep", "fps"), [(17, 8), (501, 24)])
@torch.no_grad()
def test_videocrafters_unet_is_the_released_one(files: dict[str, Golden], timestep: int, fps: int) -> None:
    tensors = files["videocrafter"].tensors
    eps = files["videocrafter"].video.unet(tensors["unet_x"], timestep, tensors["unet_e"], fps=fps)
    assert close(eps, tensors[f"unet_y_t{timestep}_fps{fps}"])
