from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ConfigurationError, InvalidParameter, ModelNotFound
from service.models import ModelEntry, ModelRegistry
from service.settings import DEMO_MODEL
from tests.factories import PROMPT, make_request

DEMO = ModelEntry.load(DEMO_MODEL)


def refused(**request: object) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as raised:
        DEMO.resolve(make_request(**request))
    return raised.value


def write_model(folder: Path, text: str) -> Path:
    file = folder / "model.toml"
    file.write_text(text)
    return file


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


def test_unknown_words_are_named_and_the_model_tells_what_it_can_draw() -> None:
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
        ({"width": 384}, "height", "go together"),
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


def test_the_weights_lie_beside_the_model_file() -> None:
    assert DEMO.path == DEMO_MODEL.parent / "weights"


def test_the_example_of_the_help_text_is_a_prompt_the_model_takes() -> None:
    assert DEMO.can_draw is not None
    example = DEMO.can_draw.split("'")[1]
    assert DEMO.resolve(make_request(prompt=example)).prompt == example


def test_the_first_model_is_the_default(tmp_path: Path) -> None:
    second = write_model(tmp_path, DEMO_MODEL.read_text().replace('id = "demo"', 'id = "other"'))
    registry = ModelRegistry.load([second, DEMO_MODEL])
    assert registry.ids() == ("other", "demo")
    assert registry.get(None).id == "other"
    assert registry.get("demo").id == "demo"


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match=r"'sora-2'.*demo"):
        ModelRegistry([DEMO]).get("sora-2")


def test_two_models_of_one_name_stop_the_start() -> None:
    with pytest.raises(ConfigurationError, match="'demo'"):
        ModelRegistry([DEMO, DEMO])


@pytest.mark.parametrize(("right", "wrong"), [("max = 200", "max = 10"), ('"384x384"', '"384"')], ids=["range", "size"])
def test_a_model_file_that_contradicts_itself_stops_the_start(tmp_path: Path, right: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.toml"):
        ModelEntry.load(write_model(tmp_path, DEMO_MODEL.read_text().replace(right, wrong)))


@pytest.mark.parametrize("text", ['id = "x"', "id = ", 'path = "w"\nid = "x"'], ids=["no path", "no toml", "no sizes"])
def test_a_broken_model_file_stops_the_start_and_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.toml"):
        ModelEntry.load(write_model(tmp_path, text))


def test_a_missing_model_file_stops_the_start_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        ModelEntry.load(tmp_path / "nowhere.toml")
