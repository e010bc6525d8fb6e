"""Comparisons of samplers: which lists are accepted, and what the video shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidParameter
from service.jobs.sampler_settings import USES, SamplerSettings
from worker.child.mp4 import Frames, read_mp4
from worker.compare import SAMPLERS, TITLES, ComparedClip, compared_samplers, write_comparison


def test_every_sampler_of_the_api_and_the_image_network_can_be_compared() -> None:
    assert set(SAMPLERS) == {*USES, "ddim-image"} == set(TITLES)
    chosen = {name: SamplerSettings.model_validate(settings) for name, settings in SAMPLERS.items()}
    assert {name: settings.name for name, settings in chosen.items() if name != "ddim-image"} == {n: n for n in USES}
    assert (chosen["ddim"].network, chosen["ddim-image"].network) == ("video", "image")


def test_samplers_keep_their_order_and_get_the_settings_that_they_use() -> None:
    compared = compared_samplers(" zigzag, ddim-image,iv-mixed", {"rho": 3.0, "interval": (0.5, 1.0)})
    assert list(compared) == ["zigzag", "ddim-image", "iv-mixed"]
    assert compared["zigzag"] == {"name": "zigzag", "interval": (0.5, 1.0)}
    assert compared["ddim-image"] == {"name": "ddim", "network": "image"}
    assert compared["iv-mixed"] == {"name": "iv-mixed", "interval": (0.5, 1.0), "rho": 3.0}


@pytest.mark.parametrize(
    ("text", "settings", "param", "complaint"),
    [
        ("ddim,euler", {}, "compare", "unknown sampler 'euler'; use two or more of ddim, ddim-image, evs, freeinit"),
        ("ddim,", {}, "compare", "unknown sampler ''"),
        ("", {}, "compare", "unknown sampler ''"),
        ("ddim iv-mixed", {}, "compare", "unknown sampler 'ddim iv-mixed'"),
        ("DDIM,iv-mixed", {}, "compare", "unknown sampler 'DDIM'"),
        ("ddim", {}, "compare", "'ddim' is one sampler; name two or more"),
        ("ddim,iv-mixed,ddim", {}, "compare", "'ddim' is named more than once"),
        (
            "ddim,ddim-image",
            {"rho": 3},
            "rho",
            "none of ddim, ddim-image has rho; leave it out, or add iv-mixed, fused, official.",
        ),
        ("ddim,iv-mixed", {"network": "image"}, "network", "leave out --network"),
    ],
    ids=str,
)
def test_other_lists_are_refused_with_the_way_out(
    text: str, settings: dict[str, object], param: str, complaint: str
) -> None:
    with pytest.raises(InvalidParameter) as raised:
        compared_samplers(text, settings)
    assert raised.value.param == param
    assert complaint in raised.value.message


def test_released_code_gets_the_settings_that_it_has_for_the_models_family() -> None:
    given = {"zz": 2, "rho": 3.0}
    animatediff = compared_samplers("fused,official", given)
    videocrafter = compared_samplers("fused,official", given, "videocrafter")
    assert animatediff["official"] == {"name": "official", "zz": 2, "rho": 3.0}
    assert videocrafter == {"fused": {"name": "fused", "rho": 3.0}, "official": {"name": "official", "zz": 2}}
    with pytest.raises(InvalidParameter, match=r"none of fused, official has zz; leave it out\.$"):
        compared_samplers("fused,official", given, "modelscope")


@pytest.mark.parametrize(
    ("calls", "cost"),
    [
        ({"image": 20, "video": 36}, "20 image + 36 video calls, 2.5 s"),
        ({"image": 16, "video": 0}, "16 image calls, 2.5 s"),
        ({"image": 0, "video": 1}, "1 video call, 2.5 s"),
    ],
    ids=str,
)
def test_cost_names_only_networks_that_are_called(calls: dict[str, int], cost: str) -> None:
    assert ComparedClip("ddim", np.zeros((1, 2, 2, 3), np.uint8), calls, 2.46).cost == cost


def plain(value: int) -> Frames:
    return np.full((4, 96, 192, 3), value, np.uint8)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_video_has_every_arm_between_its_title_and_its_cost(tmp_path: Path, count: int) -> None:
    names = list(SAMPLERS)[:count]
    arms = [ComparedClip(name, plain(60 + 30 * i), {"image": 5, "video": 7}, 1.0) for i, name in enumerate(names)]
    write_comparison(arms, tmp_path / "out.mp4", fps=4)
    frames = read_mp4(tmp_path / "out.mp4").astype(int)
    assert frames.shape == (4, 176, 192 * count, 3)
    for i in range(count):
        column = frames[:, :, 192 * i : 192 * (i + 1)]
        assert abs(column[:, 50:126, 10:-10] - (60 + 30 * i)).max() < 8
        assert column[:, :40].max() > 150, "a title"
        assert column[:, 136:].max() > 150, "its cost"
