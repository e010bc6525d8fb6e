"""Training data of the demo networks: rendered clips, encoded once, and embedded captions."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from demo import networks, shapes
from demo.fit import SEED, Group
from demo.shapes import FRAMES, NEGATIVE_PROMPT, Scenes

CLIPS, COLORS_CLIPS = 6000, 2000
FRAMES_KEPT = 2  # sharp frames per clip; neighbouring frames add little for an image model


@torch.no_grad()
def make_latents(name: str, work: Path, group: Group) -> None:
    """Write <name>.<rank>.pt: degraded clips (n, C, F, h, w), sharp frames of each (n, k, C, h, w), scenes (n, 4).

    The clips of `latents` are washed out; of those of `colors` one half has full colours, the other any saturation.
    """
    model = AutoencoderKL.from_pretrained(work / "vae").eval()
    is_plain = name == "latents"
    generator = Generator().manual_seed(SEED + (1 if is_plain else 31) + group.rank)
    parts: dict[str, list[Tensor]] = {"clips": [], "sharp": [], "scenes": []}
    for _ in range((CLIPS if is_plain else COLORS_CLIPS) // group.size // 20):
        scenes = Scenes.random(20, generator)
        frames, _ = shapes.render(scenes, generator)
        kept = torch.stack([torch.randperm(FRAMES, generator=generator)[:FRAMES_KEPT] for _ in range(20)])
        vivid = 0.0 if is_plain else (2 * torch.rand(20, 1, 1, 1, 1, generator=generator)).clamp(max=1)
        clips = _encoded(model, shapes.degrade(frames, generator, vivid=vivid))
        sharp = model.encode(frames[torch.arange(20)[:, None], kept].flatten(0, 1)).latent_dist.mean
        parts["clips"].append(clips)
        parts["sharp"].append(sharp.unflatten(0, (20, FRAMES_KEPT)))
        parts["scenes"].append(torch.tensor(scenes.rows()))
    torch.save({k: torch.cat(v) for k, v in parts.items()}, work / f"{name}.{group.rank}.pt")


@torch.no_grad()
def vivid_clips(work: Path, generator: Generator, n: int) -> tuple[Tensor, Tensor]:
    """Latents (n, C, F, h, w) of degraded clips with random saturation, and their scenes (n, 4)."""
    model = AutoencoderKL.from_pretrained(work / "vae").eval()
    clips, rows = list[Tensor](), list[tuple[int, int, int, int]]()
    for begin in range(0, n, 20):
        scenes = Scenes.random(min(20, n - begin), generator)
        frames, _ = shapes.render(scenes, generator)
        vivid = torch.rand(len(scenes), 1, 1, 1, 1, generator=generator)
        clips.append(_encoded(model, shapes.degrade(frames, generator, vivid=vivid)))
        rows += scenes.rows()
    return torch.cat(clips), torch.tensor(rows)


def _encoded(model: AutoencoderKL, clips: Tensor) -> Tensor:
    """Clips (n, F, 3, H, W) -> latents (n, C, F, h, w)."""
    return model.encode(clips.flatten(0, 1)).latent_dist.mean.unflatten(0, clips.shape[:2]).transpose(1, 2)


class Latents:
    """The encoded data set and the embedding of every caption."""

    def __init__(self, work: Path, name: str = "latents") -> None:
        files = [torch.load(f, weights_only=True) for f in sorted(work.glob(f"{name}.*.pt"))]
        clips, sharp, scenes = (torch.cat([f[k] for f in files]) for k in ("clips", "sharp", "scenes"))
        self.clips, self.sharp, self.scenes = clips, sharp, scenes  # (N,C,F,h,w) (N,k,C,h,w) (N,4)
        tokens = networks.tokenizer()
        encoder = networks.text_encoder(tokens, SEED)
        # the last colour, background and motion mean "not mentioned"
        self.kinds = (len(shapes.SHAPES), len(shapes.COLORS) + 1, len(shapes.BACKGROUNDS) + 1, len(shapes.MOTIONS) + 1)
        said = [
            shapes.caption(s, *(None if i == n - 1 else i for i, n in zip(rest, self.kinds[1:], strict=True)))
            for s, *rest in torch.cartesian_prod(*(torch.arange(n) for n in self.kinds)).tolist()
        ]
        ids = tokens([*said, "", NEGATIVE_PROMPT], padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            self.text = encoder(ids).last_hidden_state  # (captions + 2, 16, 64)
        words = encoder(tokens(["left", "right", "red", "blue"], return_tensors="pt").input_ids).last_hidden_state[:, 1]
        distance = torch.cdist(words, words)
        assert distance[0, 1] > 0.2 * distance[2, 3], "left and right must not collapse in the text encoder"
        self.empty, self.negative = len(said), len(said) + 1

    def captions(self, scenes: Tensor, unsaid: tuple[float, float, float]) -> Tensor:
        """Caption indices of scenes (n, 4), omitting colour, background or motion with these probabilities."""
        rows = scenes.clone()
        for column, probability in enumerate(unsaid, start=1):
            rows[torch.rand(len(rows)) < probability, column] = self.kinds[column] - 1
        _, colors, backgrounds, motions = self.kinds
        return ((rows[:, 0] * colors + rows[:, 1]) * backgrounds + rows[:, 2]) * motions + rows[:, 3]


def noised(x: Tensor, alphas_cumprod: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy x and its two training targets: x_t, epsilon, v (arXiv:2202.00512 App. D for v)."""
    a = alphas_cumprod[timestep].view(-1, *[1] * (x.ndim - 1))
    noise = torch.randn_like(x)
    return a.sqrt() * x + (1 - a).sqrt() * noise, noise, a.sqrt() * noise - (1 - a).sqrt() * x
