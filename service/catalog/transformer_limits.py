"""What a model whose network is a video transformer can do: which samplers, and which settings of an entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from service.catalog.adapters import Lora, TextualInversion
from service.catalog.bounds import Range
from service.catalog.family_components import (
    COGVIDEOX,
    REQUIRED_COMPONENTS,
    WAN,
    Family,
    frames_per_latent,
    is_transformer,
)
from service.catalog.memory_options import MemoryOptions
from service.catalog.num_frames import check_stride
from service.errors import InvalidParameter
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES, SamplerSettings

PLAIN = ("ddim",)
# The image model is the same Wan, given one latent frame at a time. Nothing shows yet that mixing helps there.
EXPERIMENTAL = ("iv-mixed", "fused")
COMBINATION = "IV-VI"
# A run's first fifth has hardly any signal; the paper's guidance.
MIXING: dict[str, Any] = {"combination": COMBINATION, "interval": [0.2, 1.0]}
TRANSFORMERS = tuple(family for family in REQUIRED_COMPONENTS if is_transformer(family))
UNETS = tuple(family for family in REQUIRED_COMPONENTS if not is_transformer(family))


def with_family_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A registry entry with the defaults of its family where it says nothing.

    Raises ValueError for switches in `memory` that its networks do not have.
    """
    sampler, memory = raw.get("sampler", {}), raw.get("memory")
    switches = dict(cast("Mapping[str, Any]", memory)) if isinstance(memory, dict | MemoryOptions) else {}
    if any(switches.values()) and raw.get("family") in UNETS:
        raise ValueError("memory has no settings for families with UNets: workers save memory where it runs out")
    if raw.get("family") not in TRANSFORMERS or not isinstance(sampler, dict):
        return dict(raw)
    mixing = MIXING if raw["family"] == WAN else {}
    return {"dtype": "bfloat16", **raw, "sampler": {"name": "ddim", **mixing, **sampler}}


def experimental_samplers(family: Family, image_conditioning: str | None, *, distilled: bool) -> tuple[str, ...]:
    """The samplers that models of the family can run, but that nothing shows to help.

    Args:
        image_conditioning: of the entry. With "channels" the network always wants a first frame.
        distilled: whether guidance is folded into the network, whose answer without the prompt then means nothing.
    """
    return EXPERIMENTAL if family == WAN and image_conditioning != "channels" and not distilled else ()


def samplers_of(family: Family, image_conditioning: str | None, *, distilled: bool) -> tuple[str, ...]:
    """The samplers that models of the family can run. Args: as in `experimental_samplers`."""
    if not is_transformer(family):
        return tuple(USES)
    return (*PLAIN, *experimental_samplers(family, image_conditioning, distilled=distilled))


def check_transformer_sampler(
    model: str, family: Family, sampler: SamplerSettings, samplers: Sequence[str], *, distilled: bool
) -> None:
    """Raises InvalidParameter naming the setting that the model cannot run.

    Args:
        samplers: those that it can.
        distilled: as in `experimental_samplers`.
    """
    if sampler.name not in samplers:
        kind = f"the distilled model '{model}'" if distilled else f"model '{model}'"
        message = f"Sampler '{sampler.name}' does not work with {kind} of family {family}"
        raise InvalidParameter("sampler.name", f"{message}; use {' or '.join(samplers)}.")
    if sampler.name == "iv-mixed" and sampler.combination != COMBINATION:
        message = f"Combination '{sampler.combination}' is not offered for family {family}: its image model was not "
        message += f"trained on latents of several frames, on which others leak more; use {COMBINATION}, or fused."
        raise InvalidParameter("sampler.combination", message)
    if sampler.is_image_alone:
        message = f"network image: model '{model}' has no separate image model; use network video."
        raise InvalidParameter("sampler.network", message)
    if sampler.solver == "lcm":
        message = f"solver 'lcm': model '{model}' is not distilled to a latent consistency model; use ddim or dpmpp-2m."
        raise InvalidParameter("sampler.solver", message)
    if sampler.grid == "diffusers" and family != COGVIDEOX:
        message = f"grid 'diffusers' is that of DDIM's timesteps, which model '{model}' has not; use 'adjacent'."
        raise InvalidParameter("sampler.grid", message)


def check_transformer_request(model: str, request: VideoRequest) -> None:
    """Raises InvalidParameter for settings of CLIP's text encoders."""
    if request.clip_skip:
        message = f"clip_skip={request.clip_skip}: model '{model}' reads its prompts with T5, which has no clip_skip."
        raise InvalidParameter("clip_skip", f"{message} Leave it out.")


def check_transformer_entry(
    num_frames: Range,
    family: Family,
    loras: tuple[Lora, ...],
    inversions: tuple[TextualInversion, ...],
    *,
    reads_clip: bool,
) -> None:
    """Raises ValueError for what the family's networks do not take.

    Args:
        num_frames: of the entry.
        reads_clip: whether the entry sets what only CLIP's text encoders read.
    """
    for name in ("default", "min", "max"):
        try:
            check_stride("num_frames", int(getattr(num_frames, name)), num_frames, frames_per_latent(family))
        except InvalidParameter as e:
            raise ValueError(f"num_frames.{name}: {e.message}") from e
    if loras or inversions:
        named = "LoRAs" if loras else "textual_inversions"
        raise ValueError(f"family {family} takes no {named} yet; delete them")
    if reads_clip:
        settings = "clip_skip, prompt_chunks and prompt_weighting"
        raise ValueError(f"family {family} reads its prompts with T5, which has no {settings}; delete them")
