"""Train the demo pair from nothing: `python -m demo.train all`, or one stage at a time; every stage goes on if stopped.

    vae      autoencoder on sharp and degraded frames; latents whitened inside quant_conv
    latents  render the clips and encode them once
    image    the image model (IDM): sharp frames by caption, degraded ones by "low quality"; predicts epsilon
    footage  the video model's spatial layers: degraded frames by caption; predicts v
    motion   motion modules on degraded clips, the spatial layers adapt at half the rate
    vivid    the video model once more, on degraded clips that keep some or all of their colours
    start    and once more, with the start of sampling among its examples: noise that holds no clip at all
    export   float16 safetensors in the diffusers folder layout -> demo/weights
    unpack   the way back: demo/weights -> --work, so that `latents` and the stages of the networks go on

Stages `image` and `footage` do not need each other; `all` runs them side by side. Same seed, same processes: same
weights on the same machine, stopped on the way or not.
The reasons for the unusual choices (v-prediction, left and up first, frozen text encoder) stand where they are made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor, nn

from demo import networks, shapes
from demo.fit import SEED, Group, Recipe, fit
from demo.latents import FRAMES_KEPT, Latents, make_latents, noised, vivid_clips
from demo.shapes import FRAMES, SIZE, Scenes
from worker.networks import cpu_tuning

VAE_CLIPS, VIVID_CLIPS = 1500, 3000
TOGETHER = [["vae"], ["latents"], ["image", "footage"], ["motion"], ["vivid"], ["start"], ["export"]]
STAGES = [stage for stages in TOGETHER for stage in stages]

Network = Any  # diffusers' from_pretrained is untyped

PROCESSES = {"vae": 2, "latents": 2, "image": 1, "footage": 1, "motion": 2, "vivid": 2, "start": 2}
RECIPE = {
    "vae": Recipe(2400, 24, 3e-3),
    "image": Recipe(10000, 48, 1.5e-3),
    "footage": Recipe(6000, 48, 1.5e-3),
    "motion": Recipe(3000, 8, 2e-3),
    "vivid": Recipe(3000, 8, 4e-4),
    "start": Recipe(800, 8, 2e-4),
}


def train_vae(work: Path, recipe: Recipe, group: Group) -> None:
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
        whole = step >= 0.75 * recipe.steps  # crops round the shape cost a quarter; whole frames settle the norms
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

    fit("vae", recipe, model, [(1.0, model.parameters())], loss_of, group=group, work=work, probe=probe)
    if group.rank == 0:
        _whiten(model, sharp)
        model.save_pretrained(work / "vae")


def _begin(make: Callable[[], Network], folder: Path) -> Network:
    """A new network, or the stage's last product where there is one (a checkpoint, if any, is loaded over it)."""
    network = make()
    return type(network).from_pretrained(folder) if folder.exists() else network


def _crops(x: Tensor, centers: Tensor, size: int) -> Tensor:
    """One (size, size) crop a picture, mostly near the shape: flat background teaches nothing."""
    n = len(x)
    corner = centers - size / 2 + 6 * torch.randn(n, 2)
    corner = torch.where((torch.rand(n) < 0.15)[:, None], SIZE * torch.rand(n, 2), corner)
    corner = corner.clamp(0, SIZE - size).round().long()
    return torch.stack([p[:, y : y + size, z : z + size] for p, (z, y) in zip(x, corner.tolist(), strict=True)])


@torch.no_grad()
def _whiten(model: AutoencoderKL, sharp: Tensor) -> None:
    """Fold per-channel mean 0, deviation 1 exactly into the two 1x1 convolutions around the latents.

    One scaling_factor for all channels would starve those with a small deviation.
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


def train_frames(stage: str, work: Path, recipe: Recipe, group: Group) -> None:
    """Stages image and footage: one UNet on single frames."""
    data = Latents(work)
    schedule = networks.scheduler("epsilon").alphas_cumprod
    torch.manual_seed(SEED + len(stage))
    model = _begin(networks.unet, work / f"{stage}_unet").train()
    model.set_attn_processor(AttnProcessor())  # half the time of the CPU's flash kernel at these sizes
    is_image = stage == "image"

    def loss_of(_step: int, batch: int) -> Tensor:
        index = torch.randint(0, len(data.clips), (batch,))
        rough = data.clips[index, :, torch.randint(0, FRAMES, (batch,))]
        sharp = data.sharp[index, torch.randint(0, FRAMES_KEPT, (batch,))]
        caption = data.captions(data.scenes[index], unsaid=(0.04, 0.04, 0.5 if is_image else 0.3))
        draw = torch.rand(batch)
        caption[draw < 0.10] = data.empty
        bad = draw > (0.88 if is_image else 0.95)
        caption[bad] = data.negative
        # The image model's "low quality" means degraded frames: its guidance then points from bad footage to good.
        x = torch.where(bad[:, None, None, None], rough, sharp) if is_image else rough
        timestep = torch.randint(0, 1000, (batch,))
        x_t, epsilon, v = noised(x, schedule, timestep)
        return F.mse_loss(model(x_t, timestep, data.text[caption]).sample, epsilon if is_image else v)

    fit(stage, recipe, model, [(1.0, model.parameters())], loss_of, group=group, work=work)
    if group.rank == 0:
        model.save_pretrained(work / f"{stage}_unet")


def train_motion(work: Path, recipe: Recipe, group: Group) -> None:
    """Motion modules between the footage model's layers, on clips.

    Three things make "moving left" work. v-prediction: direction is decided at high noise, where an epsilon loss does
    not see it. Left and up first: with four balanced directions neither the word nor the frame number alone predicts
    anything, only their product, so the gradient starts at zero. High noise first, then all levels for clean pictures.
    """
    data = Latents(work)
    schedule = networks.scheduler("v_prediction").alphas_cumprod
    torch.manual_seed(SEED + 7)
    is_new = not (work / "motion_adapter").exists()
    spatial = UNet2DConditionModel.from_pretrained(work / ("footage_unet" if is_new else "video_unet"))
    adapter = _begin(networks.motion_adapter, work / "motion_adapter")
    model = networks.video_unet(spatial, adapter).train()
    cpu_tuning.tune_network(model)
    held_out = 64
    usable = len(data.clips) - held_out
    motion_of = data.scenes[:usable, 3]
    weights = {
        "left and up": torch.tensor([1.0, 0.0, 1.0, 0.0])[motion_of],
        "uneven": torch.tensor([0.3, 0.2, 0.3, 0.2])[motion_of],
        "even": torch.ones(usable),
    }

    def loss_of(step: int, batch: int) -> Tensor:
        is_early = is_new and step < 700
        phase = "even" if not is_early else "left and up" if step < 250 else "uneven"
        index = torch.multinomial(weights[phase], batch, replacement=True)
        caption = data.captions(data.scenes[index], unsaid=(0.04, 0.04, 0.0 if is_early else 0.05))
        draw = torch.rand(batch)
        caption[draw < 0.08] = data.empty
        caption[draw > 0.95] = data.negative
        timestep = torch.randint(0, 1000, (batch,))
        high = torch.rand(batch) < (0.6 if is_early else 0.25)
        timestep = torch.where(high, torch.randint(750, 1000, (batch,)), timestep)
        x_t, _, v = noised(data.clips[index], schedule, timestep)
        text = data.text[caption].repeat_interleave(FRAMES, 0)
        return F.mse_loss(model(x_t, timestep, text).sample, v)

    @torch.no_grad()
    def probe() -> str:
        """Which of the four captions explains a held-out noisy clip best? Chance is 0.25."""
        n = held_out // group.size
        index = usable + group.rank * n + torch.arange(n)
        rows = data.scenes[index].repeat_interleave(4, 0)
        right = data.scenes[index, 3]
        rows[:, 3] = torch.arange(4).repeat(n)
        _, colors, backgrounds, motions = data.kinds
        caption = ((rows[:, 0] * colors + rows[:, 1]) * backgrounds + rows[:, 2]) * motions + rows[:, 3]
        generator = Generator().manual_seed(SEED)
        x = data.clips[index]
        noise = torch.randn(x.shape, generator=generator)
        a = schedule[960]
        x_t, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        losses = []
        for k in range(4):
            text = data.text[caption.view(n, 4)[:, k]].repeat_interleave(FRAMES, 0)
            losses.append((model(x_t, 960, text).sample - v).pow(2).mean((1, 2, 3, 4)))
        loss = torch.stack(losses, 1)
        best = (loss.argmin(1) == right).float().mean().item()
        ours = loss.gather(1, right[:, None]).mean().item()
        return f"direction by likelihood {best:.2f} (chance 0.25), v-loss {ours:.4f} against {loss.mean().item():.4f}"

    named = list(model.named_parameters())
    quick = [p for name, p in named if "motion_modules" in name or "attn2" in name]
    slow = [p for name, p in named if not ("motion_modules" in name or "attn2" in name)]
    fit("motion", recipe, model, [(1.0, quick), (0.5, slow)], loss_of, group=group, work=work, probe=probe)
    if group.rank == 0:
        model.save_motion_modules(work / "motion_adapter")
        _spatial_of(model, spatial).save_pretrained(work / "video_unet")


def train_video(stage: str, work: Path, recipe: Recipe, group: Group) -> None:
    """Stages vivid and start: the whole video model on clips of any saturation, still blurred and watermarked.

    Between its own calls the image model puts full colours into the latents. A video model that has only seen
    washed-out ones answers at low noise with a different colour: purple turns blue on the last steps.

    Start: even at the last timestep training latents hold a little of the clip, above all its mean, but sampling starts
    from noise alone (arXiv:2305.08891). A model that has not seen such noise reads a background out of it, pink for
    black, against the prompt.
    """
    unet, adapter = ("video_unet", "motion_adapter") if stage == "vivid" else ("vivid_unet", "vivid_adapter")
    data = Latents(work)
    schedule = networks.scheduler("v_prediction").alphas_cumprod
    clips, scenes = vivid_clips(work, Generator().manual_seed(SEED + 21 + group.rank), VIVID_CLIPS // group.size)
    torch.manual_seed(SEED + 8)
    spatial = UNet2DConditionModel.from_pretrained(work / unet)
    model = networks.video_unet(spatial, MotionAdapter.from_pretrained(work / adapter)).train()
    cpu_tuning.tune_network(model)

    def loss_of(_step: int, batch: int) -> Tensor:
        plain = torch.rand(batch) < 0.3
        ours, theirs = (torch.randint(0, len(x), (batch,)) for x in (clips, data.clips))
        x = torch.where(plain[:, None, None, None, None], data.clips[theirs], clips[ours])
        said = torch.where(plain[:, None], data.scenes[theirs], scenes[ours])
        caption = data.captions(said, unsaid=(0.04, 0.04, 0.05))
        draw = torch.rand(batch)
        caption[draw < 0.08] = data.empty
        caption[draw > 0.95] = data.negative
        timestep = torch.randint(0, 1000, (batch,))
        is_start = torch.rand(batch) < 0.2 if stage == "start" else torch.zeros(batch, dtype=torch.bool)
        timestep[is_start] = len(schedule) - 1
        x_t, noise, v = noised(x, schedule, timestep)
        x_t[is_start] = noise[is_start]
        text = data.text[caption].repeat_interleave(FRAMES, 0)
        return F.mse_loss(model(x_t, timestep, text).sample, v)

    fit(stage, recipe, model, [(1.0, model.parameters())], loss_of, group=group, work=work)
    if group.rank == 0:
        model.save_motion_modules(work / f"{stage}_adapter")
        _spatial_of(model, spatial).save_pretrained(work / f"{stage}_unet")


@torch.no_grad()
def _spatial_of(model: nn.Module, unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The two-dimensional UNet inside a motion UNet: AnimateDiff stores the pair apart."""
    inside = model.state_dict()
    unet.load_state_dict({name: inside[name] for name in unet.state_dict()})
    return unet


def export(work: Path, into: Path) -> None:
    """float16 safetensors, in the folders that the worker's loader reads for any AnimateDiff model."""
    tokens = networks.tokenizer()
    tokens.save_pretrained(into / "tokenizer")
    networks.text_encoder(tokens, SEED).half().save_pretrained(into / "text_encoder")
    _save(AutoencoderKL.from_pretrained(work / "vae"), into / "vae")
    for source, target in (("image_unet", "image_unet"), ("start_unet", "unet")):
        _save(UNet2DConditionModel.from_pretrained(work / source), into / target)
    _save(MotionAdapter.from_pretrained(work / "start_adapter"), into / "motion_adapter")
    networks.scheduler("v_prediction").save_pretrained(into / "scheduler")
    networks.scheduler("epsilon").save_pretrained(into / "image_scheduler")
    size = sum(f.stat().st_size for f in into.rglob("*") if f.is_file())
    print(f"{into}: {size / 1e6:.1f} MB")


def _save(network: Network, folder: Path) -> None:
    """Without the path it was loaded from, which diffusers writes into the configuration."""
    network.half().save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


def unpack(work: Path, source: Path) -> None:
    folders = {
        "vae": ["vae"],
        "image_unet": ["image_unet"],
        "unet": ["video_unet", "vivid_unet", "start_unet"],
        "motion_adapter": ["motion_adapter", "vivid_adapter", "start_adapter"],
    }
    for name, targets in folders.items():
        for target in targets:
            shutil.copytree(source / name, work / target, dirs_exist_ok=True)


# ---------------------------------------------------------------- command line


def _process(rank: int, stage: str, work: Path, steps: int | None, size: int, port: int) -> None:
    group = Group(rank, size, port)
    cpu_tuning.tune_process(threads=1)  # tensors are so small that a second thread slows each process down
    if stage == "latents":
        return make_latents(work, group)
    recipe = RECIPE[stage] if steps is None else RECIPE[stage]._replace(steps=steps)
    if stage == "vae":
        return train_vae(work, recipe, group)
    if stage == "motion":
        return train_motion(work, recipe, group)
    if stage in ("vivid", "start"):
        return train_video(stage, work, recipe, group)
    return train_frames(stage, work, recipe, group)


def run(stage: str, work: Path, steps: int | None = None, processes: int | None = None) -> None:
    began, processes = time.monotonic(), processes or PROCESSES[stage]
    port = 29_600 + sum(map(ord, stage)) % 300
    torch.multiprocessing.spawn(_process, (stage, work, steps, processes, port), nprocs=processes)
    print(f"{stage}: {(time.monotonic() - began) / 60:.1f} min", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", *STAGES, "unpack"])
    parser.add_argument("--work", type=Path, default=Path("demo/.work"), help="checkpoints and latents")
    parser.add_argument("--into", type=Path, default=Path("demo/weights"), help="where `export` writes")
    parser.add_argument("--steps", type=int, help="in place of the recipe's; more than before goes on training")
    parser.add_argument("--procs", type=int, help="data-parallel processes, one thread each, in place of the recipe's")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.work.mkdir(parents=True, exist_ok=True)

    def do(stage: str) -> None:
        if stage == "export":
            export(arguments.work, arguments.into)
        elif stage == "unpack":
            unpack(arguments.work, arguments.into)
        else:
            run(stage, arguments.work, arguments.steps, arguments.procs)

    for stages in TOGETHER if arguments.stage == "all" else [[arguments.stage]]:
        with ThreadPoolExecutor(len(stages)) as pool:
            list(pool.map(do, stages))


if __name__ == "__main__":
    main()
