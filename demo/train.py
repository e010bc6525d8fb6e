"""Train the demo models from scratch: `python -m demo.train all`, or one stage at a time. Interrupted stages resume.

    vae      autoencoder on sharp and degraded frames; latents whitened inside quant_conv
    latents  render the clips and encode them once
    colors   the same, with full colours in the degraded clips too
    image    the image model (IDM): sharp frames by caption, degraded ones by "low quality"; predicts epsilon
    footage  the video model's spatial layers: degraded frames by caption; predicts v
    motion   motion modules on degraded clips; the spatial layers adapt at half the rate
    vivid    the video model again, on degraded clips that keep some or all of their colours
    start    and again, with pure noise among its examples, as at the start of sampling
    image_colors  the image model again, with "low quality" for degraded frames of full colour too
    export   float16 safetensors in the diffusers folder layout -> demo/weights
    unpack   the reverse: demo/weights -> --work, so that `latents` and the network stages can continue training

Stages `image` and `footage` are independent; `all` runs them in parallel. The same seed and number of processes give
the same weights on the same machine, interrupted or not. Unusual choices are explained where they are made.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor

from demo import networks, shapes
from demo.export import export, unpack
from demo.fit import SEED, Group, Recipe, fit
from demo.latents import FRAMES_KEPT, Latents, make_latents, noised, vivid_clips
from demo.shapes import FRAMES, SIZE, Scenes
from worker.networks import cpu_tuning

VAE_CLIPS, VIVID_CLIPS = 1500, 3000
TIMESTEPS = 1000

Network = Any  # diffusers' from_pretrained is untyped


@dataclass(frozen=True)
class Stage:
    """A training stage. Shares are fractions of its examples."""

    train: Callable[[str, Path, Recipe, Group], None]
    processes: int
    recipe: Recipe
    unsaid: tuple[float, float, float] = (0.04, 0.04, 0.05)  # shares whose captions omit colour, background, motion
    empty: float = 0.08  # share with the empty prompt
    negative: float = 0.05  # share with the negative prompt
    pure_noise: float = 0.0  # share that starts from noise alone, at the last timestep
    flat: float = 0.0  # weight of the error of 4x4 patches' means, where a wrong colour is not lost in the noise

    def texts(self, data: Latents, scenes: Tensor) -> tuple[Tensor, Tensor]:
        """Text embeddings (n, 16, 64) for scenes (n, 4), and which of them (n,) are the negative prompt."""
        caption = data.captions(scenes, unsaid=self.unsaid)
        draw = torch.rand(len(caption))
        caption[draw < self.empty] = data.empty
        is_negative = draw > 1 - self.negative
        caption[is_negative] = data.negative
        return data.text[caption], is_negative


def train_vae(name: str, work: Path, recipe: Recipe, group: Group) -> None:
    generator = Generator().manual_seed(SEED)
    scenes = Scenes.random(VAE_CLIPS, generator)
    clips, centers = shapes.render(scenes, generator)
    kept = torch.randint(0, FRAMES, (len(scenes), 2), generator=generator)
    rows = torch.arange(len(scenes))[:, None]
    sharp, centers = clips[rows, kept].flatten(0, 1), centers[rows, kept].flatten(0, 1)
    rough = shapes.degrade(sharp, generator)
    torch.manual_seed(SEED)
    model = _begin(networks.vae, work / "vae")

    def loss_of(step: int, batch: int) -> Tensor:
        whole = step >= 0.75 * recipe.steps  # crops near the shape cost a quarter; whole frames adjust the norms
        batch = batch // 4 if whole else batch
        index = torch.randint(0, len(sharp), (batch,))
        x = torch.where((torch.rand(batch) < 0.66)[:, None, None, None], sharp[index], rough[index])
        if not whole:
            x = _crops(x, centers[index], size=SIZE // 2)
        posterior = model.encode(x).latent_dist
        error = model.decode(posterior.sample()).sample - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + 2 * error.pow(2).mean() + 0.5 * edges + 2e-4 * kl

    @torch.no_grad()
    def probe() -> str:
        model.eval()
        psnr = []
        for x in (sharp[:64], rough[:64]):
            y = model.decode(model.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            psnr.append(-10 * ((y - x) / 2).pow(2).mean().log10().item())
        model.train()
        return f"PSNR sharp {psnr[0]:.1f} dB, degraded {psnr[1]:.1f} dB"

    fit(name, recipe, model, [(1.0, model.parameters())], loss_of, group=group, work=work, probe=probe)
    if group.rank == 0:
        _whiten(model, sharp)
        model.save_pretrained(work / "vae")


def _begin(make: Callable[[], Network], folder: Path) -> Network:
    """A new network, or the result of an earlier run of the stage; `fit` loads a checkpoint over it."""
    network = make()
    return type(network).from_pretrained(folder) if folder.exists() else network


def _crops(x: Tensor, centers: Tensor, size: int) -> Tensor:
    """One (size, size) crop per picture, mostly near the shape: plain background teaches nothing."""
    n = len(x)
    corner = centers - size / 2 + 6 * torch.randn(n, 2)
    corner = torch.where((torch.rand(n) < 0.15)[:, None], SIZE * torch.rand(n, 2), corner)
    corner = corner.clamp(0, SIZE - size).round().long()
    return torch.stack([p[:, y : y + size, z : z + size] for p, (z, y) in zip(x, corner.tolist(), strict=True)])


@torch.no_grad()
def _whiten(model: AutoencoderKL, sharp: Tensor) -> None:
    """Fold per-channel mean 0, deviation 1 exactly into the two 1x1 convolutions around the latents.

    A single scaling_factor would make channels with a small deviation almost invisible to the networks.
    """
    model.eval()
    latents = torch.cat([model.encode(x).latent_dist.mean for x in sharp[:1024].split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    assert before is not None, "the folding needs quant_conv"
    assert after is not None, "the folding needs post_quant_conv"
    c = len(mean)
    before.weight[:c] /= std[:, None, None, None]
    before.bias[:c] = (before.bias[:c] - mean) / std
    before.bias[c:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


def train_frames(name: str, work: Path, recipe: Recipe, group: Group) -> None:
    """Stages image, image_colors and footage: one UNet on single frames.

    Image_colors: a model that has seen only washed-out colours with "low quality" answers it with them whatever the
    colours are, so that guidance pushes full colours further, purple to blue.
    """
    is_new = name != "image_colors"
    stage, data = STAGES[name], Latents(work, "latents" if is_new else "colors")
    schedule = networks.scheduler("epsilon").alphas_cumprod
    torch.manual_seed(SEED + len(name))
    before = name if is_new or (work / f"{name}_unet").exists() else "image"
    model = _begin(networks.unet, work / f"{before}_unet").train()
    model.set_attn_processor(AttnProcessor())  # half the time of the CPU's flash kernel at these sizes
    is_image = name != "footage"

    def loss_of(_step: int, batch: int) -> Tensor:
        index = torch.randint(0, len(data.clips), (batch,))
        rough = data.clips[index, :, torch.randint(0, FRAMES, (batch,))]
        sharp = data.sharp[index, torch.randint(0, FRAMES_KEPT, (batch,))]
        text, is_negative = stage.texts(data, data.scenes[index])
        # The image model's "low quality" means degraded frames, so that its guidance points from them to sharp ones.
        x = torch.where(is_negative[:, None, None, None], rough, sharp) if is_image else rough
        timestep = torch.randint(0, TIMESTEPS, (batch,))
        x_t, epsilon, v = noised(x, schedule, timestep)
        answer, wanted = model(x_t, timestep, text).sample, epsilon if is_image else v
        if not stage.flat:
            return F.mse_loss(answer, wanted)
        error = answer - wanted
        return error.square().mean() + stage.flat * F.avg_pool2d(error, 4).square().mean()

    fit(name, recipe, model, [(1.0, model.parameters())], loss_of, group=group, work=work)
    if group.rank == 0:
        model.save_pretrained(work / f"{name}_unet")


HELD_OUT = 64  # clips for the probe


def train_motion(name: str, work: Path, recipe: Recipe, group: Group) -> None:
    """Motion modules between the footage model's layers, on clips.

    Three things make "moving left" work. v-prediction: direction is decided at high noise, where an epsilon loss does
    not see it. Left and up first: with four balanced directions neither the word nor the frame number alone predicts
    anything, only their product, so the gradient starts at zero. High noise first, then all levels for clean pictures.
    """
    stage, data = STAGES[name], Latents(work)
    torch.manual_seed(SEED + 7)
    is_new = not (work / "motion_adapter").exists()
    spatial = UNet2DConditionModel.from_pretrained(work / ("footage_unet" if is_new else "video_unet"))
    model = networks.video_unet(spatial, _begin(networks.motion_adapter, work / "motion_adapter")).train()
    cpu_tuning.tune_network(model)
    motion_of = data.scenes[:-HELD_OUT, 3]

    def loss_of(step: int, batch: int) -> Tensor:
        is_early = is_new and step < 700
        shares = (1.0, 1.0, 1.0, 1.0) if not is_early else (1.0, 0.0, 1.0, 0.0) if step < 250 else (0.3, 0.2, 0.3, 0.2)
        index = torch.multinomial(torch.tensor(shares)[motion_of], batch, replacement=True)
        prompts = replace(stage, unsaid=(0.04, 0.04, 0.0)) if is_early else stage
        text, _ = prompts.texts(data, data.scenes[index])
        timestep = torch.randint(0, TIMESTEPS, (batch,))
        high = torch.rand(batch) < (0.6 if is_early else 0.25)
        timestep = torch.where(high, torch.randint(750, TIMESTEPS, (batch,)), timestep)
        return _video_loss(model, data.clips[index], timestep, text)

    quick = [p for name, p in model.named_parameters() if "motion_modules" in name or "attn2" in name]
    slow = [p for name, p in model.named_parameters() if not ("motion_modules" in name or "attn2" in name)]
    probe = partial(_direction_accuracy, model, data, group)
    fit(name, recipe, model, [(1.0, quick), (0.5, slow)], loss_of, group=group, work=work, probe=probe)
    if group.rank == 0:
        _save_video_model(model, spatial, work / "video_unet", work / "motion_adapter")


@torch.no_grad()
def _direction_accuracy(model: Network, data: Latents, group: Group) -> str:
    """How often the right one of the four directions explains a noisy held-out clip best."""
    n = HELD_OUT // group.size
    index = len(data.clips) - HELD_OUT + group.rank * n + torch.arange(n)
    rows = data.scenes[index].repeat_interleave(4, 0)
    rows[:, 3] = torch.arange(4).repeat(n)
    texts = data.text[data.captions(rows, unsaid=(0.0, 0.0, 0.0))].unflatten(0, (n, 4))
    x = data.clips[index]
    noise = torch.randn(x.shape, generator=Generator().manual_seed(SEED))
    a = networks.scheduler("v_prediction").alphas_cumprod[960]
    x_t, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
    answers = [model(x_t, 960, texts[:, k].repeat_interleave(FRAMES, 0)).sample for k in range(4)]
    loss = torch.stack([(answer - v).pow(2).mean((1, 2, 3, 4)) for answer in answers], 1)
    right = data.scenes[index, 3]
    best = (loss.argmin(1) == right).float().mean().item()
    prompted = loss.gather(1, right[:, None]).mean().item()
    return f"direction by likelihood {best:.2f} (chance 0.25), v-loss {prompted:.4f}, all four {loss.mean().item():.4f}"


def train_video(name: str, work: Path, recipe: Recipe, group: Group) -> None:
    """Stages vivid and start: the whole video model on clips of any saturation, still blurred and watermarked.

    Between its own calls the image model puts full colours into the latents. A video model that has only seen
    washed-out ones answers at low noise with other colours: purple turns blue on the last steps.

    Start: even at the last timestep training latents contain a little of the clip, above all its mean, but sampling
    starts from pure noise (arXiv:2305.08891). A model that has not seen pure noise reads a background out of it, pink
    for black, against the prompt.
    """
    stage, before = STAGES[name], "vivid" if name == "start" else None
    data = Latents(work)
    clips, scenes = vivid_clips(work, Generator().manual_seed(SEED + 21 + group.rank), VIVID_CLIPS // group.size)
    torch.manual_seed(SEED + 8)
    spatial = UNet2DConditionModel.from_pretrained(work / f"{before or 'video'}_unet")
    adapter = MotionAdapter.from_pretrained(work / f"{before or 'motion'}_adapter")
    model = networks.video_unet(spatial, adapter).train()
    cpu_tuning.tune_network(model)

    def loss_of(_step: int, batch: int) -> Tensor:
        is_plain = torch.rand(batch) < 0.3
        vivid, plain = (torch.randint(0, len(x), (batch,)) for x in (clips, data.clips))
        x = torch.where(is_plain[:, None, None, None, None], data.clips[plain], clips[vivid])
        text, _ = stage.texts(data, torch.where(is_plain[:, None], data.scenes[plain], scenes[vivid]))
        timestep = torch.randint(0, TIMESTEPS, (batch,))
        is_noise = torch.rand(batch) < stage.pure_noise if stage.pure_noise else torch.zeros(batch, dtype=torch.bool)
        timestep[is_noise] = TIMESTEPS - 1
        return _video_loss(model, x, timestep, text, is_noise)

    fit(name, recipe, model, [(1.0, model.parameters())], loss_of, group=group, work=work)
    if group.rank == 0:
        _save_video_model(model, spatial, work / f"{name}_unet", work / f"{name}_adapter")


def _video_loss(model: Network, x: Tensor, timestep: Tensor, text: Tensor, is_noise: Tensor | None = None) -> Tensor:
    """Mean squared error of v for clips (n, C, F, h, w); where `is_noise` the model sees noise alone."""
    x_t, noise, v = noised(x, networks.scheduler("v_prediction").alphas_cumprod, timestep)
    if is_noise is not None:
        x_t[is_noise] = noise[is_noise]
    return F.mse_loss(model(x_t, timestep, text.repeat_interleave(FRAMES, 0)).sample, v)


@torch.no_grad()
def _save_video_model(model: Network, spatial: UNet2DConditionModel, unet: Path, adapter: Path) -> None:
    """AnimateDiff stores the two-dimensional UNet and the motion modules separately."""
    model.save_motion_modules(adapter)
    weights = model.state_dict()
    spatial.load_state_dict({name: weights[name] for name in spatial.state_dict()})
    spatial.save_pretrained(unet)


STAGES = {
    "vae": Stage(train_vae, 2, Recipe(2400, 24, 3e-3)),
    "image": Stage(train_frames, 1, Recipe(10000, 48, 1.5e-3), unsaid=(0.04, 0.04, 0.5), empty=0.10, negative=0.12),
    "image_colors": Stage(
        train_frames, 1, Recipe(1200, 48, 6e-4), unsaid=(0.04, 0.04, 0.5), empty=0.10, negative=0.35, flat=8.0
    ),
    "footage": Stage(train_frames, 1, Recipe(6000, 48, 1.5e-3), unsaid=(0.04, 0.04, 0.3), empty=0.10),
    "motion": Stage(train_motion, 2, Recipe(3000, 8, 2e-3)),
    "vivid": Stage(train_video, 2, Recipe(3000, 8, 4e-4)),
    "start": Stage(train_video, 2, Recipe(800, 8, 2e-4), pure_noise=0.2),
}
DATA_PROCESSES = {"latents": 2, "colors": 1}
ORDER = ("vae", "latents", "colors", "image footage", "motion", "vivid", "start", "image_colors", "export")
IN_PARALLEL = [names.split() for names in ORDER]


def _process(rank: int, name: str, work: Path, steps: int | None, size: int, port: int) -> None:
    group = Group(rank, size, port)
    cpu_tuning.tune_process(threads=1)  # tensors are so small that a second thread slows each process down
    if name in DATA_PROCESSES:
        return make_latents(name, work, group)
    stage = STAGES[name]
    return stage.train(name, work, stage.recipe._replace(steps=steps or stage.recipe.steps), group)


def run(name: str, work: Path, steps: int | None = None, processes: int | None = None) -> None:
    began = time.monotonic()
    processes = processes or DATA_PROCESSES.get(name) or STAGES[name].processes
    port = 29_600 + sum(map(ord, name)) % 300
    torch.multiprocessing.spawn(_process, (name, work, steps, processes, port), nprocs=processes)
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", *(name for names in IN_PARALLEL for name in names), "unpack"])
    parser.add_argument("--work", type=Path, default=Path("demo/.work"), help="folder of checkpoints and latents")
    parser.add_argument("--into", type=Path, default=Path("demo/weights"), help="folder that `export` writes")
    parser.add_argument("--steps", type=int, help="total steps instead of the recipe's; more than before: train on")
    parser.add_argument("--procs", type=int, help="data-parallel processes of one thread each, instead of the recipe's")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.work.mkdir(parents=True, exist_ok=True)

    def do(name: str) -> None:
        if name == "export":
            export(arguments.work, arguments.into)
        elif name == "unpack":
            unpack(arguments.work, arguments.into)
        else:
            run(name, arguments.work, arguments.steps, arguments.procs)

    for names in IN_PARALLEL if arguments.stage == "all" else [[arguments.stage]]:
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(do, names))


if __name__ == "__main__":
    main()
