from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.sampler_settings import USES
from tests.doc_examples import DOCS
from tests.factories import PROMPT, make_request

DEMO = ModelRegistry.load().get("demo")
ANIMATEDIFF = ModelRegistry.load().entry("animatediff")


def refused(**request: object) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as raised:
        DEMO.resolve(make_request(**request))
    return raised.value


def test_a_bare_prompt_gets_the_models_defaults() -> None:
    made = DEMO.resolve(make_request())
    assert (made.model, made.prompt, made.negative_prompt) == ("demo", PROMPT, "low quality")
    assert (made.width, made.height, made.num_frames, made.fps, made.num_inference_steps) == (384, 384, 8, 8, 16)
    assert made.sampler == DEMO.sampler


def test_a_seed_is_chosen_when_none_is_given_and_kept_when_one_is() -> None:
    assert DEMO.resolve(make_request()).seed != DEMO.resolve(make_request()).seed
    assert DEMO.resolve(make_request(seed=2**63 - 1)).seed == 2**63 - 1


def test_what_is_given_wins_over_the_defaults() -> None:
    made = DEMO.resolve(make_request(num_inference_steps=3, guidance_scale=0, fps=4, negative_prompt="", seconds="2"))
    assert (made.num_inference_steps, made.guidance_scale, made.fps, made.negative_prompt) == (3, 0, 4, "")
    assert made.seconds == 2


@given(fps=st.integers(1, 24))
def test_the_seconds_we_show_can_be_sent_back(fps: int) -> None:
    shown = f"{DEMO.resolve(make_request(fps=fps)).seconds:g}"
    assert DEMO.resolve(make_request(fps=fps, seconds=shown)).num_frames == 8
    assert DEMO.resolve(make_request(fps=fps, seconds=shown, num_frames=8)).num_frames == 8


def test_sampler_changes_leave_the_other_settings_as_they_are() -> None:
    made = DEMO.resolve(make_request(sampler={"combination": "II-VV"})).sampler
    assert made == DEMO.sampler.model_copy(update={"combination": "II-VV"})


def test_unknown_words_are_named_and_the_error_lists_what_can_be_drawn() -> None:
    error = refused(prompt="a red dog, moving LEFT with a hat!")
    assert (error.param, error.reason) == ("prompt", "invalid_value")
    assert "'dog', 'hat', 'with'" in error.message
    assert DEMO.can_draw is not None
    assert DEMO.can_draw in error.message


@pytest.mark.parametrize("prompt", ["a red кот", "a red circle 7", "a red 🐕", "a_red circle"])
def test_words_of_other_alphabets_count_as_words(prompt: str) -> None:
    assert "does not know" in refused(prompt=prompt).message


@pytest.mark.parametrize("prompt", ["A Red CIRCLE", "a red circle, moving left.", "red-circle", "a\nred\tcircle"])
def test_case_and_punctuation_do_not_matter(prompt: str) -> None:
    assert DEMO.resolve(make_request(prompt=prompt)).prompt == prompt


def test_the_negative_prompt_is_held_to_the_same_words() -> None:
    assert refused(negative_prompt="low quality, ugly").param == "negative_prompt"


@pytest.mark.parametrize("prompt", [" ", "...", "\n"])
def test_a_prompt_without_words_is_refused(prompt: str) -> None:
    error = refused(prompt=prompt)
    assert error.param == "prompt"
    assert "empty" in error.message
    assert "circle" in error.message


def test_a_long_prompt_is_refused_with_its_length_and_the_limit() -> None:
    error = refused(prompt="a " * 150)
    assert error.reason == "string_above_max_length"
    assert "300" in error.message
    assert "200" in error.message


@pytest.mark.parametrize(
    ("request_", "param", "way_out"),
    [
        ({"size": "720x1280"}, "size", "384x384"),
        ({"width": 512, "height": 512}, "width", "384x384"),
        ({"width": 384}, "height", "must be sent together"),
        ({"size": "384x384", "width": 512, "height": 384}, "width", "384x384"),
        ({"num_frames": 9}, "num_frames", "8..8"),
        ({"fps": 25}, "fps", "1..24"),
        ({"num_inference_steps": 201}, "num_inference_steps", "1..200"),
        ({"guidance_scale": 20.5}, "guidance_scale", "0..20"),
        ({"guidance_scale": -1}, "guidance_scale", "0..20"),
        ({"seconds": "4"}, "seconds", "at 8 fps: '1'."),
        ({"seconds": 0.9}, "seconds", "at 8 fps: '1'."),
        ({"seconds": 2, "num_frames": 8}, "seconds", "leave one out"),
        ({"sampler": {"rho": -1}}, "sampler.rho", "greater than 0"),
        ({"sampler": {"rhoo": 1}}, "sampler.rhoo", "Unknown parameter"),
        ({"sampler": {"interval": [0.1]}}, "sampler.interval.1", "Missing"),
    ],
    ids=str,
)
def test_a_refusal_names_the_parameter_and_the_way_out(request_: dict[str, object], param: str, way_out: str) -> None:
    error = refused(**request_)
    assert error.param == param
    assert way_out in error.message


@given(steps=st.integers(1, 200), guidance=st.floats(0, 20), fps=st.integers(1, 24), seed=st.integers(0, 2**63 - 1))
def test_everything_within_the_bounds_is_taken_as_it_is(steps: int, guidance: float, fps: int, seed: int) -> None:
    made = DEMO.resolve(make_request(num_inference_steps=steps, guidance_scale=guidance, fps=fps, seed=seed))
    assert (made.num_inference_steps, made.guidance_scale, made.fps, made.seed) == (steps, guidance, fps, seed)
    assert made.num_frames == 8


def test_the_example_of_the_help_text_is_a_prompt_the_model_takes() -> None:
    assert DEMO.can_draw is not None
    example = DEMO.can_draw.split("'")[1]
    assert DEMO.resolve(make_request(prompt=example)).prompt == example


@pytest.mark.parametrize("name", sorted(set(USES) - {"iv-mixed"}))
def test_setting_of_another_sampler_is_refused_unless_it_says_what_the_model_says(name: str) -> None:
    error = refused(sampler={"name": name, "combination": "II-VV"})
    assert error.param == "sampler.combination"
    assert f"Sampler '{name}' has no combination; leave it out, or use iv-mixed." in error.message
    same = DEMO.resolve(make_request(sampler={"name": name, "combination": DEMO.sampler.combination, "rho": None}))
    assert (same.sampler.name, same.sampler.combination) == (name, DEMO.sampler.combination)


@pytest.mark.parametrize("name", sorted(set(USES) - {"ddim"}))
def test_network_is_a_setting_of_ddim_only(name: str) -> None:
    error = refused(sampler={"name": name, "network": "image"})
    assert (error.param, error.message) == (
        "sampler.network",
        f"Sampler '{name}' has no network; leave it out, or use ddim.",
    )
    error = refused(sampler={"name": "ddim", "network": "audio"})
    assert error.param == "sampler.network"
    assert "'image' or 'video'" in error.message


def test_image_network_by_itself_has_its_own_default_guidance() -> None:
    image = {"name": "ddim", "network": "image"}
    own = DEMO.image_guidance_scale
    assert own not in (None, DEMO.guidance_scale.default)
    assert DEMO.resolve(make_request(sampler=image)).guidance_scale == own
    assert DEMO.resolve(make_request(sampler=image, guidance_scale=3)).guidance_scale == 3
    for other in ({"name": "ddim"}, {"name": "ddim", "network": "video"}, {}):
        assert DEMO.resolve(make_request(sampler=other)).guidance_scale == DEMO.guidance_scale.default
    made = ANIMATEDIFF.resolve(make_request(model="animatediff", sampler=image))
    assert made.guidance_scale == ANIMATEDIFF.guidance_scale.default


def test_default_guidance_of_the_image_network_is_within_the_limits() -> None:
    with pytest.raises(ValidationError, match=r"image_guidance_scale=21 is outside guidance_scale, 0\.\.20"):
        ModelEntry.model_validate(DEMO.model_dump() | {"image_guidance_scale": 21})


@pytest.mark.parametrize("name", sorted(USES))
def test_sampler_that_was_returned_can_be_sent_back(name: str) -> None:
    returned = DEMO.resolve(make_request(sampler={"name": name})).sampler
    assert DEMO.resolve(make_request(sampler=returned.model_dump())).sampler == returned


FREEINIT = {"name": "freeinit", "iterations": 10}


@pytest.mark.parametrize(
    ("request_", "max_cost", "param"),
    [
        ({"num_inference_steps": 250}, 2.2e9, "num_inference_steps"),
        ({"num_inference_steps": 150, "num_frames": 24}, 2.2e9, "num_inference_steps"),
        ({"num_frames": 24, "sampler": FREEINIT}, 2.1e9, "num_frames"),
        ({"sampler": FREEINIT}, 2.0e9, "size"),
        ({"sampler": FREEINIT}, 1.1e9, "sampler"),
        ({"num_inference_steps": 250, "num_frames": 24}, 1e3, "num_inference_steps"),
    ],
    ids=str,
)
def test_clip_that_costs_too_much_is_refused_with_what_would_help(
    request_: dict[str, object], max_cost: float, param: str
) -> None:
    """The parameter named is one that alone would be enough at the model's default, if there is one."""
    with pytest.raises(InvalidParameter, match=r"costs .* takes at most .* Ask for fewer") as raised:
        ANIMATEDIFF.model_copy(update={"max_cost": max_cost}).resolve(make_request(**request_))
    assert raised.value.param == param


def test_the_demo_takes_200_steps_of_iv_iv_and_not_ten_times_as_much() -> None:
    most = {"num_inference_steps": 200, "sampler": {"combination": "IV-IV", "interval": [0, 1]}}
    assert DEMO.resolve(make_request(**most)).cost <= (DEMO.max_cost or 0)
    error = refused(num_inference_steps=200, sampler={"name": "freeinit", "iterations": 10})
    assert error.param == "num_inference_steps"


def test_cost_is_network_calls_times_pixels_times_frames() -> None:
    made = ANIMATEDIFF.resolve(make_request(num_inference_steps=10, size="640x384", num_frames=8))
    assert made.cost == sum(made.network_calls.values()) * 640 * 384 * 8
    assert made.network_calls == {"image": 17, "video": 26}  # linspace: the last step and one turn cost nothing


@given(words=st.integers(60, 90))
def test_prompt_that_cannot_fit_the_text_encoder_is_refused_before_it_waits(words: int) -> None:
    """Every word is one token or more; what is longer still is found by the worker."""
    prompt = "circle " * words
    if words <= 75:
        assert ANIMATEDIFF.resolve(make_request(prompt=prompt)).prompt == prompt
        return
    with pytest.raises(InvalidParameter) as raised:
        ANIMATEDIFF.resolve(make_request(prompt=prompt))
    assert (raised.value.param, raised.value.reason) == ("prompt", "string_above_max_length")
    assert f"at least {words + 2} tokens" in raised.value.message


def test_documentation_lists_the_switches_of_the_networks_with_their_defaults() -> None:
    section = (DOCS / "models.md").read_text().partition("| switch | default |")[2].partition("\n\n")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))
    words: dict[object, object] = {True: "on", False: "off"}
    assert listed == {name: words.get(value, value) for name, value in Optimise().model_dump().items()}
