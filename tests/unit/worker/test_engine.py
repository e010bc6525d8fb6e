import pytest
import torch

from service.jobs import Phase, SamplerSettings
from tests.factories import make_generation
from worker.engine import Engine

STEPS = 4


def test_same_seed_gives_the_same_frames_and_another_seed_others(engine: Engine) -> None:
    first, second, other = (
        engine.generate(make_generation(num_inference_steps=STEPS, seed=seed)).frames for seed in (7, 7, 8)
    )
    assert first.shape == (8, 384, 384, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_progress_is_told_phase_by_phase_and_step_by_step(engine: Engine) -> None:
    told: list[tuple[Phase, int, int]] = []
    clip = engine.generate(make_generation(num_inference_steps=STEPS), lambda *progress: told.append(progress))
    sampling = [(Phase.SAMPLING, i, STEPS) for i in range(STEPS + 1)]
    assert told == [(Phase.ENCODING, 0, STEPS), *sampling, (Phase.DECODING, STEPS, STEPS)]
    assert set(clip.timings) == {Phase.ENCODING, Phase.SAMPLING, Phase.DECODING}
    assert all(seconds > 0 for seconds in clip.timings.values())


def test_raising_in_progress_stops_the_work_at_that_step(engine: Engine) -> None:
    class Enough(Exception):
        pass

    seen: list[int] = []

    def stop_after_two(phase: Phase, step: int, _total: int) -> None:
        seen.append(step)
        if phase is Phase.SAMPLING and step == 2:
            raise Enough

    with pytest.raises(Enough):
        engine.generate(make_generation(num_inference_steps=STEPS), stop_after_two)
    assert seen[-1] == 2


def test_request_decides_the_plan(engine: Engine) -> None:
    plain = engine.plan(make_generation(sampler=SamplerSettings(name="ddim")))
    mixed = engine.plan(make_generation(sampler=SamplerSettings(interval=(0.5, 1.0), combination="VI-VI")))
    assert plain.calls == {"image": 0, "video": 20}
    # ten active steps but the last, which has no room for a zig-zag
    assert mixed.calls == {"image": 18, "video": 38}
    assert [m.model for m in mixed.steps[12]] == ["video", "image", "video", "image", "video"]
    assert mixed.steps[12][-1].guidance == 4.0


def test_every_sampler_setting_that_the_api_accepts_can_be_planned(engine: Engine) -> None:
    letters = ("I", "V", "II", "IV", "VI", "VV")
    for goback in letters:
        for denoise in letters:
            if len(goback) == len(denoise):
                sampler = SamplerSettings(combination=f"{goback}-{denoise}", order="goback_first")
                assert len(engine.plan(make_generation(sampler=sampler))) == 20


def test_prompt_decides_the_video(engine: Engine) -> None:
    red, blue = (
        engine.generate(make_generation(guidance_scale=3, prompt=f"a {color} circle moving left on a black background"))
        for color in ("red", "blue")
    )
    middle = [clip.frames[:, 96:288, 96:288].float().mean((0, 1, 2)) for clip in (red, blue)]
    assert middle[0][0] > middle[1][0] + 10  # more red in one
    assert middle[1][2] > middle[0][2] + 10  # more blue in the other


def test_text_that_the_encoder_cannot_read_whole_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, the text encoder reads 16"):
        engine.models.encode("a red circle " * 10)


def test_words_that_differ_are_read_differently(engine: Engine) -> None:
    """A text encoder that lets "left" and "right" collapse cannot steer motion."""

    def distance(a: str, b: str) -> float:
        return (engine.models.encode(a).video - engine.models.encode(b).video).norm().item()

    assert distance("left", "right") > 0.2 * distance("red", "blue")
