"""What sampler `official` takes, refuses and costs, by the family of the model."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.model import Generation
from tests.factories import make_generation, make_request

REGISTRY = ModelRegistry.load()
MODELS = {name: REGISTRY.entry(name) for name in ("animatediff", "modelscope", "videocrafter2")}


def resolve(model: ModelEntry, request: dict[str, Any] | None = None, **sampler: Any) -> Generation:
    return model.resolve(make_request(**(request or {}), sampler={"name": "official", **sampler}))


def changed(model: ModelEntry, **fields: Any) -> ModelEntry:
    return ModelEntry.model_validate(model.model_dump() | fields)


@pytest.mark.parametrize(
    ("name", "active_steps", "zz", "guidance", "calls"),
    [
        ("animatediff", (0, 49), 1000, 7.5, {"image": 96, "video": 147}),
        ("modelscope", (0, 49), None, 7.5, {"image": 97, "video": 146}),
        ("videocrafter2", (0, 60), 3, 9, {"image": 67, "video": 181}),
    ],
)
def test_request_with_nothing_but_the_name_has_the_settings_of_the_released_file(
    name: str, active_steps: tuple[int, int], zz: int | None, guidance: float, calls: dict[str, int]
) -> None:
    made = resolve(MODELS[name])
    assert (made.sampler.active_steps, made.sampler.zz, made.official_family) == (active_steps, zz, MODELS[name].family)
    assert (made.sampler.image_guidance, made.sampler.video_guidance, made.sampler.rho) == ((4, 4), (4, 4), 7)
    assert (made.num_inference_steps, made.guidance_scale, made.negative_prompt) == (50, guidance, "")
    assert made.network_calls == calls
    assert made.total_steps == 50


def test_settings_of_the_models_own_sampler_are_not_taken_over() -> None:
    demo = REGISTRY.get("demo")
    assert demo.sampler.image_guidance == (0.5, 0.5)
    made = resolve(demo)
    assert (made.sampler.image_guidance, made.sampler.video_guidance) == ((4, 4), (4, 4))
    assert (made.num_inference_steps, made.guidance_scale) == (16, 2.25), "as with every sampler"


def test_negative_prompt_of_a_request_is_kept() -> None:
    assert resolve(MODELS["animatediff"], {"negative_prompt": "blurred"}).negative_prompt == "blurred"


@pytest.mark.parametrize(
    ("name", "sampler", "refused", "way_out"),
    [
        ("modelscope", {"zz": 3}, "zz", "has no zz: the released modelscope code does not use it; leave it out."),
        ("modelscope", {"image_guidance": [6, 2]}, "image_guidance", "modelscope code .* or use iv-mixed, fused\\."),
        ("videocrafter2", {"video_guidance": [4, 5]}, "video_guidance", "the released videocrafter code does not use"),
        ("videocrafter2", {"rho": 3}, "rho", "the released videocrafter code does not use it"),
        ("animatediff", {"interval": [0, 0.5]}, "interval", "active_steps are the first and the last step"),
        ("animatediff", {"order": "goback_first"}, "order", "has no order; leave it out, or use iv-mixed\\."),
        ("animatediff", {"image_every": 2}, "image_every", "has no image_every; leave it out, or use iv-mixed"),
        ("modelscope", {"name": "ddim", "zz": 3}, "zz", "'ddim' has no zz; leave it out\\."),
        ("modelscope", {"name": "iv-mixed", "active_steps": [0, 9]}, "active_steps", "leave it out, or use official"),
    ],
)
def test_setting_that_a_familys_released_file_does_not_use_is_refused(
    name: str, sampler: dict[str, Any], refused: str, way_out: str
) -> None:
    with pytest.raises(InvalidParameter, match=way_out) as raised:
        resolve(MODELS[name], **sampler)
    assert raised.value.param == f"sampler.{refused}"


def test_family_without_released_code_is_refused_by_name() -> None:
    with pytest.raises(InvalidParameter, match="released no code for family animatediff-sdxl; use iv-mixed") as raised:
        resolve(REGISTRY.entry("animatediff-sdxl"))
    assert raised.value.param == "sampler.name"


@pytest.mark.parametrize("name", MODELS)
def test_settings_that_were_returned_can_be_sent_back(name: str) -> None:
    returned = resolve(MODELS[name], active_steps=[3, 30]).sampler
    assert returned.active_steps == (3, 30)
    assert resolve(MODELS[name], **returned.model_dump(mode="json")).sampler == returned


def test_guidance_of_the_zigzag_can_change_along_animatediffs_run() -> None:
    made = resolve(MODELS["animatediff"], image_guidance=[6, 2], video_guidance=[2, 6], rho=0.2, zz=2)
    assert (made.sampler.image_guidance, made.sampler.video_guidance) == ((6, 2), (2, 6))
    assert (made.sampler.rho, made.sampler.zz) == (0.2, 2)


@pytest.mark.parametrize(("name", "most"), [("animatediff", 1000), ("modelscope", 1000), ("videocrafter2", 999)])
def test_videocrafters_solver_takes_one_step_less_than_there_are_timesteps(name: str, most: int) -> None:
    model = changed(MODELS[name], num_inference_steps={"default": 50, "min": 1, "max": 1000}, max_cost=None)
    assert resolve(model, {"num_inference_steps": most}).num_inference_steps == most
    if most == 999:
        with pytest.raises(InvalidParameter, match=r"num_inference_steps=1000.*videocrafter code takes at most 999"):
            resolve(model, {"num_inference_steps": 1000})
        assert model.resolve(make_request(num_inference_steps=1000)).num_inference_steps == 1000


def test_cost_counts_the_calls_of_the_released_code() -> None:
    model = MODELS["videocrafter2"]
    made = resolve(model)
    assert made.cost == 248 * 512 * 320 * 16
    with pytest.raises(InvalidParameter, match="takes at most"):
        resolve(changed(model, max_cost=made.cost - 1))


def test_released_code_may_be_a_models_default_with_its_own_settings() -> None:
    model = changed(MODELS["videocrafter2"], sampler={"name": "official", "zz": 5})
    assert model.default_generation.sampler.model_dump(include={"zz", "active_steps"}) == {
        "zz": 5,
        "active_steps": (0, 60),
    }
    assert resolve(model).sampler.zz == 5
    assert resolve(model, zz=2).sampler.zz == 2
    assert model.resolve(make_request(sampler={"name": "iv-mixed"})).official_family is None


def test_records_of_other_samplers_have_none_of_its_fields() -> None:
    """Workers of older versions refuse unknown fields, and fingerprints of older checkpoints hash the record."""
    new = {"official_family", "active_steps", "zz"}
    for sampler in ("iv-mixed", "ddim", "zigzag", "freeinit", "fused"):
        stored = make_generation(sampler={"name": sampler}).model_dump()
        assert not new & (stored.keys() | stored["sampler"].keys())
    stored = resolve(MODELS["videocrafter2"]).model_dump_json()
    assert all(name in stored for name in new)
    assert Generation.model_validate_json(stored).network_calls == {"image": 67, "video": 181}
    with pytest.raises(ValidationError):
        make_generation(official_family="sora")
