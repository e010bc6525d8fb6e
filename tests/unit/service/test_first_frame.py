"""What a reference is used for, where a model can keep a first frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.reference import Reference
from service.jobs.request import VideoRequest

KNOWN = ModelRegistry.load().known
CONTROLLED, PLAIN, SDXL = (KNOWN[f"animatediff{end}"] for end in ("-sparsectrl", "", "-sdxl"))
IMAGE_ALONE = {"name": "ddim", "network": "image"}


def reference(entry: ModelEntry, media_type: str = "image/png", **fields: Any) -> Reference:
    file = {"sha256": "0" * 64, "media_type": media_type, "num_frames": 1, "width": 8, "height": 8}
    found = entry.resolve(VideoRequest.model_validate({"prompt": "a", "input_reference": file, **fields})).reference
    assert found is not None
    return found


@pytest.mark.parametrize("sampler", ["ddim", "iv-mixed", "zigzag", "fused", "freeinit"])
def test_a_model_with_sparsectrl_keeps_a_picture_with_every_sampler_that_calls_its_video_model(sampler: str) -> None:
    found = reference(CONTROLLED, sampler={"name": sampler}, conditioning_scale=0.5)
    assert (found.use, found.conditioning_scale) == ("first_frame", 0.5)


def test_of_a_clip_of_any_length_the_first_frame_is_kept_if_asked_for() -> None:
    assert reference(CONTROLLED, "video/mp4", reference_use="first_frame").use == "first_frame"
    with pytest.raises(InvalidParameter, match="num_frames=16 is more than the 1 of the clip"):
        reference(CONTROLLED, "video/mp4")  # it starts there


def test_others_start_at_it() -> None:
    assert reference(PLAIN).use == "start"
    assert reference(CONTROLLED, reference_use="start", strength=0.5).strength == 0.5
    assert reference(CONTROLLED, sampler=IMAGE_ALONE).use == "start"


@pytest.mark.parametrize(
    ("entry", "fields", "param", "said"),
    [
        (PLAIN, {}, "reference_use", "'animatediff' has no SparseCtrl network .*; use reference_use=start, or a model"),
        (SDXL, {}, "reference_use", "'animatediff-sdxl' has no SparseCtrl network"),
        (CONTROLLED, {"sampler": IMAGE_ALONE}, "reference_use", "does not call the video model; use .*=start, or netw"),
        (CONTROLLED, {"sampler": {"name": "official"}}, "input_reference", "'official' takes no input_reference"),
        (CONTROLLED, {"strength": 0.5}, "strength", "belongs to reference_use=start; leave it out, or use start"),
    ],
)
def test_what_cannot_keep_a_first_frame(entry: ModelEntry, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said) as raised:
        reference(entry, reference_use="first_frame", **fields)
    assert raised.value.param == param


def test_a_folder_with_the_network_has_it(tmp_path: Path) -> None:
    entry = PLAIN.model_copy(update={"path": tmp_path})
    assert not entry.has_sparse_control
    (tmp_path / "sparse_control").mkdir()
    assert entry.has_sparse_control
