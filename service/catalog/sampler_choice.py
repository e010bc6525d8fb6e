"""The sampler of a request: the model's own settings with the request's changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.catalog.family_components import WAN
from service.errors import InvalidParameter
from service.jobs.released_loops import RELEASED, Family
from service.jobs.sampler_settings import RULE_SETTINGS, USES, SamplerSettings

OF_WAN = frozenset({"image_frames"})  # settings that only models with a time-compressing autoencoder read


def choose_sampler(own: SamplerSettings, family: Family, changes: Mapping[str, Any]) -> SamplerSettings:
    """Return the sampler with all its settings.

    Args:
        own: the model's sampler.
        family: of the model.
        changes: the request's settings; None means not given.

    Raises:
        ValidationError: a setting is unknown or its value impossible.
        InvalidParameter: the chosen sampler or its guidance_rule does not read a setting, which differs from the
            model's; or it is `official`, and the paper's authors released no code for the family.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    settings = own.model_dump()
    if given.get("name", own.name) == "official":
        if family not in RELEASED:
            message = f"Sampler 'official': the authors released no code for family {family}; use iv-mixed."
            raise InvalidParameter("sampler.name", message)
        released = _released_settings(family)
        settings = released | settings if own.name == "official" else settings | released
    chosen = SamplerSettings.model_validate(settings | given)
    for name in set(given) - settings_of(chosen.name, family) - {"name"}:
        if getattr(chosen, name) != getattr(own, name):
            raise InvalidParameter(f"sampler.{name}", _not_read(name, chosen.name, family))
    _check_rule_settings(own, chosen, given)
    return chosen


def check_zero_init(sampler: SamplerSettings, steps: int) -> None:
    """Raises InvalidParameter if CFG-Zero* leaves no step that calls a network."""
    reads = "zero_init_steps" in USES[sampler.name] and sampler.guidance_rule == "cfg-zero"
    if reads and sampler.zero_init_steps >= steps:
        message = f"zero_init_steps={sampler.zero_init_steps} must be less than num_inference_steps, {steps}."
        raise InvalidParameter("sampler.zero_init_steps", message)


def settings_of(sampler: str, family: Family) -> frozenset[str]:
    """Names of the settings that a sampler reads for a model of this family."""
    if sampler != "official":
        return USES[sampler] if family == WAN else USES[sampler] - OF_WAN
    return USES[sampler] - RELEASED[family].ignored if family in RELEASED else frozenset()


def or_use(setting: str, family: Family, verb: str = "use") -> str:
    """The end of a way out: the samplers that read the setting, if there are any."""
    readers = [sampler for sampler in USES if setting in settings_of(sampler, family)]
    return f", or {verb} {', '.join(readers)}" if readers else ""


def _released_settings(family: Family) -> dict[str, Any]:
    """The values of the released code, of the settings that sampler `official` reads."""
    released, fields = RELEASED[family], SamplerSettings.model_fields
    values = {name: fields[name].default for name in USES["official"]}
    values |= {"active_steps": released.active_steps, "zz": released.zz}
    return {name: values[name] for name in settings_of("official", family)}


def _check_rule_settings(own: SamplerSettings, chosen: SamplerSettings, given: Mapping[str, Any]) -> None:
    for rule, names in RULE_SETTINGS.items():
        for name in names & set(given):
            if rule != chosen.guidance_rule and getattr(chosen, name) != getattr(own, name):
                way_out = f"leave it out, or use guidance_rule '{rule}'"
                message = f"guidance_rule '{chosen.guidance_rule}' has no {name}; {way_out}."
                raise InvalidParameter(f"sampler.{name}", message)


def _not_read(name: str, sampler: str, family: Family) -> str:
    released = f": the released {family} code does not use it" if name in USES[sampler] - OF_WAN else ""
    way_out = f"leave it out{or_use(name, family)}"
    if (sampler, name) == ("official", "interval"):
        way_out = "its active_steps are the first and the last step with a zig-zag, counted from 0"
    return f"Sampler '{sampler}' has no {name}{released}; {way_out}."
