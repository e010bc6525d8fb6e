"""From a network to guided epsilon: classifier-free guidance, frame folding and prediction type, each in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.noise_schedule import PredictionType

Half = Literal["uncond", "cond"]
Halves = Literal["both", "uncond", "cond"]
COUNT: dict[Halves, int] = {"both": 2, "uncond": 1, "cond": 1}
Texts = tuple[Tensor, ...]  # of the halves, (B, tokens, dim) each
Predict = Callable[[Tensor, int | Tensor], tuple[Tensor, ...]]


class Denoiser(Protocol):
    """What the loop needs of a model."""

    def __call__(self, latents: Tensor, timestep: int, alpha: float, guidance: float, *, uncond: float = 1.0) -> Tensor:
        """uncond * eps_u + guidance * (eps_c - eps_u), (B, C, F, h, w) float32, for latents at noise level `alpha`."""
        ...


class GuidedDenoiser(ABC):
    """Classifier-free guidance on one network; subclasses say how a clip is laid out for it.

    Args:
        unet: called as `unet(x, timestep, encoder_hidden_states=text)`; returns a tensor, a tuple or has `.sample`.
            Where both guidance halves are wanted, x and text hold the one without the prompt first. A network with a
            true attribute `native_cfg` is given the texts of the halves as a tuple, unrepeated, and the timestep as
            an integer; where there are two, x holds the same latents twice.
        cond, uncond: text embeddings (B, tokens, dim) of the prompts and of the negative prompts. Their dtype is the
            dtype the network is run in; latents and epsilon stay float32.
        prediction_type: what the network was trained to return.

    Raises IncompatibleInputs if the two embeddings differ in shape, or if they are not as wide as the network's
    cross-attention (where it has a diffusers config that says so); InvalidSetting if the prediction type is unknown.
    """

    def __init__(
        self, unet: Any, cond: Tensor, uncond: Tensor, *, prediction_type: PredictionType = "epsilon"
    ) -> None:  # Any: diffusers' UNets share no type, and this package must not import diffusers
        if cond.shape != uncond.shape or cond.ndim != 3:
            raise IncompatibleInputs(
                f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} must both be (batch, tokens, dim) and equal"
            )
        width = _configured(unet, "cross_attention_dim")
        if width not in (None, cond.shape[-1]):
            raise IncompatibleInputs(
                f"cond {tuple(cond.shape)} is {cond.shape[-1]} wide, the network's cross-attention takes {width}; "
                "each network needs the embeddings of its own text encoder"
            )
        if prediction_type not in ("epsilon", "v_prediction"):
            raise InvalidSetting(
                f"prediction_type={prediction_type!r} is not supported; use 'epsilon' or 'v_prediction'"
            )
        self.unet = unet
        self.cond, self.uncond = cond, uncond
        self.prediction_type: PredictionType = prediction_type
        self.sequential_cfg = False  # half the memory for the two guidance halves, in two calls
        self.channels = _configured(unet, "in_channels")  # None: unknown
        self.native_cfg = bool(getattr(unet, "native_cfg", False))

    def __call__(self, latents: Tensor, timestep: int, alpha: float, guidance: float, *, uncond: float = 1.0) -> Tensor:
        of_latents, parts = self.weights(alpha, guidance, uncond)
        predict = self.prepare(latents, halves_of(parts))
        eps = of_latents * latents.float()
        for answer, weight in zip(predict(latents, self.timestep(timestep, latents)), parts.values(), strict=True):
            eps.add_(answer, alpha=weight)
        return eps

    def weights(self, alpha: float, guidance: float, uncond: float = 1.0) -> tuple[float, dict[Half, float]]:
        """Guided epsilon as a sum: the weight of the latents, and those of the halves that have any.

        Guidance is linear, so converting v to epsilon after it is the same (arXiv:2202.00512 App. D).
        """
        if guidance == 0:
            parts: dict[Half, float] = {"uncond": uncond}
        elif guidance == uncond:
            parts = {"cond": guidance}
        else:
            parts = {"uncond": uncond - guidance, "cond": guidance}
        if self.prediction_type == "epsilon":
            return 0.0, parts
        return uncond * (1 - alpha) ** 0.5, {half: alpha**0.5 * weight for half, weight in parts.items()}

    def prepare(self, like: Tensor, halves: Halves) -> Predict:
        """The network for latents such as these, with all that does not change laid ready; costs more than a call.

        Called with latents (B, C, F, h, w) and what `timestep` gives; returns what the network says for each half, of
        that shape, in its own dtype, to be used before the next call. Raises IncompatibleInputs if latents, text or
        what the network returns do not fit each other.
        """
        if like.ndim != 5 or like.shape[0] != self.cond.shape[0]:
            raise IncompatibleInputs(
                f"latents {tuple(like.shape)} must be (batch, channels, frames, height, width) "
                f"with batch {self.cond.shape[0]}, one for each text embedding"
            )
        if halves == "both" and self.sequential_cfg:
            one, other = self.prepare(like, "uncond"), self.prepare(like, "cond")
            return lambda x, timestep: one(x, timestep) + other(x, timestep)
        count = COUNT[halves]
        texts = {"both": (self.uncond, self.cond), "cond": (self.cond,), "uncond": (self.uncond,)}[halves]
        clips = self._empty(like, count, self.cond.dtype)  # (count, B, C, F, h, w)
        network, apart = self._network(clips, texts, like), self._apart(like, count)

        def predict(x: Tensor, timestep: int | Tensor) -> tuple[Tensor, ...]:
            clips.copy_(x)  # into every half, in the network's dtype
            return apart(network(timestep))

        return predict

    def timestep(self, timestep: int, like: Tensor) -> int | Tensor:
        """As the network is to be told it. diffusers would upload an int and wait; a fill on the device waits not."""
        if like.device.type == "cpu" or self.native_cfg:
            return timestep
        return torch.full((), timestep, dtype=torch.int64, device=like.device)

    def _text(self, texts: Texts, frames: int) -> Texts | Tensor:
        """As the network is to be given it, every text `frames` times over."""
        if self.native_cfg:
            return texts
        return torch.cat(texts).repeat_interleave(frames, dim=0) if frames > 1 else torch.cat(texts)

    @abstractmethod
    def _empty(self, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """(count, B, C, F, h, w) in the network's order of memory."""

    @abstractmethod
    def _network(self, clips: Tensor, texts: Texts, like: Tensor) -> Callable[[int | Tensor], Tensor]:
        """The network on whatever `clips` then holds."""

    @abstractmethod
    def _apart(self, like: Tensor, count: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """From what the network returns to `count` clips, (B, C, F, h, w) each."""


class ImageDenoiser(GuidedDenoiser):
    """An image model (IDM) on each frame by itself: the network sees (B*F, C, h, w).

    resize: (height, width) in latent pixels at which the network sees the frames, by nearest neighbour, and from which
    epsilon comes back. The released ModelScope code does so with 64x64, whatever the clip's size; where 64 is no
    multiple of that size it also resamples the latents themselves, which this does not. None: as they are.
    """

    def __init__(
        self,
        unet: Any,  # see GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        resize: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type)
        if resize is not None and min(resize) < 1:
            raise InvalidSetting(f"resize={resize} must be a height and a width of at least 1 latent pixel")
        self.resize = resize
        self.frames_at_once: int | None = None  # all; fewer need less memory and more calls

    def _empty(self, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        b, c, f, h, w = like.shape
        return torch.empty((count, b, f, c, h, w), dtype=dtype, device=like.device).transpose(2, 3)

    def _network(self, clips: Tensor, texts: Texts, like: Tensor) -> Callable[[int | Tensor], Tensor]:
        unet, resize, size = self.unet, self.resize, like.shape[-2:]
        if self.frames_at_once is not None:
            return self._in_parts(clips, texts, like, self.frames_at_once)
        x = clips.transpose(2, 3).flatten(0, 2)  # (count*B*F, C, h, w)
        text = self._text(texts, like.shape[2])
        if resize is None:
            return lambda t: _tensor(unet(x, t, encoder_hidden_states=text))
        return lambda t: _resized(_tensor(unet(_resized(x, resize), t, encoder_hidden_states=text)), size)

    def _in_parts(
        self, clips: Tensor, texts: Texts, like: Tensor, frames_at_once: int
    ) -> Callable[[int | Tensor], Tensor]:
        """A few frames of one clip and one half in a call."""
        unet, resize, size = self.unet, self.resize, like.shape[-2:]
        parts = [
            (x, self._text((text if len(text) == 1 else text[clip : clip + 1],), x.shape[0]))
            for half, text in zip(clips.transpose(2, 3).unbind(), texts, strict=True)
            for clip, frames in enumerate(half.unbind())
            for x in (frames[i : i + frames_at_once] for i in range(0, frames.shape[0], frames_at_once))
        ]

        def run(t: int | Tensor) -> Tensor:
            answers = [_tensor(unet(_resized(x, resize), t, encoder_hidden_states=text)) for x, text in parts]
            return _resized(torch.cat(answers), size)

        return run

    def _apart(self, like: Tensor, count: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        b, c, f, h, w = like.shape
        expected, halves = (count * b * f, c, h, w), (count, b, f, c, h, w)

        def apart(answer: Tensor) -> tuple[Tensor, ...]:
            if answer.shape != expected:
                raise _unfit((b, answer.shape[1], f, *answer.shape[2:]), like)
            return answer.view(halves).transpose(2, 3).unbind()

        return apart


class VideoDenoiser(GuidedDenoiser):
    """A video model (VDM) on the whole clip: the network sees (B, C, F, h, w).

    text_per_frame: whether the network wants its text repeated for every frame. diffusers' `UNetMotionModel` does
        since 0.31, `UNet3DConditionModel` repeats by itself. None: recognised by `UNetMotionModel`'s interface.
    network_args: more keyword arguments of the network, the same in every call; VideoCrafter's takes {"fps": 24}.
    """

    def __init__(
        self,
        unet: Any,  # see GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        text_per_frame: bool | None = None,
        network_args: Mapping[str, Any] | None = None,  # Any: what a network takes is its own affair
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type)
        self.text_per_frame = hasattr(unet, "save_motion_modules") if text_per_frame is None else text_per_frame
        self.network_args = dict(network_args or {})

    def _empty(self, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((count, *like.shape), dtype=dtype, device=like.device)

    def _network(self, clips: Tensor, texts: Texts, like: Tensor) -> Callable[[int | Tensor], Tensor]:
        unet, args, x = self.unet, self.network_args, clips.flatten(0, 1)  # (count*B, C, F, h, w)
        text = self._text(texts, like.shape[2] if self.text_per_frame else 1)
        return lambda t: _tensor(unet(x, t, encoder_hidden_states=text, **args))

    def _apart(self, like: Tensor, count: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        b, expected = like.shape[0], (count * like.shape[0], *like.shape[1:])

        def apart(answer: Tensor) -> tuple[Tensor, ...]:
            if answer.shape != expected:
                raise _unfit((answer.shape[0] // count, *answer.shape[1:]), like)
            return (answer,) if count == 1 else (answer[:b], answer[b:])  # `split` takes five times as long

        return apart


def halves_of(parts: Mapping[Half, float]) -> Halves:
    return "both" if len(parts) > 1 else next(iter(parts))


def _tensor(output: Any) -> Tensor:  # Any: what diffusers' networks return differs
    if isinstance(output, Tensor):
        return output
    return output.sample if hasattr(output, "sample") else output[0]


def _unfit(answer: tuple[int, ...], latents: Tensor) -> IncompatibleInputs:
    return IncompatibleInputs(
        f"the network returned {answer} for latents {tuple(latents.shape)}; "
        "networks that also predict a variance, or take extra channels, are not supported"
    )


def _resized(frames: Tensor, size: Sequence[int] | None) -> Tensor:
    """(N, C, h, w) -> (N, C, *size) by nearest neighbour; unchanged where it is that size already."""
    if size is None or tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size=tuple(size), mode="nearest")


def _configured(unet: Any, key: str) -> int | None:
    """An integer of the network's diffusers config; None where there is none."""
    value = getattr(getattr(unet, "config", None), key, None)
    return value if isinstance(value, int) else None
