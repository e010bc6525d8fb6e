"""LoRAs of a request: every spelling is read, the model's defaults apply, and what it does not offer is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.api.routes.create_video import _fingerprint
from service.api.schemas import Model
from service.api.video_request_parser import parse, parse_brackets
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation
from tests.factories import PROMPT, make_generation
from tests.unit.service.test_adapter_entries import registry
from worker.adding.adapters import named_lora

TABLES = """
[[models.m.selectable_loras]]
name = "ink"
file = "hub/styles/ink.safetensors"
scale = 0.8
on = ["video", "image"]
description = "Ink drawings"
trigger_words = ["inked"]
[[models.m.selectable_loras]]
name = "zoom"
file = "hub/zoom.safetensors"
on = ["video"]
"""
INK = LoraUse(name="ink", scale=0.5, networks=("image", "video"))


@pytest.fixture
def entry(tmp_path: Path) -> ModelEntry:
    return registry(tmp_path, TABLES).known["m"]


def chosen(entry: ModelEntry, body: dict[str, Any]) -> tuple[LoraUse, ...]:
    return entry.resolve(parse({"prompt": PROMPT} | body)).loras


def form(*items: tuple[str, str]) -> dict[str, Any]:
    return parse_brackets(items)


@pytest.mark.parametrize(
    "body",
    [
        {"loras": [{"name": "ink", "scale": 0.5}]},
        {"loras": [{"name": "ink", "scale": "0.5", "networks": ["video", "image", "video"][:2]}]},
        {"loras": ["ink:0.5"]},
        {"loras": "ink:0.5"},
        {"loras": '[{"name": "ink", "scale": 0.5}]'},
        {"loras": {"name": "ink", "lora_scale": 0.5}},
        {"lora": {"name": "ink", "scale": 0.5, "int_id": 3}},
        {"lora": "ink:0.5"},
        {"loras": [{"model_name": "ink", "strength": 0.5}]},
        {"extra_body": {"loras": [{"name": "ink", "weight": 0.5}]}},
        form(("loras[0][name]", "ink"), ("loras[0][scale]", "0.5"), ("loras[0][networks]", "image,video")),
        form(("loras[][name]", "ink"), ("loras[][scale]", "0.5")),
        form(("loras[]", "ink:0.5")),
        form(("extra_body[loras][0][name]", "ink"), ("extra_body[loras][0][scale]", "0.5")),
    ],
    ids=str,
)
def test_every_spelling_of_a_lora_means_the_same(entry: ModelEntry, body: dict[str, Any]) -> None:
    assert chosen(entry, body) == (INK,)


def test_defaults_are_those_of_the_entry_and_the_order_is_kept(entry: ModelEntry) -> None:
    zoom = LoraUse(name="zoom", scale=1.0, networks=("video",))
    assert chosen(entry, {"loras": ["zoom", "ink::image"]}) == (
        zoom,
        LoraUse(name="ink", scale=0.8, networks=("image",)),
    )
    items = [(f"loras[{i}][name]", name) for i, name in ((10, "ink"), (9, "zoom"))]
    assert [lora.name for lora in chosen(entry, form(*items))] == ["zoom", "ink"]
    assert [chosen(entry, {"loras": none}) for none in ([], "", None)] == [(), (), ()]


@pytest.mark.parametrize(
    ("loras", "param", "complaint"),
    [
        (["inc"], "loras.0.name", "Model 'm' has no LoRA 'inc'; did you mean 'ink'?"),
        (["ink", "water"], "loras.1.name", "Model 'm' has no LoRA 'water'; it has ink, zoom."),
        (["ink", "ink:0.2"], "loras", "it names 'ink' twice"),
        (
            ["zoom::image"],
            "loras.0.networks",
            "LoRA 'zoom' of model 'm' is not for the image network; it is for video.",
        ),
        (["ink:80"], "loras.0.scale", "must be at most 10"),
        (["ink:-11"], "loras.0.scale", "must be at least -10"),
        (["ink:much"], "loras.0.scale", "must be a number"),
        (["ink:1:vae"], "loras.0.networks.0", "'vae' is not possible"),
        ([{"name": "ink", "scale": float("nan")}], "loras.0.scale", "finite"),
        ([{"scale": 1}], "loras.0.name", "Missing required parameter"),
        ([{"name": "ink", "networks": []}], "loras.0.networks", "at least 1 entry"),
        ([{"name": "ink", "skale": 1}], "loras.0.skale", "Unknown parameter"),
        ([{"name": "ink", "scale": 1, "weight": 2}], "loras.0", "scale and weight are the same field, but differ"),
        ([{"path": "/etc/passwd"}], "loras.0", "files of a request are not loaded"),
        ([{"name": "../ink"}], "loras.0.name", "Invalid value"),
        ([5], "loras.0", "an object"),
        ("[ink", "loras", "not valid JSON"),
        (5, "loras", "a list"),
        ([f"lora{number}" for number in range(9)], "loras", "at most 8 entries"),
        ([{"name": "ink", "scale": True}], "loras.0.scale", "booleans are not accepted"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(entry: ModelEntry, loras: Any, param: str, complaint: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        chosen(entry, {"loras": loras})
    assert raised.value.param == param
    assert complaint in raised.value.message


def test_a_model_without_loras_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="Model 'm' has no LoRAs to choose from; leave out 'loras'"):
        chosen(registry(tmp_path, "").known["m"], {"loras": ["ink"]})


def test_a_remix_inherits_them_unless_it_names_others_or_another_model(entry: ModelEntry) -> None:
    source = make_generation(model="m", loras=[INK.model_dump()])

    def remixed(**body: Any) -> Any:
        return parse({"prompt": PROMPT} | body, source).loras

    assert entry.resolve(parse({"prompt": PROMPT, "size": "32x32", "num_frames": 4}, source)).loras == (INK,)
    assert remixed(loras=[]) == ()
    assert [lora.name for lora in remixed(lora="zoom")] == ["zoom"]
    assert remixed(model="other") is None


def test_records_and_idempotency_keys_without_loras_are_what_they_were(entry: ModelEntry) -> None:
    assert "loras" not in make_generation().model_dump(mode="json")
    with_lora = make_generation(loras=[INK.model_dump()])
    assert Generation.model_validate_json(with_lora.model_dump_json()) == with_lora
    prints = [
        _fingerprint(parse({"prompt": PROMPT} | body), None) for body in ({}, {"loras": "ink"}, {"loras": "zoom"})
    ]
    assert len(set(prints)) == 3
    # as before the field existed
    assert prints[0] == "5a1090a04de7eebbce18bd0753a53edcbfa7e7c0ed7bef1dbf6c76a04a678bc3"


def test_the_api_lists_them(entry: ModelEntry) -> None:
    assert [lora.model_dump() for lora in Model.model_validate(entry).loras] == [
        {
            "name": "ink",
            "description": "Ink drawings",
            "trigger_words": ["inked"],
            "scale": 0.8,
            "networks": ["image", "video"],
        },
        {"name": "zoom", "description": "", "trigger_words": [], "scale": 1.0, "networks": ["video"]},
    ]
    assert {"selectable_loras.0", "selectable_loras.1"} <= set(entry.missing)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{ file = "hub/x.safetensors" }', "selectable_loras.0.name: Field required"),
        ('{ name = "a b", file = "hub/x.safetensors" }', "selectable_loras.0.name='a b'"),
        ('{ name = "a", file = "hub/x.safetensors", scale = 11 }', "selectable_loras.0.scale=11"),
        ('{ name = "a", file = "hub/x.pt" }', "must name a .safetensors file"),
        ('{ name = "a", file = "hub/x.safetensors" }, { name = "a", file = "hub/y.safetensors" }', "the name a"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        registry(tmp_path, "", f"selectable_loras = [{line}]")
    assert complaint in raised.value.message


def test_the_name_before_a_file_is_no_part_of_a_path(tmp_path: Path) -> None:
    file = tmp_path / "a=b.safetensors"
    file.touch()
    assert named_lora("ink=~/flat.safetensors:0.5") == ("ink", "~/flat.safetensors:0.5")
    assert [named_lora(spec) for spec in (str(file), "owner/styles/x=y.safetensors")] == [
        (None, str(file)),
        (None, "owner/styles/x=y.safetensors"),
    ]
    with pytest.raises(ConfigurationError, match="'a b' cannot be a LoRA's name"):
        named_lora("a b=x.safetensors")
