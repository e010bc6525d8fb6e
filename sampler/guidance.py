"""Classifier-free guidance (arXiv:2207.12598) on diffusers-style networks, whatever they predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sampler.errors import IncompatibleInputs
from sampler.prediction import PredictionType, converted, input_scale
from sampler.validation import floating_tensor, one_of

Branch = Literal["uncond", "cond"]
Texts = tuple[Tensor, ...]  # of each CFG branch, (B, tokens, dim)
Text = Texts | Tensor  # as a network takes it
Arguments = Mapping[str, Any]  # further ones of a network call: each network defines its own
NetworkInput = tuple[Tensor, Text, Arguments]


@dataclass(frozen=True)
class AddedConditions:
    """What SDXL's networks read next to the text embeddings (arXiv:2307.01952, section 2.2).

    Args:
        cond, uncond: pooled embeddings (B, width) of the prompts and the negative prompts.
        time_ids: (6,): original height and width, top and left of the crop, target height and width, in pixels.
    """

    cond: Tensor
    uncond: Tensor
    time_ids: Tensor

    def arguments(self, pooled: Texts, rows: int) -> Arguments:
        """diffusers' `added_cond_kwargs` for a network input of so many rows; `pooled` is in the order of its texts."""
        embeddings = torch.cat(pooled)
        repeated = embeddings.repeat_interleave(rows // len(embeddings), dim=0)
        return {"added_cond_kwargs": {"text_embeds": repeated, "time_ids": self.time_ids.expand(rows, -1)}}


class Denoiser(Protocol):
    """What `sample` needs of a model; any callable with this signature works. It predicts epsilon, so no plan may call
    it at pure noise (abar 0); for networks that predict v or flow there is `GuidedDenoiser`."""

    def __call__(
        self, latents: Tensor, timestep: float, alpha: float, guidance: float, *, uncond: float = 1.0
    ) -> Tensor:
        """Guided epsilon: uncond * eps_u + guidance * (eps_c - eps_u).

        Args:
            latents: (B, C, F, h, w) float32.
            timestep: the timestep that belongs to the noise level of the latents; for flow models not a whole number.
            alpha: that noise level, abar in (0, 1].
            guidance: classifier-free guidance scale, any finite number.
            uncond: weight of the unconditional epsilon; only passed if it is not 1, which only `fused_plan` needs.

        Returns:
            Epsilon, shape of the latents, float32.
        """
        ...


class GuidedDenoiser(ABC):
    """Classifier-free guidance on one diffusers-style network; subclasses define the layout of its input.

    Args:
        unet: called as `unet(x, timestep, encoder_hidden_states=text)`; returns a tensor, a tuple or an object with
            `.sample`, in the shape of x. If both CFG branches are needed, x and text hold the unconditional rows
            first. The timestep is a whole number, or a tensor () of int64 on a GPU; for a flow network a tensor () of
            float32, whatever the dtype of the network, because bfloat16 does not tell 999 from 996. A network with a
            true attribute `native_cfg` gets the texts of the branches as a tuple of (B, tokens, dim), not repeated for
            frames, and the timestep always as a Python number.
        cond, uncond: text embeddings (B, tokens, dim) of the prompts and the negative prompts. The network runs in
            their dtype; latents and predictions stay float32.
        prediction_type: what the network was trained to predict: "epsilon"; "v_prediction"; or "flow", the velocity
            eps - x0 for latents (1 - s) x0 + s eps, which it is given at a timestep that `FlowSchedule` scales. Latents
            are variance-preserving for every type, see `sampler.prediction`.
        added: of SDXL's networks, which get them as `added_cond_kwargs`; None for the others.

    Attributes:
        sequential_cfg: call the network for one CFG branch at a time, which halves its memory. Default False.

    Raises:
        IncompatibleInputs: the embeddings differ in shape, their width is not that of the network's cross-attention
            (if its diffusers config states it), or `added` is missing, superfluous, or of another shape.
        InvalidSetting: unknown `prediction_type`.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        unet: Any,  # diffusers' UNets share no type, and this package must not import diffusers
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        added: AddedConditions | None = None,
    ) -> None:
        if floating_tensor("cond", cond).shape != floating_tensor("uncond", uncond).shape or cond.ndim != 3:
            raise IncompatibleInputs(
                f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} must both be (batch, tokens, dim) and equal"
            )
        width = configured(unet, "cross_attention_dim")
        if width not in (None, cond.shape[-1]):
            raise IncompatibleInputs(
                f"cond {tuple(cond.shape)} is {cond.shape[-1]} wide, the network's cross-attention takes {width}; "
                "each network needs the embeddings of the text encoder it was trained with"
            )
        one_of("prediction_type", prediction_type, get_args(PredictionType))
        _check_added(unet, added, len(cond))
        self.unet = unet
        self.cond, self.uncond, self.added = cond, uncond, added
        self.prediction_type: PredictionType = prediction_type
        self.sequential_cfg = False
        self.only_adds = False  # whether predictions leave out frames, so that another model must move these
        self.text_per_frame = False  # whether the network takes whole clips, but its text once for every frame
        self.channels = configured(unet, "in_channels")  # None: unknown
        self.max_frames: int | None = None  # None: unlimited or unknown
        self.native_cfg = bool(getattr(unet, "native_cfg", False))

    def __repr__(self) -> str:
        text, network = tuple(self.cond.shape), type(self.unet).__name__
        return f"{type(self).__name__}({network}, text={text}, prediction_type={self.prediction_type!r})"

    def __call__(
        self, latents: Tensor, timestep: float, alpha: float, guidance: float, *, uncond: float = 1.0
    ) -> Tensor:
        """See `Denoiser`: epsilon, whatever the network predicts; alpha is in [0, 1] unless that is epsilon.

        Raises IncompatibleInputs if latents, text and the network's output do not fit together.
        """
        p = self.prepare(latents).guided(latents, timestep, alpha, guidance, uncond)
        return converted(p, latents, alpha, self.prediction_type, "epsilon", uncond)

    def prepare(self, latents: Tensor) -> PreparedDenoiser:
        """This denoiser for latents of one shape and device; makes input buffer, texts and timesteps only once.

        Raises IncompatibleInputs if the latents do not fit the embeddings or the network.
        """
        if latents.ndim != 5 or latents.shape[0] != self.cond.shape[0]:
            raise IncompatibleInputs(
                f"latents {tuple(latents.shape)} must be (batch, channels, frames, height, width) "
                f"with batch {self.cond.shape[0]}, one for each text embedding"
            )
        if self.channels not in (None, latents.shape[1]):
            raise IncompatibleInputs(
                f"the {self.kind} model works on {self.channels} latent channels, the latents {tuple(latents.shape)} "
                f"have {latents.shape[1]}; image model, video model and latents must share one latent space"
            )
        if self.max_frames is not None and latents.shape[2] > self.max_frames:
            raise IncompatibleInputs(
                f"the {self.kind} model supports at most {self.max_frames} frames, the latents "
                f"{tuple(latents.shape)} have {latents.shape[2]}; sample fewer frames"
            )
        return PreparedDenoiser(self, latents)

    def visible(self, latents: Tensor) -> Tensor:
        """The part of the latents that the network sees: the first of their frames, or all."""
        return latents

    def network_inputs(self, x: Tensor, branches: Sequence[Branch]) -> list[NetworkInput]:
        """The network calls for x, which holds the rows of all these CFG branches."""
        texts = tuple(self.cond if branch == "cond" else self.uncond for branch in branches)
        parts = self.parts(x, texts)
        if (added := self.added) is None:
            return [(part, self.text(text, part), {}) for part, text in parts]
        pooled = tuple(added.cond if branch == "cond" else added.uncond for branch in branches)
        return [
            (part, self.text(text, part), added.arguments(of_part, len(part)))
            for (part, text), (_, of_part) in zip(parts, self.parts(x, pooled), strict=True)
        ]

    def parts(self, x: Tensor, texts: Texts) -> list[tuple[Tensor, Texts]]:
        """x split into the rows of each network call, with what belongs to them of `texts`, one per CFG branch."""
        if self.sequential_cfg:
            return [(rows, (text,)) for rows, text in zip(x.chunk(len(texts)), texts, strict=True)]
        return [(x, texts)]

    def text(self, texts: Texts, x: Tensor) -> Text:
        """Text in the form that the network takes next to x."""
        if self.native_cfg:
            return texts
        text = torch.cat(texts)
        repeats = len(x) // len(text) * (x.shape[2] if self.text_per_frame else 1)
        return text.repeat_interleave(repeats, dim=0) if repeats > 1 else text

    @abstractmethod
    def input_shape(self, latents: Tensor) -> tuple[int, ...]:
        """Shape of the network's input for one CFG branch, rows first."""

    @abstractmethod
    def as_clips(self, x: Tensor, latents: Tensor) -> Tensor:
        """Network input or output of n CFG branches, viewed as (n, B, C, F, h, w)."""

    @abstractmethod
    def predict(self, x: Tensor, timestep: float | Tensor, text: Text, arguments: Arguments) -> Tensor:
        """One network call; returns the shape of x."""


class PreparedDenoiser:
    """A `GuidedDenoiser` for latents of one shape; it answers with what the network predicts, not with epsilon."""

    def __init__(self, model: GuidedDenoiser, latents: Tensor) -> None:
        self._model, self._latents = model, model.visible(latents)
        self.prediction_type: PredictionType = model.prediction_type
        self._unseen = latents.shape[2] - self._latents.shape[2]
        self._rows, *shape = model.input_shape(self._latents)
        self._x = torch.empty((2 * self._rows, *shape), dtype=model.cond.dtype, device=latents.device)
        self._x_as_clips = model.as_clips(self._x, self._latents)
        self._inputs: dict[tuple[Branch, ...], list[NetworkInput]] = {}
        self._timesteps: dict[float, float | Tensor] = {}

    def guided(self, latents: Tensor, timestep: float, alpha: float, guidance: float, uncond: float = 1.0) -> Tensor:
        """uncond * p_u + guidance * (p_c - p_u), (B, C, F, h, w) float32: guidance is linear, so any p will do."""
        if self._model.only_adds and uncond:
            raise IncompatibleInputs(f"{self._model!r} sees the first frame only: uncond={uncond!r} must be 0")
        if guidance == 0:
            (out_u,) = self._predict(latents, timestep, alpha, ("uncond",))
            return uncond * out_u
        if guidance == uncond:
            (out_c,) = self._predict(latents, timestep, alpha, ("cond",))
            return guidance * out_c
        out_u, out_c = self._predict(latents, timestep, alpha, ("uncond", "cond"))
        return uncond * out_u + guidance * (out_c - out_u)

    def both(self, latents: Tensor, timestep: float, alpha: float) -> tuple[Tensor, Tensor]:
        """The predictions for the negative prompt and the prompt, without guidance, in one network call."""
        out_u, out_c = self._predict(latents, timestep, alpha, ("uncond", "cond"))
        return out_u, out_c

    def _predict(
        self, latents: Tensor, timestep: float, alpha: float, branches: tuple[Branch, ...]
    ) -> Sequence[Tensor]:
        """The network's prediction for each CFG branch, (B, C, F, h, w) float32."""
        seen = self._model.visible(latents) if self._unseen else latents
        if self.prediction_type == "flow":
            seen = input_scale(alpha, "flow") * seen
        self._x_as_clips.copy_(seen)  # to both branches, in the network's dtype and layout
        if branches not in self._inputs:
            x = self._x[: len(branches) * self._rows]
            self._inputs[branches] = self._model.network_inputs(x, branches)
        if timestep not in self._timesteps:
            self._timesteps[timestep] = self._as_network_timestep(timestep)
        t = self._timesteps[timestep]
        outputs = [self._model.predict(x, t, text, arguments) for x, text, arguments in self._inputs[branches]]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        clips = self._model.as_clips(output, self._latents).float()
        return (F.pad(clips, (0, 0, 0, 0, 0, self._unseen)) if self._unseen else clips).unbind()

    def _as_network_timestep(self, timestep: float) -> float | Tensor:
        device = self._latents.device
        if self._model.native_cfg:
            return timestep
        if self.prediction_type == "flow" or not isinstance(timestep, int):
            return torch.full((), timestep, dtype=torch.float32, device=device)
        if device.type == "cpu":
            return timestep
        # diffusers would upload an integer and wait for it; filling a tensor on the device does not block.
        return torch.full((), timestep, dtype=torch.int64, device=device)


def network_output(output: Any, x: Tensor) -> Tensor:  # Any: diffusers' networks return different types
    """The tensor in a network's output. Raises IncompatibleInputs if it has none in the shape of the input x."""
    predicted = floating_tensor("the network's output", _first_part(output))
    if predicted.shape != x.shape:
        raise IncompatibleInputs(
            f"the network returned {tuple(predicted.shape)} for an input of {tuple(x.shape)}; networks that also "
            "predict a variance, or take extra channels, are not supported"
        )
    return predicted


def _first_part(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "sample"):
        return output.sample
    try:
        return output[0]
    except (TypeError, LookupError):
        return output


def configured(unet: Any, key: str) -> int | None:
    """An integer of the network's diffusers config; None if it has none."""
    value = getattr(getattr(unet, "config", None), key, None)
    return value if isinstance(value, int) else None


def _check_added(unet: Any, added: AddedConditions | None, batch: int) -> None:
    """Raises IncompatibleInputs."""
    wanted = getattr(getattr(unet, "config", None), "addition_embed_type", None) == "text_time"
    if added is None:
        if wanted:
            raise IncompatibleInputs("added=None: SDXL's networks also read pooled embeddings and sizes")
        return
    if added.cond.shape != added.uncond.shape or added.cond.ndim != 2 or len(added.cond) != batch:
        raise IncompatibleInputs(
            f"added.cond {tuple(added.cond.shape)} and added.uncond {tuple(added.uncond.shape)} must both be "
            f"({batch}, width): one pooled embedding for each text"
        )
    numbers, width = added.time_ids.numel(), configured(unet, "projection_class_embeddings_input_dim")
    found = added.cond.shape[1] + numbers * (configured(unet, "addition_time_embed_dim") or 0)
    if added.time_ids.ndim != 1 or width not in (None, found):
        raise IncompatibleInputs(
            f"added.cond {tuple(added.cond.shape)} and added.time_ids {tuple(added.time_ids.shape)} make an embedding "
            f"{found} wide, the network takes {width}"
        )
