"""When a preview is made, what it may cost, and how large it is."""

from __future__ import annotations

import io
import logging
import multiprocessing
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from service.jobs.model import Phase
from worker.child.job import ParentChannel
from worker.child.previews import LONGEST_SIDE, MOST_BYTES, SHARE, Preview, Previews, webp
from worker.messages import Progress


@dataclass
class Sampling:
    """A run whose clock only steps and previews advance."""

    step_s: float
    cost_s: float
    waits: int = 0  # how often a new preview is not ready
    now: float = 0.0
    made_at: list[float] = field(default_factory=list[float])
    taken: list[bytes] = field(default_factory=list[bytes])
    spent: float = 0.0

    @property
    def is_ready(self) -> bool:
        self.waits -= 1
        return self.waits < 0

    def encode(self) -> bytes:
        self.now += self.cost_s
        self.spent += self.cost_s
        return b"%d" % len(self.made_at)

    def make(self) -> Preview:
        self.made_at.append(self.now)
        return self

    def run(self, previews: Previews, steps: int) -> None:
        previews.begin()
        for _ in range(steps):
            self.now += self.step_s
            previews.offer(self.make)
            if (preview := previews.take()) is not None:
                self.taken.append(preview)
                assert self.spent <= SHARE * self.now or len(self.made_at) == 1


def test_the_first_preview_comes_at_once_and_others_at_the_interval() -> None:
    run = Sampling(step_s=0.5, cost_s=0.001)
    run.run(Previews(2, clock=lambda: run.now), 40)
    assert [round(second, 1) for second in run.made_at] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5, 16.5, 18.5]
    assert run.taken == [b"%d" % n for n in range(1, 11)]


@pytest.mark.parametrize(("expected_s", "first_at"), [(0.5, 25), (0.0, 1)], ids=["known", "unknown"])
def test_dear_previews_stay_within_their_share_of_the_sampling_time(expected_s: float, first_at: float) -> None:
    """The first one is made at once only if its cost is not known; the others then wait until there is time for it."""
    run = Sampling(step_s=1, cost_s=0.5)
    run.run(Previews(2, expected_s, clock=lambda: run.now), 200)
    assert run.made_at[0] == first_at
    assert 2 <= len(run.made_at) <= 8
    assert run.spent <= SHARE * run.now


def test_a_preview_that_is_not_ready_is_finished_at_a_later_step() -> None:
    run = Sampling(step_s=1, cost_s=0.001, waits=3)
    run.run(Previews(1, clock=lambda: run.now), 5)
    assert run.made_at[0] == 1
    assert len(run.made_at) == 2, "the second one waited for the first, which needed four steps"
    assert run.taken == [b"1", b"2"]


def test_previews_can_be_off() -> None:
    run = Sampling(step_s=1, cost_s=0)
    run.run(Previews(0, clock=lambda: run.now), 20)
    assert not run.made_at


def test_a_failure_ends_the_previews_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Preview:
        raise RuntimeError("no room")

    previews = Previews(0.001)
    previews.begin()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            previews._last = -1e9
            previews.offer(fails)
    assert previews.take() is None
    assert [record.message for record in caplog.records] == ["this video has no more previews"]


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    assert len(data) <= MOST_BYTES
    return Image.open(io.BytesIO(data))


def test_frames_become_an_animation_at_the_speed_of_the_video() -> None:
    frames = np.zeros((4, 40, 64, 3), np.uint8)
    for i in range(4):
        frames[i, :, 16 * i : 16 * i + 16] = (255, 0, 0)
    picture = opened(webp(frames, 250))
    assert (picture.format, picture.n_frames, picture.size) == ("WEBP", 4, (64, 40))
    for i in range(4):
        picture.seek(i)
        picture.load()
        assert picture.info["duration"] == 250
        red = np.asarray(picture.convert("RGB"))[..., 0].mean(0)
        assert red.argmax() // 16 == i


@pytest.mark.parametrize("shape", [(4, 512, 320), (1, 1000, 8), (8, 64, 64)])
def test_even_noise_is_small(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert max(opened(webp(noise, 125)).size) <= LONGEST_SIDE


def test_previews_wait_until_the_parent_has_read_the_last_report() -> None:
    """It may be waiting for Redis, and a full pipe would stop the sampling."""
    ours, theirs = multiprocessing.Pipe()
    with ours:
        parent = ParentChannel(theirs)
        assert parent.is_read
        parent.send(Progress(Phase.SAMPLING, 1, 2, b"x" * MOST_BYTES))
        assert not parent.is_read
        ours.recv()
        assert parent.is_read
        parent.close()
