"""What a scheduler's config decides, against the schedulers of diffusers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
from diffusers import DDIMScheduler

from sampler import InvalidSetting, NoiseSchedule
from sampler.scheduler_config import CLASSES, RUN, TRAINING
from service.catalog.scheduler_settings import DDIM_SPACING, ScheduleOverrides


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in diffusers
@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"DPMSolverSDEScheduler", "LMSDiscreteScheduler"}))
def test_missing_training_facts_are_those_of_the_class_that_the_config_names(name: str) -> None:
    """All but the two that need packages which are not installed."""
    kind = getattr(diffusers, name)
    defaults = {key: parameter.default for key, parameter in inspect.signature(kind.__init__).parameters.items()}
    ours = NoiseSchedule.from_config({"_class_name": name})
    assert TRAINING | CLASSES[name] == {key: defaults[key] for key in TRAINING}
    assert list(ours.alphas_cumprod) == kind().alphas_cumprod.tolist()


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_rules_of_a_run_are_those_of_a_ddim_made_from_another_scheduler(name: str) -> None:
    """Also from the scheduler's own config, in which the class has filled in its defaults."""
    theirs = getattr(diffusers, name)(beta_schedule="scaled_linear", steps_offset=1)
    converted = DDIMScheduler.from_config(theirs.config)
    ours = NoiseSchedule.from_config(theirs.config)
    assert {key: getattr(ours, key) for key in RUN} == {key: converted.config[key] for key in RUN}
    assert list(ours.alphas_cumprod) == converted.alphas_cumprod.tolist()


def test_defaults_are_written_down_twice_and_equal() -> None:
    """The service knows them without torch."""
    assert DDIM_SPACING.model_dump() == RUN | {"num_train_timesteps": TRAINING["num_train_timesteps"]}
    assert ScheduleOverrides().model_dump(include=set(TRAINING | RUN)) == TRAINING | RUN
    assert {key: DDIMScheduler().config[key] for key in TRAINING | RUN} == TRAINING | RUN


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True is not supported"),
        ({"clip_sample": True}, "use clip_sample=False"),
        ({"thresholding": True}, "use thresholding=False"),
        ({"use_flow_sigmas": True}, "trained by flow matching"),
        ({"variance_type": "learned_range"}, "the network returns a variance as well"),
        ({"prediction_type": "sample"}, "prediction_type='sample' is not supported; use one of 'epsilon'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name='FlowMatchEulerDiscreteScheduler'"),
        ({"_class_name": "EDMEulerScheduler"}, "_class_name='EDMEulerScheduler' is not supported"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' is not supported"),
        ({"beta_start": None}, "beta_start=None must be a finite number"),
        ({"beta_start": "0.1"}, "beta_start='0.1' must be a finite number"),
        ({"timestep_spacing": None}, "timestep_spacing=None is not supported"),
        ({"steps_offset": 0.5}, "steps_offset=0.5 must be a whole number of at least 0"),
        ({"steps_offset": -1}, "steps_offset=-1 must be a whole number of at least 0"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one='no' must be True or False"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must be 1000 numbers"),
        ({"trained_betas": [0.1, 2], "num_train_timesteps": 2}, "trained_betas must be 2 numbers"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        NoiseSchedule.from_config(config)
    assert complaint in str(raised.value)


def test_what_only_other_samplers_read_changes_nothing() -> None:
    others = {"skip_prk_steps": True, "variance_type": "fixed_small", "use_karras_sigmas": True, "clip_sample": False}
    assert NoiseSchedule.from_config(others) == NoiseSchedule.from_config({})
