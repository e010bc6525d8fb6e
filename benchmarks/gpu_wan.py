"""`gpu_loop --family wan`: Wan 2.1 1.3B with random weights, 81 frames of 832x480: diffusers' pipeline and ours.

  A    diffusers' WanPipeline, eager          B    our sampler and network
  A'   the same, blocks compiled              B'   the same, blocks compiled

All run both halves of guidance one after another, as diffusers does, with Euler's steps. FLOPs are counted on torch's
meta device. Before it times, it checks that all compute the same latents up to the networks' precision.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peak_rates import matrix_roof, roofs, wait
from sampler import FlowSchedule, VideoDenoiser, ddim_plan, sample
from service.catalog.optimise import Optimise
from worker.networks.optimise import BlockCompiler
from worker.networks.stored_form import cast
from worker.networks.video_transformers.network import VideoTransformer

SHIFT, GUIDANCE, STEPS = 3.0, 5.0, 50
FULL: dict[str, Any] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
TINY: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2}
LATENTS = {"full": (1, 16, 21, 60, 104), "tiny": (1, 16, 3, 4, 6)}
CHECKED = 2  # steps whose latents are compared
# Of the standard deviation of the latents: diffusers' loop and ours round in other places, in bfloat16 by 2**-8.
TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-4}


@dataclass
class WanArm:
    """`run` makes so many steps from the start noise and returns the latents."""

    name: str
    what: str
    run: Callable[[int], Tensor]
    seconds: list[float] = field(default_factory=list)


def network(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with device:
        made = WanTransformer3DModel(**(FULL if size == "full" else TINY), text_dim=4096 if size == "full" else 16)
    cast(made, dtype)
    return made.eval().requires_grad_(False)


def inputs(size: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Start noise, embeddings of the prompt and of the negative prompt."""
    generator = torch.Generator().manual_seed(0)
    width = 4096 if size == "full" else 16
    x, *texts = (torch.randn(shape, generator=generator) for shape in (LATENTS[size], *[(1, 512, width)] * 2))
    return x.to(device), texts[0].to(device, dtype), texts[1].to(device, dtype)


def diffusers_arm(name: str, transformer: Any, given: tuple[Tensor, Tensor, Tensor], what: str) -> WanArm:
    scheduler, (x, cond, uncond) = FlowMatchEulerDiscreteScheduler(shift=SHIFT), given
    pipe: Any = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    pixels = {"height": 8 * x.shape[3], "width": 8 * x.shape[4], "num_frames": 4 * x.shape[2] - 3}

    def run(steps: int) -> Tensor:
        texts = {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
        settings = {"guidance_scale": GUIDANCE, "num_inference_steps": steps, "output_type": "latent"}
        return pipe(latents=x, **texts, **pixels, **settings).frames

    return WanArm(name, what, run)


def our_arm(name: str, called: VideoTransformer, given: tuple[Tensor, Tensor, Tensor], what: str) -> WanArm:
    x, cond, uncond = given
    schedule = FlowSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": SHIFT})

    def run(steps: int) -> Tensor:
        video = VideoDenoiser(called, cond, uncond, prediction_type="flow")
        video.sequential_cfg = True
        *_, last = sample(x, ddim_plan(schedule, steps, guidance=GUIDANCE), video=video)
        return last.latents

    return WanArm(name, what, run)


def arms(names: list[str], size: str, device: torch.device, dtype: torch.dtype, backend: str) -> list[WanArm]:
    """One network with the same weights serves all; compiled blocks are switched on for the primed arms only."""
    transformer, given = network(size, device, dtype), inputs(size, device, dtype)
    made = {"A": lambda: diffusers_arm("A", transformer, given, "diffusers' WanPipeline, eager")}
    made["B"] = lambda: our_arm("B", VideoTransformer(transformer), given, "ours")

    def compiled() -> WanArm:
        own = network(size, device, dtype)
        own.compile_repeated_blocks(backend=backend)
        return diffusers_arm("A'", own, given, "diffusers' WanPipeline, blocks compiled")

    def ours_compiled() -> WanArm:
        optimise, compiler = Optimise(compile=True), BlockCompiler(backend)
        called = VideoTransformer(network(size, device, dtype), optimise=optimise, compiler=compiler)
        return our_arm("B'", called, given, "ours, blocks compiled")

    made |= {"A'": compiled, "B'": ours_compiled}
    return [made[name]() for name in names]


def flops(size: str, steps: int) -> dict[str, float]:
    """Of one call of the transformer for one half of guidance, of decoding, and of a clip of so many steps."""
    meta, (batch, channels, frames, height, width) = torch.device("meta"), LATENTS[size]
    made = network(size, meta, torch.bfloat16)
    x, text = (
        torch.empty(s, dtype=torch.bfloat16, device=meta) for s in (LATENTS[size], (1, 512, made.config.text_dim))
    )
    call = _count(lambda: made(x, torch.empty(batch, device=meta), text, return_dict=False))
    with meta:
        vae = AutoencoderKLWan(**({} if size == "full" else {"base_dim": 4, "dim_mult": [1, 1, 1, 1]})).eval()

    def decoding(count: int) -> float:
        return _count(lambda: vae.decode(torch.empty(batch, channels, count, height, width, device=meta)))

    two, three = decoding(2), decoding(3)
    decode = two + (frames - 2) * (three - two)  # every latent frame after the first two costs the same
    return {"call": call, "decode": decode, "clip": 2 * steps * call + decode}


def _count(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


@torch.no_grad()
def measure(device: torch.device, names: list[str], *, seconds: float, smoke: bool) -> dict[str, Any]:
    began, size = time.monotonic(), "tiny" if smoke else "full"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    steps, timed = (2, 2) if smoke else (STEPS, 5)
    roof, work = roofs(device, dtype, small=smoke), flops(size, steps)
    compared = arms(names, size, device, dtype, "eager" if smoke else "inductor")
    _check(compared, dtype)
    while not compared[0].seconds or (not smoke and time.monotonic() - began < 0.6 * seconds):
        for arm in (*compared, *reversed(compared)):
            wait(device)
            start = time.perf_counter()
            arm.run(timed)
            wait(device)
            arm.seconds.append((time.perf_counter() - start) / timed)
    peak = 1e12 * matrix_roof(roof, dtype)
    found = {
        arm.name: {
            "what": arm.what,
            "step_s": statistics.median(arm.seconds),
            "of_roof": 2 * work["call"] / statistics.median(arm.seconds) / peak,
        }
        for arm in compared
    }
    return {"family": "wan", "smoke": smoke, "steps": steps, "flops": work, "roofs": roof, "arms": found}


def _check(compared: list[WanArm], dtype: torch.dtype) -> None:
    """Raises SystemExit if an arm's latents are not those of the first arm."""
    first, *others = [arm.run(CHECKED).float() for arm in compared]
    for arm, found in zip(compared[1:], others, strict=True):
        error = float((found - first).abs().max() / first.std())
        if not error <= TOLERANCE[dtype]:
            raise SystemExit(f"arm {arm.name} is {error:.2e} from {compared[0].name}, allowed {TOLERANCE[dtype]:.0e}")


def report(result: dict[str, Any]) -> None:
    work = result["flops"]
    calls = f"{work['call'] / 1e12:.4g} TFLOP a half of guidance, {work['decode'] / 1e12:.4g} decoding"
    print(f"wan: {work['clip'] / 1e12:.4g} TFLOP a clip of {result['steps']} steps: {calls}")
    if result["smoke"]:
        print("SMOKE: tiny networks, few steps; the figures mean nothing")
    for name, arm in result["arms"].items():
        print(f"{name:<4}{1e3 * arm['step_s']:>10.1f} ms a step{arm['of_roof']:>8.1%} of roof  {arm['what']}")
