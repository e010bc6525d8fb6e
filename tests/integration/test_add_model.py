"""`ivmix models add` as a user runs it, and the real engine with what it made."""

from __future__ import annotations

import json
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from service.catalog.added_models import ADDED_FILE, ADDED_FOLDER
from service.errors import ConfigurationError
from service.settings import load_settings
from tests import original_layout
from tests.adding import Machine, new_machine, save_originals, use_hub
from tests.fake_hub import serve_hub
from tests.tiny_models import save_model
from worker.add import add, app
from worker.adding.gather import Given
from worker.remove import app as remove_app

SIZE = ("--size", "32x32")
REPO = "owner/tiny"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_originals(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipeline(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline's folder: the base of the model alone."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(model / name, folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with new_machine(tmp_path, monkeypatch) as machine:
        yield machine


def test_single_files_become_a_model_that_makes_the_clip_of_its_diffusers_layout(
    machine: Machine, model: Path, pipeline: Path
) -> None:
    said = machine.add(
        *("one", "--from", model / "sd.safetensors", "--motion-adapter", model / "mm.safetensors"),
        *("--config", model, "--vae", model / "vae.safetensors", *SIZE),
    )
    assert 'ivmix submit "a prompt" --model one' in said
    machine.add("two", "--from", pipeline, "--motion-adapter", model, *SIZE)
    assert torch.equal(machine.frames("one"), machine.frames("two"))
    entry = machine.registry().get("one")
    root = entry.all_components["unet"].root
    assert root is not None
    for name in ("unet", "vae", "text_encoder", "motion_adapter"):
        found, expected = original_layout.read(root / name), original_layout.read(model / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), name
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (machine.weights / ADDED_FOLDER).rglob("*")}
    assert modes == {0o700, 0o600}
    assert stat.S_IMODE((machine.weights / ADDED_FILE).stat().st_mode) == 0o600


def test_folder_is_used_where_it_is(machine: Machine, pipeline: Path, model: Path) -> None:
    options = ("--from", pipeline, "--motion-adapter", model / "motion_adapter", *SIZE)
    machine.add("m", *options)
    entry = machine.registry().get("m")
    assert (entry.family, entry.video_schedule) == ("animatediff", {"beta_schedule": "linear"})
    assert entry.all_components["unet"].path == pipeline / "unet"
    assert entry.max_prompt_tokens == 16  # of its text encoder
    assert not (machine.weights / ADDED_FOLDER).exists()
    machine.refused("already; choose another name, or add --replace", "m", *options)
    machine.refused("models file already", "demo", *options)
    machine.add("m", *options, "--replace", "--size", "64x64")
    assert machine.registry().get("m").sizes == ("32x32", "64x64")


def test_variants_and_shards(machine: Machine, pipeline: Path, model: Path, tmp_path: Path) -> None:
    from diffusers import MotionAdapter, UNet2DConditionModel

    folder = tmp_path / 'Gewichte "ä" C:\\x'  # any name of a folder is valid in the file
    shutil.copytree(pipeline, folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="60KB", variant="fp16")
    assert len(list((folder / "unet").glob("*.fp16-0000*.safetensors"))) > 1
    adapter = MotionAdapter.from_pretrained(model / "motion_adapter")
    adapter.save_pretrained(tmp_path / "adapter", variant="a")
    adapter.save_pretrained(tmp_path / "adapter", variant="b")
    options = ("m", "--from", folder, "--motion-adapter", tmp_path / "adapter", *SIZE)
    machine.refused("variants a, b; choose one with --variant", *options)
    machine.refused("no component has weights of this variant", "m", "--from", model, *SIZE, "--variant", "fp32")
    machine.add(*options, "--variant", "b")
    components = machine.registry().get("m").all_components
    variants = {name: components[name].source.variant for name in ("unet", "vae", "motion_adapter")}
    assert variants == {"unet": "fp16", "vae": None, "motion_adapter": "b"}
    assert machine.frames("m").shape == (8, 32, 32, 3)


def test_repository_is_pinned_and_fetched(
    machine: Machine, model: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub() as hub:
        use_hub(hub, monkeypatch)
        commit = hub.commit_folder(REPO, pipeline)
        adapter = hub.commit_folder("owner/motion", model / "motion_adapter")
        options = ("--from", REPO, "--motion-adapter", "owner/motion", *SIZE)
        machine.add("m", *options)
        entry = machine.registry().get("m")
        assert {c.source.revision for c in entry.all_components.values()} == {commit, adapter}
        assert len(entry.all_components["unet"].sha256) == 2
        assert machine.frames("m").shape == (8, 32, 32, 3)
        machine.refused("no branch or tag nowhere", "n", "--from", f"{REPO}@nowhere")
        machine.refused("is not on the hub", "n", "--from", "owner/nothing")
        hub.commit(
            "owner/pickles",
            {"unet/config.json": b'{"down_block_types": ["DownBlock2D"]}', "unet/diffusion_pytorch_model.bin": b"x"},
        )
        machine.refused("unet only as pickles", "n", "--from", "owner/pickles")
        other = {"config.json": b'{"_class_name": "MotionAdapter"}', "diffusion_pytorch_model.safetensors": b"broken"}
        hub.commit("owner/broken", other)
        machine.refused("owner--broken", "n", "--from", REPO, "--motion-adapter", "owner/broken", *SIZE)
    CliRunner().invoke(remove_app, ["m", "--yes"], catch_exceptions=False)
    assert "m" not in machine.registry().known
    assert set(machine.content()) == {"models.lock.toml"}


ENDS = ("lora_A.weight", "lora_B.weight")


@pytest.mark.slow
def test_lora_and_textual_inversion(machine: Machine, model: Path, pipeline: Path, tmp_path: Path) -> None:
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = dict(zip((f"{place}.{end}" for end in ENDS), (torch.randn(2, 16), 100 * torch.randn(16, 2)), strict=True))
    save_file(lora, tmp_path / "a:1.safetensors")
    save_file({"emb_params": torch.randn(1, 32)}, tmp_path / "style.safetensors")
    machine.add(
        *("m", "--from", pipeline, "--motion-adapter", model, *SIZE, "--lora", f"{tmp_path}/a:1.safetensors:-0.5"),
        *("--textual-inversion", f"{tmp_path}/style.safetensors:<my-style>"),
    )
    entry = machine.registry().get("m")
    assert [(item.scale, item.file.inside) for item in entry.loras] == [(-0.5, "a:1.safetensors")]
    assert [item.token for item in entry.textual_inversions] == ["<my-style>"]
    motion = {f"{place.replace('attentions', 'motion_modules')}.{end}": lora[f"{place}.{end}"] for end in ENDS}
    save_file(motion, tmp_path / "zoom in.safetensors")
    machine.add(
        *("plain", "--from", pipeline, "--motion-adapter", model, *SIZE),
        *("--selectable-lora", f"flat={tmp_path}/a:1.safetensors:-0.5"),
        *("--selectable-lora", tmp_path / "zoom in.safetensors"),
    )
    offered = machine.registry().get("plain").selectable_loras
    assert [(item.name, item.scale, item.on) for item in offered] == [
        ("flat", -0.5, ("image", "video")),
        ("zoom-in", 1.0, ("video",)),
    ]
    assert not torch.equal(machine.frames("m"), machine.frames("plain"))
    machine.refused("is a LoRA, not a checkpoint; give it with --lora", "n", "--from", f"{tmp_path}/a:1.safetensors")
    machine.refused("there is no file", "n", "--from", pipeline, "--motion-adapter", model, "--lora", "x.safetensors:2")


def test_distilled_motion_modules(machine: Machine, model: Path, pipeline: Path, tmp_path: Path) -> None:
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{place}.lora_A.weight": torch.randn(2, 16), f"{place}.lora_B.weight": torch.randn(16, 2)}
    save_file(lora, tmp_path / "lcm.safetensors")
    options = ("--from", pipeline, "--motion-adapter", model, *SIZE)
    machine.add("lcm", *options, "--distilled", "lcm:6", "--lora", f"{tmp_path}/lcm.safetensors:0.8")
    entry = machine.registry().get("lcm")
    assert [(item.scale, item.on) for item in entry.loras] == [(0.8, ("video",))]
    assert entry.distilled
    assert entry.default_generation.sampler.solver == "lcm"
    assert entry.default_generation.num_inference_steps == 6
    assert machine.frames("lcm").float().std() > 0
    machine.refused("write lightning or lcm", "n", *options, "--distilled", "turbo")


@pytest.mark.slow
def test_image_model_and_base(machine: Machine, model: Path, tmp_path: Path) -> None:
    """A video model from a folder, its image model from a single file; and a UNet alone with the rest of a model."""
    save_model("modelscope", tmp_path)
    video = tmp_path / "video"
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(tmp_path / name, video / name)
    (video / "model_index.json").write_text('{"_class_name": "TextToVideoSDPipeline"}')
    machine.refused("no image_unet .name it with --image-model", "m", "--from", video, *SIZE)
    machine.add("m", "--from", video, "--image-model", model / "sd.safetensors", "--config", model, *SIZE)
    assert machine.registry().get("m").family == "modelscope"
    assert machine.frames("m").shape == (8, 32, 32, 3)
    machine.refused("has no tokenizer .*--base MODEL", "n", "--from", tmp_path / "unet", *SIZE)
    machine.add("n", "--from", tmp_path / "unet", "--base", "m", *SIZE)
    assert torch.equal(machine.frames("n"), machine.frames("m"))
    converted = machine.registry().get("n").all_components["image_unet"].root
    CliRunner().invoke(remove_app, ["m", "--yes"], catch_exceptions=False)
    assert converted is not None
    assert converted.is_dir()  # n uses it
    CliRunner().invoke(remove_app, ["n", "--yes"], catch_exceptions=False)
    assert not machine.content()


def test_failure_leaves_nothing(machine: Machine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("--from", model / "sd.safetensors", "--motion-adapter", model / "mm.safetensors", "--config", model)
    machine.refused(r"models\.m: sizes\.0='32x30x2': String should match", "m", *files, "--size", "32x30x2")
    machine.refused("cannot be a model's name", "a/b", *files)
    broken = dict(original_layout.checkpoint(model, layers=1))
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    save_file({**broken, words: torch.zeros(50, 32)}, tmp_path / "words.safetensors")
    configs = tmp_path / "without tokenizer"
    shutil.copytree(model, configs, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer"))
    options = ("--motion-adapter", model / "mm.safetensors", "--config", configs, *SIZE)
    machine.refused("one with 50 tokens; name a folder", "m", "--from", tmp_path / "words.safetensors", *options)
    broken.pop("first_stage_model.decoder.conv_in.weight")
    save_file(broken, tmp_path / "broken.safetensors")
    machine.refused("lacks 1 weights", "m", "--from", tmp_path / "broken.safetensors", *files[2:], *SIZE)
    deep = {**json.loads((model / "motion_adapter/config.json").read_text()), "block_out_channels": [8, 32]}
    shutil.copytree(model, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "configs/motion_adapter/config.json").write_text(json.dumps(deep))
    machine.refused("mm.safetensors", "m", *files[:4], "--config", tmp_path / "configs", *SIZE)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    machine.refused("GB are free; make room", "m", *files, *SIZE)
    monkeypatch.undo()
    monkeypatch.setenv("IVMIX_DATA_DIR", str(machine.weights.parent))
    monkeypatch.setattr("worker.networks.convert.convert_motion_modules", interrupt)
    ran = CliRunner().invoke(app, [str(argument) for argument in ("m", *files, *SIZE)])
    assert ran.exit_code == 130
    assert "converting mm.safetensors" in ran.output
    assert not machine.content()
    assert not (machine.weights / ADDED_FOLDER).exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_at_once(machine: Machine, model: Path, pipeline: Path) -> None:
    (machine.weights / ADDED_FOLDER / ".partial-x-1/unet").mkdir(parents=True)  # of an add that was killed
    given = [Given(name, str(pipeline), motion_adapter=str(model)) for name in ("one", "two", "three")]
    changes = {"licence": "none", "description": "tiny", "sizes": ["32x32"]}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda it: add(it, load_settings(), changes, lambda _: None), given))
    assert {"one", "two", "three"} <= set(machine.registry().ids())
    assert not (machine.weights / ADDED_FOLDER).exists()


def test_on_the_command_line(machine: Machine, model: Path, tmp_path: Path) -> None:
    """One sentence and exit status 1; the command that a pickle's refusal names converts it."""
    pickle = tmp_path / "it's.ckpt"
    torch.save({"state_dict": dict(original_layout.checkpoint(model, layers=1)), "epoch": 3}, pickle)
    command = [sys.executable, "-m", "service.cli", "models", "add", "m", "--from", str(pickle)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"ivmix: {pickle} is a pickle")
    conversion = ran.stderr.partition("running its code: ")[2]
    subprocess.run(shlex.split(conversion), check=True, timeout=120)
    expected = original_layout.checkpoint(model, layers=1)
    found = load_file(tmp_path / "it's.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    with pytest.raises(ConfigurationError, match="'demo' is not among the models"):
        CliRunner().invoke(remove_app, ["demo", "--yes"], catch_exceptions=False)
