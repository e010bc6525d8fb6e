"""What a request can combine: latents equal to diffusers' own parts put together, resume, and what is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from diffusers.configuration_utils import FrozenDict
from PIL import Image

from sampler import IncompatibleInputs
from service.errors import InvalidParameter
from service.jobs.context_windows import ContextWindows
from service.jobs.model import Generation
from service.jobs.reference import ReferenceFile
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES
from service.storage import sha256_of
from tests.diffusers_pipelines import CONFIG, GUIDANCE, NEGATIVE, PROMPT, assert_same
from tests.factories import make_job
from tests.tiny_combined import LONG, LORAS, WINDOWS, Theirs, posteriors_mode, save_combined
from tests.unit.worker.test_child_main import undisturbed_and_resumed
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.child.mp4 import read_mp4, write_mp4
from worker.messages import Done
from worker.networks.sparse_control import FirstFrame
from worker.networks.sparse_control_checks import control_mismatch
from worker.verify import verify

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ONE_WINDOW, LONGER = WINDOWS.length, 7
CHOSEN = [f"{name}:{scale}" for name, scale in LORAS.items()]
DDIM = {"name": "ddim"}
TEXTS = {"prompt": LONG, "clip_skip": 1}


def some_slow(quick: Collection[tuple[Any, ...]], cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """All cases; those that are not quick run in `make soak` only."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


class Tiny:
    """The model loaded by the worker and by diffusers, and a picture and a clip."""

    def __init__(self, folder: Path) -> None:
        self.entry = save_combined(folder)
        self.engine = Engine(self.entry, torch.device("cpu"))
        self.theirs = Theirs(folder)
        pixels = np.random.default_rng(1).integers(0, 256, (LONGER, 8, 8, 3), np.uint8)
        frames = [np.asarray(Image.fromarray(x).resize((32, 32))) for x in pixels]
        self.picture, self.clip = folder / "picture.png", folder / "clip.mp4"
        Image.fromarray(frames[0]).save(self.picture)
        write_mp4(np.stack(frames), self.clip, fps=8)

    def generation(self, file: Path | None = None, **fields: Any) -> Generation:
        request: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 5, "num_inference_steps": 2}
        if file is not None:
            kind, frames = ("image/png", 1) if file == self.picture else ("video/mp4", LONGER)
            request["input_reference"] = ReferenceFile(
                sha256=sha256_of(file), media_type=kind, num_frames=frames, width=32, height=32
            )
        return self.entry.resolve(VideoRequest.model_validate(request | {"sampler": DDIM} | fields))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with posteriors_mode():
        yield Tiny(tmp_path_factory.mktemp("combined") / "model")


KEPT: dict[str, tuple[bool, dict[str, Any]]] = {
    "windows and SparseCtrl": (True, {"num_frames": LONGER}),
    "LoRAs and SparseCtrl": (True, {"num_frames": ONE_WINDOW, "loras": CHOSEN}),
    "LoRAs and windows": (False, {"num_frames": LONGER, "loras": CHOSEN}),
    "LoRAs and weights, chunks, clip_skip": (False, {"num_frames": ONE_WINDOW, "loras": CHOSEN, **TEXTS}),
    "all of them": (True, {"num_frames": LONGER, "loras": CHOSEN, **TEXTS}),
}


QUICK = [("windows and SparseCtrl", 1.0), ("all of them", 7.5)]


@pytest.mark.parametrize(("name", "guidance"), some_slow(QUICK, product(KEPT, GUIDANCE)))
def test_latents_are_those_of_diffusers_parts_put_together(tiny: Tiny, name: str, guidance: float) -> None:
    """FreeNoise's blocks in both networks, SparseCtrl's pipeline, its LoRA adapters, and compel's embeddings."""
    keeps, fields = KEPT[name]
    file = tiny.picture if keeps else None
    wanted = tiny.generation(file, guidance_scale=guidance, **fields)
    assert wanted.keeps_first_frame is keeps
    found = tiny.engine.sample(wanted, reference=file).latents
    assert_same(found, tiny.theirs.keeping(tiny.picture, wanted))


WITHOUT = {
    "windows": {"num_frames": ONE_WINDOW},
    "LoRAs": {"loras": []},
    "long": {"prompt": PROMPT},
    "layers": {"clip_skip": 0},
}


def test_every_part_of_the_whole_counts(tiny: Tiny) -> None:
    everything = {"num_frames": 6, "loras": CHOSEN, **TEXTS}
    found = tiny.engine.sample(tiny.generation(tiny.picture, **everything), reference=tiny.picture).latents
    least = 1e-2 * found.abs().max()
    for name, change in WITHOUT.items():
        other = tiny.engine.sample(tiny.generation(tiny.picture, **everything | change), reference=tiny.picture).latents
        assert (other - found[:, :, : other.shape[2]]).abs().max() > least, name
    without = tiny.engine.sample(tiny.generation(**everything)).latents
    beyond = (without - found)[:, :, WINDOWS.length :].abs().max()
    assert beyond > 0.1 * least, "frames that share no window with the first one know of it too"


def test_windows_change_nothing_in_a_clip_of_one_window(tiny: Tiny) -> None:
    models, x = tiny.engine.models, torch.randn(1, 4, ONE_WINDOW, 8, 8, generator=torch.Generator().manual_seed(1))
    kept = FirstFrame(torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(2)))
    videos = [models.denoisers(PROMPT, NEGATIVE, first_frame=kept, windows=windows)[1] for windows in (WINDOWS, None)]
    with torch.no_grad():
        found, expected = (video(x, 500, 0.5, 7.5) for video in videos)
    assert torch.equal(found, expected)


# -- a clip or picture that the run begins at ------------------------------------------------------------------------


def scheduler_of(solver: str) -> Any:
    betas = {key: value for key, value in CONFIG.items() if key.startswith("beta")}
    match solver:
        case "dpmpp-2m":
            return DPMSolverMultistepScheduler(**betas, final_sigmas_type="sigma_min")
        case "lcm":
            return LCMScheduler(**betas, clip_sample=False)
        case _:
            return DDIMScheduler(**CONFIG)


BEGINNINGS = [
    ("ddim", "clip", LONGER, 0.8),
    ("ddim", "picture", LONGER, 1.0),
    ("dpmpp-2m", "clip", LONGER, 0.8),
    ("dpmpp-2m", "picture", ONE_WINDOW, 0.6),
    ("lcm", "clip", ONE_WINDOW, 0.8),
    ("lcm", "picture", LONGER, 0.6),
]


@pytest.mark.parametrize(
    ("solver", "kind", "frames", "strength", "guidance"),
    some_slow(
        [(*case, 7.5) for case in BEGINNINGS[::2]], [(*case, guidance) for case in BEGINNINGS for guidance in GUIDANCE]
    ),
)
def test_runs_that_begin_at_a_reference_with_windows_loras_and_solvers(
    tiny: Tiny, solver: str, kind: str, frames: int, strength: float, guidance: float
) -> None:
    file: Path = getattr(tiny, kind)
    start = {"strength": strength, "reference_use": "start", "sampler": {**DDIM, "solver": solver}}
    wanted = tiny.generation(
        file, num_frames=frames, num_inference_steps=4, guidance_scale=guidance, loras=CHOSEN, **start
    )
    found = tiny.engine.sample(wanted, reference=file).latents
    shown = [np.asarray(Image.open(file))] * frames if kind == "picture" else read_mp4(file)[:frames]
    timesteps = tiny.engine.models.video_schedule.timesteps(4) if solver == "dpmpp-2m" else None
    expected = tiny.theirs.beginning([Image.fromarray(x) for x in shown], wanted, scheduler_of(solver), timesteps)
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


# -- every sampler, and what is refused ------------------------------------------------------------------------------

SAMPLERS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in USES},
    "dpmpp-2m": {**DDIM, "solver": "dpmpp-2m"},
    "lcm": {**DDIM, "solver": "lcm"},
    "image alone": {**DDIM, "network": "image"},
    "iv-mixed dpmpp-2m": {"name": "iv-mixed", "solver": "dpmpp-2m"},
    "apg": {**DDIM, "guidance_rule": "apg"},
    "R-V": {"combination": "R-V", "order": "goback_first"},
}
REFUSED = {
    ("official", "first_frame"): "Sampler 'official' takes no input_reference.*; use iv-mixed or ddim",
    ("official", "start"): "Sampler 'official' takes no input_reference.*; use iv-mixed or ddim",
    ("freeinit", "start"): "Sampler 'freeinit' cannot begin at input_reference.*; use iv-mixed or ddim",
    ("image alone", "first_frame"): "does not call the video model; use reference_use=start, or network video",
}


USES_OF_A_FILE = ("none", "start", "first_frame")
QUICK_SAMPLERS = {("evs", "start"), ("official", "none"), *product(("iv-mixed", "evs"), ["first_frame"])}


@pytest.mark.parametrize(("name", "use"), some_slow(QUICK_SAMPLERS | REFUSED.keys(), product(SAMPLERS, USES_OF_A_FILE)))
def test_every_sampler_runs_with_all_of_it_or_says_what_would(tiny: Tiny, name: str, use: str) -> None:
    fields = {"num_frames": 5, "loras": CHOSEN, **TEXTS, "sampler": SAMPLERS[name]}
    file = None if use == "none" else tiny.picture
    fields |= {} if use == "none" else {"reference_use": use}
    if (name, use) in REFUSED:
        with pytest.raises(InvalidParameter, match=REFUSED[name, use]):
            tiny.generation(file, **fields)
        return
    wanted = tiny.generation(file, **fields)
    steps: list[Checkpoint] = []
    latents = tiny.engine.sample(wanted, reference=file, on_step=steps.append).latents
    assert latents.shape == (1, 4, 5, 8, 8)
    assert latents.isfinite().all()
    assert len(steps) == wanted.total_steps


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_frames": 9}, "num_frames"),
        ({"loras": ["ink", "nik"]}, "loras.1.name"),
        ({"loras": [{"name": "zoom", "networks": ["image"]}]}, "loras.0.networks"),
        ({"clip_skip": 4}, "clip_skip"),
        ({"prompt": "a (red"}, "prompt"),
        ({"strength": 0.5}, "strength"),
        ({"reference_use": "start", "conditioning_scale": 0.5}, "conditioning_scale"),
        ({"reference_use": "start", "strength": 0.1}, "strength"),
        ({"sampler": {"name": "iv-mixed", "solver": "lcm"}}, "sampler.solver"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_in_any_company(tiny: Tiny, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        tiny.generation(tiny.picture, **{"num_frames": LONGER, "loras": CHOSEN, **TEXTS} | fields)
    assert refused.value.param == param


# -- the frames that the networks take -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "windows", "message"),
    [
        (8, None, None),
        (4, WINDOWS, None),
        (3, WINDOWS, "context_windows.length=4, but sparse_control takes 3 frames; write 3 or less"),
        (4, None, "num_frames.max=8, but sparse_control takes 4 .*, or add context_windows = { length = 4 }"),
    ],
)
def test_the_frames_that_the_control_network_sees_at_once_are_what_counts(
    tiny: Tiny, frames: int, windows: ContextWindows | None, message: str | None
) -> None:
    models, entry = tiny.engine.models, tiny.entry.model_copy(update={"context_windows": windows})
    control = copy.copy(models.sparse_control)
    control._internal_dict = FrozenDict({**control.config, "motion_max_seq_length": frames})
    found = control_mismatch(entry, control, models.video_unet, models.vae)
    assert found is None if message is None else re.search(message, found or "")


def test_verify_accepts_longer_clips_than_the_control_network_takes(tiny: Tiny) -> None:
    assert tiny.engine.models.sparse_control.config.motion_max_seq_length < tiny.entry.num_frames.max
    assert any(line.startswith("sparse_control: OK") for line in verify(tiny.entry))


def test_a_job_that_is_older_than_the_control_network_is_refused_before_it_runs(tiny: Tiny) -> None:
    wanted = tiny.generation(tiny.picture, num_frames=5).model_copy(update={"context_windows": None})
    with pytest.raises(InvalidParameter, match="num_frames=5: the SparseCtrl network of 'tiny' takes at most 4 frames"):
        tiny.engine.sample(wanted, reference=tiny.picture)
    assert tiny.engine.sample(wanted.model_copy(update={"reference": None})).latents.shape[2] == 5


def test_library_calls_beyond_the_control_network_are_refused(tiny: Tiny) -> None:
    kept, models = FirstFrame(torch.zeros(1, 4, 1, 8, 8)), tiny.engine.models
    _, video = models.denoisers(PROMPT, NEGATIVE, first_frame=kept, windows=None)
    with pytest.raises(IncompatibleInputs, match="supports at most 4 frames"):
        video(torch.zeros(1, 4, 5, 8, 8), 500, 0.5, 7.5)
    with pytest.raises(IncompatibleInputs, match=r"windows\.length=5: the networks take 4 frames at once"):
        models.denoisers(PROMPT, NEGATIVE, first_frame=kept, windows=WINDOWS.model_copy(update={"length": 5}))


# -- resume ----------------------------------------------------------------------------------------------------------

NOISY = {"combination": "R-V", "order": "goback_first"}  # draws in every step
EVERYTHING: dict[str, Any] = {"num_frames": 6, "loras": CHOSEN, **TEXTS, "num_inference_steps": 3, "sampler": NOISY}


@pytest.mark.parametrize("use", [pytest.param("start", marks=pytest.mark.slow), "first_frame"])
def test_run_with_everything_resumed_in_the_middle_gives_the_same_bytes(tiny: Tiny, tmp_path: Path, use: str) -> None:
    steps = 4 if use == "start" else 3  # of which the default strength leaves out one
    wanted = tiny.generation(tiny.picture, reference_use=use, **EVERYTHING | {"num_inference_steps": steps})
    states: list[Checkpoint] = []
    expected = tiny.engine.sample(wanted, on_step=states.append, reference=tiny.picture).latents
    other = tiny.generation(loras=[], num_inference_steps=1)
    states[1].write(tmp_path / "checkpoint")
    tiny.engine.sample(other)  # changes the weights, and sees the clip as a whole
    done: list[Checkpoint] = []
    resumed = tiny.engine.sample(
        wanted, on_step=done.append, resume=tmp_path / "checkpoint", reference=tiny.picture
    ).latents
    assert torch.equal(resumed, expected)
    assert [state.step for state in done] == [3]


@pytest.mark.slow
def test_job_with_everything_is_stopped_in_one_worker_and_completed_byte_identically_in_the_next(
    tiny: Tiny, tmp_path: Path
) -> None:
    # In 32x32 and 9 frames, x264 gives other bytes for the same frames now and then; not in larger ones.
    larger = tiny.entry.model_copy(update={"sizes": ("64x64",)})
    engine = copy.copy(tiny.engine)
    engine.models = replace(engine.models, entry=larger)
    wanted = tiny.generation(tiny.picture, **EVERYTHING).model_copy(update={"width": 64, "height": 64})
    job = make_job(generation=wanted)
    undisturbed, resumed = undisturbed_and_resumed(engine, job, tiny.picture, tmp_path)
    assert isinstance(undisturbed, Done)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
