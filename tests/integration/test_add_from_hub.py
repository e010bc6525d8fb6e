"""`ivmix models add` with repositories that hold single files: what it makes is what the local files make."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from typer.testing import CliRunner

from service.catalog.added_models import ADDED_FOLDER
from service.catalog.weight_files import LockFile
from service.errors import ConfigurationError
from service.settings import load_settings
from tests.adding import Machine, new_machine, save_originals, use_hub
from tests.fake_hub import Hub, serve_hub
from tests.unit.worker.test_weights_file import ACCEPTED, REFUSED
from worker.fetch import fetch
from worker.models import load
from worker.remove import app as remove_app
from worker.verify import verify

SIZE = ("--size", "32x32")
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
STYLE = {f"{LAYER}.lora_A.weight": torch.ones(2, 16), f"{LAYER}.lora_B.weight": torch.ones(16, 2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_originals(tmp_path_factory.mktemp("model"))
    save_file(STYLE, folder / "style.safetensors")
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with new_machine(tmp_path, monkeypatch) as machine:
        yield machine


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model: Path) -> Iterator[Hub]:
    files = {name: (model / f"{name}.safetensors").read_bytes() for name in ("sd", "mm", "vae", "style")}
    with serve_hub() as hub:
        use_hub(hub, monkeypatch)
        pickle = {"sd.ckpt": b"never read", "README.md": b"# tiny"}
        hub.commit("owner/sd", {"sd.safetensors": files["sd"], "sd.fp16.safetensors": files["sd"], **pickle})
        hub.commit("owner/motion", {"motion/mm.safetensors": files["mm"], "style.safetensors": files["style"]})
        hub.commit("owner/vae", {"vae.ckpt": b"never read", "vae.safetensors": files["vae"]})
        yield hub


def unnamed(entry: Any) -> dict[str, Any]:
    """An entry without what differs from model to model."""
    components = {name: (c.inside, c.source.variant) for name, c in entry.components.items()}
    loras = [(lora.file.inside, lora.scale) for lora in entry.loras]
    return (
        dict(entry)
        | {"id": "", "created": 0, "description": "", "licence": "", "components": components}
        | {"loras": loras}
    )


def converted(machine: Machine, name: str) -> dict[str, bytes]:
    start = f"{ADDED_FOLDER}/{name}-"
    return {path[len(start) + 8 :]: data for path, data in machine.content().items() if path.startswith(start)}


def remove(name: str) -> None:
    CliRunner().invoke(remove_app, [name, "--yes"], catch_exceptions=False)


def test_repositories_of_single_files_make_the_model_of_the_local_files(
    machine: Machine, model: Path, hub: Hub, tmp_path: Path
) -> None:
    config = ("--config", model, *SIZE)
    (tmp_path / "motion").mkdir()
    shutil.copy(model / "mm.safetensors", tmp_path / "motion")
    local = ("--motion-adapter", tmp_path / "motion", "--vae", model / "vae.safetensors")
    machine.add("local", "--from", model / "sd.safetensors", *local, "--lora", model / "style.safetensors:0.5", *config)
    remote = ("--motion-adapter", "owner/motion", "--vae", f"{hub.url}/owner/vae/blob/main/vae.safetensors")
    machine.add("hub", "--from", "owner/sd", *remote, "--lora", "owner/motion:0.5", *config)
    wanted = {"sd/sd", "motion/motion/mm", "motion/style", "vae/vae"}
    assert hub.whole_files() == {f"owner/{name}.safetensors" for name in wanted}
    asked = len(hub.requests)
    registry = machine.registry()
    assert unnamed(registry.get("hub")) == unnamed(registry.get("local"))
    assert converted(machine, "hub") == converted(machine, "local")
    assert converted(machine, "hub").keys() >= {"/unet/config.json", "/vae/config.json", "/motion_adapter/config.json"}
    locked = LockFile.read(machine.weights).sources
    for repo, name in (("owner/sd", "sd.safetensors"), ("owner/motion", "motion/mm.safetensors")):
        data, source = hub.commits[repo, hub.head[repo]][name], locked[f"{repo}@{hub.head[repo]}"]
        assert source.files[name].sha256 == hashlib.sha256(data).hexdigest()
        assert source.files[name].size == len(data)
    assert "loras.0: OK (sha256 of 1 files)" in list(verify(registry.get("hub")))
    load(registry.get("hub"), "cpu")
    assert len(hub.requests) == asked  # what was added needs no hub
    remove("local")
    assert converted(machine, "hub")
    remove("hub")
    assert set(machine.content()) == {"models.lock.toml"}


def test_what_another_added_model_was_converted_from_stays(machine: Machine, model: Path, hub: Hub) -> None:
    options = ("--from", "owner/sd", "--motion-adapter", model, "--config", model, *SIZE)
    machine.add("one", *options)
    machine.add("two", *options, "--variant", "fp16")
    fetched = f"owner--sd/{hub.head['owner/sd']}"
    before = len(hub.downloads())
    machine.add("one", *options, "--replace", "--lora", "owner/motion/style.safetensors")
    assert [sent is None for path, sent in hub.downloads()[before:] if "sd." in path] == [False, False]
    remove("two")
    assert {f"{fetched}/sd.safetensors", f"{fetched}/sd.fp16.safetensors"} <= set(machine.content())
    fetch(machine.registry().get("one"), load_settings(), lambda _: None)
    remove("one")
    assert set(machine.content()) == {"models.lock.toml"}


def test_textual_inversion_of_a_repository_is_fetched_again_where_it_is_missing(
    machine: Machine, model: Path, hub: Hub
) -> None:
    word = save({"emb_params": torch.ones(1, 32)})
    commit = hub.commit("owner/words", {"words/my word.safetensors": word})
    given = ("--from", model / "sd.safetensors", "--motion-adapter", model, "--config", model, *SIZE)
    machine.add("m", *given, "--textual-inversion", f"{hub.url}/owner/words/resolve/main/words/my%20word.safetensors")
    entry = machine.registry().get("m")
    assert [item.token for item in entry.textual_inversions] == ["<my_word>"]
    file = machine.weights / "owner--words" / commit / "words/my word.safetensors"
    file.unlink()
    assert machine.registry().entry("m").missing == ["textual_inversions.0"]
    fetch(machine.registry().entry("m"), load_settings(), lambda _: None)
    assert file.read_bytes() == word
    machine.add("n", *given, "--textual-inversion", "owner/words:<other>")
    assert machine.registry().get("n").textual_inversions[0].token == "<other>"


def header_only(name: str) -> bytes:
    shapes = ACCEPTED[name][1] if name in ACCEPTED else REFUSED[name][0]
    return save({key: torch.zeros(shape) for key, shape in shapes.items()})


def test_refusals_download_no_weights(machine: Machine, model: Path, hub: Hub) -> None:
    hub.commit("owner/two", {"b.safetensors": header_only("sd1"), "a.safetensors": header_only("sd1")})
    hub.commit("owner/xl", {"sdxl.safetensors": header_only("sdxl")})
    hub.commit("owner/broken", {"sd.safetensors": b"\xff" * 100})
    hub.commit("owner/pickles", {"sd.ckpt": b"x", "text/sd.pt": b"x"})
    layout = {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}', "sd.safetensors": header_only("sd1")}
    hub.commit("owner/both", {**layout, "unet/config.json": b"{}", "unet/diffusion_pytorch_model.bin": b"x"})
    for match, spec in (
        (r"2 files for --from.*: a\.safetensors, b\.safetensors; name one, such as owner/two/a\.safe", "owner/two"),
        (r"such as owner/two@main/a\.safetensors", "owner/two@main"),
        (r"has no c\.safetensors; it has a\.safetensors, b\.safetensors", "owner/two/c.safetensors"),
        (r"owner/broken/sd\.safetensors is not a safetensors file", "owner/broken"),
        (r"has only pickles \(sd\.ckpt, text/sd\.pt\).* download one and name the file", "owner/pickles"),
        (r"owner/pickles/sd\.ckpt is a pickle.* Download it and name the file", "owner/pickles/sd.ckpt"),
        (r"unet only as pickles .*or a file of this one: owner/both/sd\.safetensors", "owner/both"),
        (r"owner/motion/style\.safetensors is a LoRA, not a checkpoint", "owner/motion/style.safetensors"),
        (r"https://other\.test/a is not on the hub", "https://other.test/a"),
        (
            r"no file owner/nothing/sd\.safetensors on this machine, and .* is not on the hub",
            "owner/nothing/sd.safetensors",
        ),
    ):
        machine.refused(match, "n", "--from", spec, *SIZE)
    config = ("--config", model, *SIZE)
    machine.refused(
        r"sd\.fp16\.safetensors is a checkpoint, not a VAE", "n", "--from", "owner/sd", "--vae", "owner/sd", *config
    )
    assert not [name for name in hub.whole_files() if name.endswith((".safetensors", ".ckpt", ".pt", ".bin"))]


def test_refused_conversion_deletes_the_download(machine: Machine, model: Path, hub: Hub) -> None:
    weights = load_file(model / "sd.safetensors")
    hub.commit("owner/odd", {"sd.safetensors": save({k: v for k, v in weights.items() if "quant_conv" not in k})})
    options = ("--from", "owner/odd", "--motion-adapter", model, "--config", model)
    with pytest.raises(ConfigurationError, match="lacks 4 weights, such as quant_conv"):
        machine.add("n", *options)
    assert set(machine.content()) == {"models.lock.toml"}
    assert hub.whole_files() == {"owner/odd/sd.safetensors"}
