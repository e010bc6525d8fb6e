"""Metrics of demo clips: small classifiers trained on rendered clips, a tracker and a watermark detector.

The classifiers also provide the features of the two Frechet distances, as Inception and I3D do for real video. They are
trained on sharp and degraded clips: they recognise shapes in both, and classify the degradation too, so that their
features depend on picture quality.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from demo import shapes
from demo.shapes import BACKGROUNDS, COLORS, FRAMES, MOTIONS, SHAPES, SIZE, WATERMARK, Scenes

WEIGHTS = Path(__file__).parent / "weights" / "judges.safetensors"
SEED = 11
CLEAR_MOTION = 0.35  # px per frame along the prompted axis; real clips move 1.0 to 1.7


class FrameJudge(nn.Module):
    """(N, 3, 48, 48) -> logits of shape, colour, background, degraded; `features` (N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16, 1), (16, 32, 2), (32, 48, 1), (48, 64, 2), (64, 64, 1))
        self.body = nn.Sequential(*(_block(nn.Conv2d, nn.BatchNorm2d, *w) for w in widths))
        self.neck = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, sum(_FRAME_CLASSES))

    def features(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.neck(torch.cat([h.amax((2, 3)), h.mean((2, 3))], 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.features(x)).split(_FRAME_CLASSES, 1)


class ClipJudge(nn.Module):
    """(N, 3, FRAMES, 48, 48) -> logits of shape, colour, background, degraded, motion; `features` (N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16, (1, 2, 2)), (16, 32, (2, 2, 2)), (32, 48, (2, 2, 2)))
        self.body = nn.Sequential(*(_block(nn.Conv3d, nn.BatchNorm3d, *w) for w in widths))
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(48 * 2 * 36, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, sum(_CLIP_CLASSES))

    def features(self, x: Tensor) -> Tensor:
        return self.neck(self.body(x))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.features(x)).split(_CLIP_CLASSES, 1)


_FRAME_CLASSES = (len(SHAPES), len(COLORS), len(BACKGROUNDS), 2)
_CLIP_CLASSES = (*_FRAME_CLASSES, len(MOTIONS))


def _block(
    conv: type[nn.Module], norm: type[nn.Module], into: int, out: int, stride: int | tuple[int, ...]
) -> nn.Module:
    return nn.Sequential(conv(into, out, 3, stride, 1), norm(out), nn.ReLU())


def footage(n: int, generator: Generator) -> tuple[Tensor, Tensor, Scenes]:
    """Sharp and degraded versions (n, FRAMES, 3, 48, 48) of n random scenes."""
    scenes = Scenes.random(n, generator)
    sharp, _ = shapes.render(scenes, generator)
    return sharp, shapes.degrade(sharp, generator), scenes


def train(steps: tuple[int, int] = (700, 350), weights: Path = WEIGHTS) -> None:
    torch.manual_seed(SEED)
    generator = Generator().manual_seed(SEED)
    sharp, rough, scenes = footage(2500, generator)
    truth = torch.tensor(scenes.rows())  # (n, 4)
    saved: dict[str, Tensor] = {}
    for name, judge, count in (("frame", FrameJudge(), steps[0]), ("clip", ClipJudge(), steps[1])):
        optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i, count=count: 1 - i / count + 0.01)
        for step in range(count):
            index = torch.randint(0, len(truth), (64 if name == "frame" else 24,))
            is_rough = (torch.rand(len(index)) < 0.5)[:, None, None, None, None]
            x = torch.where(is_rough, rough[index], sharp[index])
            x = (
                x[torch.arange(len(index)), torch.randint(0, FRAMES, (len(index),))]
                if name == "frame"
                else x.transpose(1, 2)
            )
            x = x + 0.08 * torch.rand(len(index), *[1] * (x.ndim - 1)) * torch.randn_like(x)
            logits = judge(x)
            said = truth[index]
            wanted = torch.cat([said[:, :3], is_rough.view(-1, 1).long(), said[:, 3:]], 1)
            loss = torch.stack([F.cross_entropy(part, wanted[:, k]) for k, part in enumerate(logits)]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % 50 == 0:
                print(f"{name} judge {step + 1}/{count} loss {loss.item():.4f}", flush=True)
        saved |= {f"{name}.{key}": value for key, value in judge.state_dict().items()}
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(saved, weights)


class Judges:
    """Scores clips (n, FRAMES, 3, 48, 48) in [-1, 1] against the scenes of their prompts."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        saved = load_file(weights)
        self.frame, self.clip = FrameJudge().eval(), ClipJudge().eval()
        for name, judge in (("frame", self.frame), ("clip", self.clip)):
            judge.load_state_dict({k.removeprefix(f"{name}."): v for k, v in saved.items() if k.startswith(f"{name}.")})
        generator = Generator().manual_seed(SEED + 1)
        sharp, _ = shapes.render(Scenes.random(400, generator), generator)
        features = self._features(sharp)  # of 400 clips: seconds
        self._frame_space, self._clip_space = (_Whitened(each) for each in features)
        self._reference = self._frame_space(features[0]), self._clip_space(features[1])

    @torch.no_grad()
    def score(self, clips: Tensor, scenes: Scenes) -> dict[str, float]:
        """Accuracies are per frame (motion: per clip); Frechet distances are to 400 sharp clips."""
        truth = torch.tensor(scenes.rows()).repeat_interleave(FRAMES, 0)
        frames = clips.flatten(0, 1)
        logits = [torch.cat(parts) for parts in zip(*(self.frame(x) for x in frames.split(256)), strict=True)]
        named = [part.argmax(1) for part in logits]
        right = [(part == truth[:, k]).float().mean().item() for k, part in enumerate(named[:3])]
        track = positions(clips)
        slope = _slope(track)
        along = (slope * _DIRECTIONS[scenes.motion]).sum(-1)
        straight = track.mean(1, keepdim=True) + slope[:, None] * _FRAME_NUMBER[None, :, None]
        scores = {
            "shape": right[0],
            "color": right[1],
            "background": right[2],
            "motion": (along > CLEAR_MOTION).float().mean().item(),
            "degraded": named[3].float().mean().item(),
            "watermark": watermark_correlation(clips).mean().item(),
            "wobble_px": (track - straight).norm(dim=-1).mean().item(),
            "size_spread": size_spread(clips).mean().item(),
            "coherence": self._coherence(clips),
        }
        if len(clips) > 1:  # one clip has no covariance
            names = ("frame_fd", "video_fd")
            ours = self.project(clips)
            scores |= {n: frechet(a, b) for n, a, b in zip(names, ours, self._reference, strict=True)}
        return scores

    @torch.no_grad()
    def _features(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.cat([self.frame.features(x) for x in clips.flatten(0, 1).split(256)])
        return frames, torch.cat([self.clip.features(x.transpose(1, 2)) for x in clips.split(64)])

    @torch.no_grad()
    def _coherence(self, clips: Tensor) -> float:
        """Mean cosine similarity of features of neighbouring frames, as CLIP features are used for real video."""
        features = torch.cat([self.frame.features(x) for x in clips.flatten(0, 1).split(256)])
        features = features.unflatten(0, (len(clips), FRAMES))
        return F.cosine_similarity(features[:, 1:], features[:, :-1], dim=-1).mean().item()

    def project(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        frames, whole = self._features(clips)
        return self._frame_space(frames), self._clip_space(whole)


class _Whitened:
    """Projects features onto their 16 strongest directions on real clips, with unit variance each."""

    def __init__(self, features: Tensor, keep: int = 16) -> None:
        self.mean = features.mean(0)
        _, scale, directions = torch.linalg.svd(features - self.mean, full_matrices=False)
        self.matrix = directions[:keep].T / (scale[:keep] / len(features) ** 0.5)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of two samples (n, d) as Gaussians (arXiv:1706.08500 Eq. 6)."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # trace of the square root of cov_a cov_b, whose eigenvalues are real and non-negative
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).pow(2).sum() + cov_a.trace() + cov_b.trace() - 2 * roots)


_FRAME_NUMBER = torch.arange(FRAMES) - (FRAMES - 1) / 2
_DIRECTIONS = torch.tensor(list(MOTIONS.values()))


def shape_masks(clips: Tensor) -> Tensor:
    """(n, FRAMES, SIZE, SIZE) in {0, 1}: the shape, where pixels differ from the border colour and are no watermark."""
    x = (clips + 1) / 2
    border = torch.cat(
        [x[..., :2, :].flatten(3), x[..., -2:, :].flatten(3), x[..., :2].flatten(3), x[..., -2:].flatten(3)], -1
    )
    background = border.transpose(1, 2).flatten(2).median(-1).values[:, None, :, None, None]
    difference = (x - background).abs().amax(2)  # (n, F, SIZE, SIZE)
    # Under the watermark, what never changes is not the shape.
    still = WATERMARK * 0.9 * difference.amin(1, keepdim=True)
    weight = (difference - 0.12 - still).clamp(min=0)
    weight = weight / weight.flatten(2).quantile(0.98, dim=2)[..., None, None].clamp(min=1e-3)
    return (weight > 0.45).float()


def positions(clips: Tensor) -> Tensor:
    """The shape's centre (n, FRAMES, 2) in px."""
    mask = shape_masks(clips)
    area = mask.sum((2, 3)).clamp(min=1)
    pixel = torch.arange(SIZE) + 0.5
    return torch.stack([(mask * pixel).sum((2, 3)) / area, (mask * pixel[:, None]).sum((2, 3)) / area], -1)


def size_spread(clips: Tensor) -> Tensor:
    """(n,): standard deviation of the shape's size over the frames, relative to its mean; the size is the square root
    of the area. Coherence hardly changes when the shape of every frame is another one of the same kind; this does."""
    size = shape_masks(clips).sum((2, 3)).sqrt()
    return size.std(1, correction=0) / size.mean(1).clamp(min=1)


def _slope(track: Tensor) -> Tensor:
    """Least-squares velocity (n, 2) in px per frame."""
    return (track * _FRAME_NUMBER[None, :, None]).sum(1) / _FRAME_NUMBER.pow(2).sum()


def watermark_correlation(clips: Tensor) -> Tensor:
    """(n,): correlation of the time-averaged, high-pass filtered brightness with the watermark; 0: no watermark."""
    brightness = clips.mean((1, 2))  # (n, SIZE, SIZE)
    detail = brightness - shapes.blur(brightness[:, None], 3.0)[:, 0]
    pattern = WATERMARK - shapes.blur(WATERMARK[None], 3.0)[0]
    detail = detail - detail.mean((1, 2), keepdim=True)
    pattern = pattern - pattern.mean()
    return (detail * pattern).sum((1, 2)) / (detail.norm(dim=(1, 2)) * pattern.norm() + 1e-6)


if __name__ == "__main__":
    train()
