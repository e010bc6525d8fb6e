"""LoRAs that change between jobs: latents of diffusers' adapters, and the model's own weights back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.errors import ConfigurationError
from service.jobs.lora_choice import LoraUse
from service.jobs.request import VideoRequest
from tests import lora_files
from tests.diffusers_pipelines import GUIDANCE, Pipelines, assert_same, ours
from tests.lora_files import Numbers, Weights, layer_weights
from tests.tiny_models import animatediff_without_image_parts, write_entry
from tests.unit.worker.test_compiled import one_level
from tests.unit.worker.test_lora import ATTENTION, EIGHTS, MOTION, TEXT, UNET, fused
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.networks.loading import load
from worker.networks.lora_cache import LoraCache
from worker.networks.lora_switch import LoraNotUsable, LoraSwitch
from worker.networks.models import Models
from worker.networks.optimise import BlockCompiler, OptimisedNetwork
from worker.verify import verify

BOTH = ("image", "video")
ON = {"zoom": '["video"]'}  # of the others: both


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return animatediff_without_image_parts(tmp_path_factory.mktemp("switch") / "model")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Models:
    return load(write_entry(folder, "animatediff"), "cpu")


@pytest.fixture(scope="module")
def files(folder: Path, plain: Models) -> dict[str, Weights]:
    unet, motion = layer_weights(plain.image_unet, UNET), layer_weights(plain.video_unet, MOTION)
    eights = {name: unet[name] for name in EIGHTS}
    text = {f"text_model.{k}": v for k, v in layer_weights(plain.video_text_encoder.encoder, TEXT).items()}
    made = {
        "ink": lora_files.kohya("lora_unet", unet, Numbers(), 2.0) | lora_files.kohya("lora_te", text, Numbers(2), 2.0),
        "flat": lora_files.dotted("unet.", unet, Numbers(3), ".lora_A.weight", ".lora_B.weight"),
        "zoom": lora_files.old_diffusers("unet.", motion, Numbers(4)),
        "dora": lora_files.kohya("lora_unet", unet, Numbers(5), dora=True),
        "loha": lora_files.loha("lora_unet", unet, Numbers(6))[0],
        "lokr": lora_files.lokr("lora_unet", eights, Numbers(7))[0],
    }
    for name, file in made.items():
        save_file({key: value.contiguous() for key, value in file.items()}, folder / f"{name}.safetensors")
    return made


@pytest.fixture(scope="module")
def entry(folder: Path, files: dict[str, Weights]) -> ModelEntry:
    return entry_with(folder, *files)


@pytest.fixture(scope="module")
def models(entry: ModelEntry) -> Models:
    """Whatever a test leaves, the next one begins with a switch."""
    return load(entry, "cpu")


def entry_with(folder: Path, *names: str) -> ModelEntry:
    lines = ["[sources.own]", 'folder = "."']
    for name in names:
        on = ON.get(name, '["image", "video"]')
        lines += ["[[models.tiny.selectable_loras]]", f'name = "{name}"\nfile = "own/{name}.safetensors"\non = {on}']
    return write_entry(folder, "animatediff", *lines)


def use(name: str, scale: float = 0.5, networks: tuple[Any, ...] = BOTH) -> LoraUse:
    return LoraUse(name=name, scale=scale, networks=("video",) if name == "zoom" else networks)


def unets(models: Models) -> dict[str, torch.Tensor]:
    named = {"image": models.image_unet, "video": models.video_unet}
    return {f"{which} {name}": x for which, unet in named.items() for name, x in unet.state_dict().items()}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("which", BOTH)
def test_latents_of_several_equal_those_of_diffusers_with_the_same_adapters(
    folder: Path, models: Models, which: str
) -> None:
    """load_lora_weights and set_adapters, which keeps the adapters apart and adds their outputs."""
    pipelines, scales = Pipelines(folder), {"ink": 0.5, "flat": -0.25} | ({"zoom": 0.8} if which == "video" else {})
    pipeline: Any = getattr(pipelines, which)
    for name in scales:
        pipeline.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(list(scales), list(scales.values()))
    models.loras.use([use(name, scale) for name, scale in scales.items()])
    for guidance in GUIDANCE:
        assert_same(ours(models, which, guidance), pipelines.latents(which, guidance))


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["dora", "loha", "lokr"])
def test_weights_are_those_of_the_same_file_merged_at_load(
    folder: Path, plain: Models, models: Models, files: dict[str, Weights], name: str
) -> None:
    image, video = fused(folder, plain, (files[name], 'scale = 0.5\non = ["image", "video"]'))
    models.loras.use([use(name)])
    for unet, expected in ((models.image_unet, image), (models.video_unet, video)):
        for key, value in expected.state_dict().items():
            assert_same(unet.state_dict()[key], value)


def test_without_loras_everything_is_as_in_a_fresh_process(plain: Models, models: Models) -> None:
    models.loras.use([])
    before = {id(x) for unet in (models.image_unet, models.video_unet) for x in unet.parameters()}
    expected = {(which, g): ours(plain, which, g) for which in BOTH for g in GUIDANCE}
    jobs = [[use("ink")], [use("dora"), use("zoom")], [use("lokr", networks=("image",)), use("loha", -1.0)]]
    made = []
    for loras in jobs:
        models.loras.use(loras)
        made.append(ours(models, "video", 7.5))
        models.loras.use([])
        assert all(torch.equal(ours(models, *key), latents) for key, latents in expected.items())
    assert {id(x) for unet in (models.image_unet, models.video_unet) for x in unet.parameters()} == before
    assert models.weights_bytes == plain.weights_bytes
    for loras, latents in zip(reversed(jobs), reversed(made), strict=True):  # whatever came before
        models.loras.use(loras)
        assert torch.equal(ours(models, "video", 7.5), latents)


def test_each_network_has_its_own_loras_and_shares_what_they_share(plain: Models, models: Models) -> None:
    models.loras.use([use("ink", networks=("image",)), use("zoom")])
    shown = models.encode(["a red circle"])
    expected = plain.encode(["a red circle"])
    assert torch.equal(shown.video, expected.video)
    assert not torch.equal(shown.image, expected.image)
    found, own = unets(models), unets(plain)
    changed = {key.split()[1] for key, value in found.items() if not torch.equal(value, own[key])}
    assert {key for key in changed if "motion" in key} == {f"{name}.weight" for name in MOTION}
    assert {key for key in changed if "motion" not in key} == {f"{name}.weight" for name in UNET}
    assert all(torch.equal(found[f"video {name}.weight"], own[f"video {name}.weight"]) for name in UNET)
    models.loras.use([use("ink")])
    assert all(models.image_unet.get_submodule(n).weight is models.video_unet.get_submodule(n).weight for n in UNET)
    both = models.encode(["a red circle"])
    assert both.image is both.video
    assert torch.equal(both.image, shown.image)
    assert models.weights_bytes == plain.weights_bytes


def test_a_scale_of_zero_changes_nothing(plain: Models, models: Models) -> None:
    models.loras.use([use("dora", 0.0), use("ink", 0.0)])
    own = unets(plain)
    assert all(torch.equal(value, own[key]) for key, value in unets(models).items())


def test_compiled_blocks_take_the_new_weights_without_compiling_again(entry: ModelEntry, plain: Models) -> None:
    torch._dynamo.reset()
    counters.clear()
    unet = one_level().requires_grad_(False)
    file = lora_files.kohya("lora_unet", layer_weights(unet, ATTENTION), Numbers())
    lora = entry.selectable_loras[0]
    save_file(file, str(lora.file.path).replace("ink", "one"))
    lora = lora.model_copy(update={"file": lora.file.model_copy(update={"inside": "one.safetensors"})})
    encoder = plain.video_text_encoder
    own = entry.model_copy(update={"selectable_loras": (lora,)})
    optimise = Optimise(compile=True, cache_text_kv=False)
    network = OptimisedNetwork(unet, optimise, plain.text_kv_cache, BlockCompiler("eager"))
    switch = LoraSwitch(own, (unet, plain.video_unet), (encoder, encoder), network.clear_caches)
    x, texts = torch.randn(1, 4, 8, 8), (torch.randn(1, 5, 8),)
    answers, graphs = [], []
    for scale in (0, 1, 2, 0):
        switch.use([use("ink", scale, ("image",))])
        answers.append(network(x, 500, encoder_hidden_states=texts).sample)
        graphs.append(counters["stats"]["unique_graphs"])
        assert torch.allclose(answers[-1], unet(x, 500, texts[0]).sample, atol=1e-5)
    assert graphs[0] == graphs[-1] > 0
    assert torch.equal(answers[0], answers[3])
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    torch._dynamo.reset()


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_a_run_resumes_byte_for_byte_after_other_loras_and_only_with_its_own(entry: ModelEntry, tmp_path: Path) -> None:
    engine = Engine(entry, torch.device("cpu"))
    request = {"prompt": "a red circle", "seed": 1, "negative_prompt": "", "loras": ["ink:0.5", "zoom"]}
    generation, other, none = (
        entry.resolve(VideoRequest.model_validate(request | {"loras": loras}))
        for loras in (request["loras"], ["ink:0.6", "zoom"], [])
    )
    steps: list[Checkpoint] = []
    whole = engine.sample(generation, on_step=steps.append)
    without = engine.sample(none, on_step=steps.append)
    steps[1].write(tmp_path / "checkpoint")
    done: list[int] = []
    resumed = engine.sample(generation, on_step=lambda state: done.append(state.step), resume=tmp_path / "checkpoint")
    assert done == [3, 4]
    assert torch.equal(resumed.latents, whole.latents)
    assert torch.equal(without.latents, Engine(entry, torch.device("cpu")).sample(none).latents)
    assert not torch.equal(without.latents, whole.latents)
    begun = [engine.sample(job, resume=tmp_path / "checkpoint").latents for job in (other, none)]
    assert torch.equal(begun[1], without.latents), "the checkpoint of another run was taken"
    assert not torch.equal(begun[0], whole.latents)
    prints = {state.fingerprint for state in steps}
    engine.models.loras.cache._sha256["zoom"] = "another file"
    engine.sample(generation, on_step=steps.append)
    assert len({state.fingerprint for state in steps}) == len(prints) + 1


def test_a_cache_keeps_what_was_computed_with_the_jobs_own_loras(entry: ModelEntry) -> None:
    engine = Engine(entry, torch.device("cpu"))
    request = {"prompt": "a red circle", "seed": 1, "cache": {"name": "deep-cache", "steps": 4}}
    with_loras, without = (
        entry.resolve(VideoRequest.model_validate(request | {"loras": loras})) for loras in (["ink:0.5", "zoom"], [])
    )
    latents = [engine.sample(job).latents for job in (with_loras, without, with_loras)]
    assert torch.equal(latents[0], latents[2])
    assert torch.equal(latents[1], Engine(entry, torch.device("cpu")).sample(without).latents)
    assert not torch.equal(latents[0], latents[1])


def test_what_cannot_be_used_fails_the_job_and_not_the_next_one(entry: ModelEntry, plain: Models) -> None:
    engine = Engine(entry.model_copy(update={"dtype": "float16"}), torch.device("cpu"))
    loras = engine.models.loras
    engine.models.image_unet.get_submodule(UNET[0]).weight.data.fill_(65_504)
    with pytest.raises(LoraNotUsable, match=r"LoRAs flat 10: the sum overflows .* in float16; lower their scales") as e:
        loras.use([use("flat", 10)])
    failed = engine.failed_message(e.value)
    assert (failed.code, failed.can_retry, failed.message) == ("invalid_input", False, e.value.message)
    with pytest.raises(LoraNotUsable, match="no LoRA 'gone' for image and video any more; it has ink, flat, zoom"):
        loras.use([use("gone")])
    with pytest.raises(LoraNotUsable, match="no LoRA 'zoom' for image any more"):
        loras.use([LoraUse(name="zoom", scale=1, networks=("image",))])
    loras.use([])
    own = unets(plain)
    changed = {key for key, value in unets(engine.models).items() if not torch.equal(value, own[key])}
    assert changed == {f"{which} {UNET[0]}.weight" for which in BOTH}, "of the test itself"


def test_files_in_memory_are_bounded_and_a_changed_one_is_refused(folder: Path, files: dict[str, Weights]) -> None:
    offered = entry_with(folder, *files).selectable_loras
    one = LoraCache(offered).get("flat").size
    cache = LoraCache(offered, max_bytes=2 * one)
    first = cache.get("flat")
    for name in ("ink", "dora", "flat"):
        cache.get(name)
        cache.trim()
    assert cache.get("flat") is not first, "it was dropped and read again"
    kept = cache.get("flat")
    file = folder / "flat.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"")
    assert cache.get("flat") is kept
    cache.get("ink")
    cache.get("dora")
    cache.trim()
    with pytest.raises(ConfigurationError, match=r"flat\.safetensors is not a safetensors file"):
        cache.get("flat")
    save_file({key: value + 1 for key, value in files["flat"].items()}, file)
    with pytest.raises(ConfigurationError, match=r"flat\.safetensors was changed while the worker ran"):
        cache.get("flat")
    file.write_bytes(content)
    assert torch.equal(cache.get("flat").tensor(min(files["flat"])), files["flat"][min(files["flat"])])


@pytest.mark.slow
def test_verify_and_load_refuse_what_a_request_could_not_use(folder: Path, entry: ModelEntry) -> None:
    lines = [line.partition(" (")[0] for line in verify(entry)]
    assert [line for line in lines if line.startswith("sel")] == [f"selectable_loras.{i}: OK" for i in range(6)]
    save_file({"unet.nowhere.lora_A.weight": torch.ones(2, 4)}, folder / "bad.safetensors")
    with pytest.raises(ConfigurationError, match=r"bad\.safetensors does not fit the image model: .*match no layer"):
        load(entry_with(folder, "bad"), "cpu")
    zoom = entry.selectable_loras[2]
    for on, complaint in ((("image",), 'add "video" to `on`'), (BOTH, r'motion modules only; set on = \["video"\]')):
        wrong = entry.model_copy(update={"selectable_loras": (zoom.model_copy(update={"on": on}),)})
        for check in (lambda wrong=wrong: list(verify(wrong)), lambda wrong=wrong: load(wrong, "cpu")):
            with pytest.raises(ConfigurationError, match=complaint):
                check()


@pytest.mark.gpu
def test_on_a_gpu_the_replaced_weights_wait_on_the_host(entry: ModelEntry) -> None:
    models = load(entry, "cuda")
    layers = [unet.get_submodule(UNET[0]) for unet in (models.image_unet, models.video_unet)]
    own = layers[0].weight
    before = own.clone()
    for loras in ([use("ink"), use("dora")], [use("ink", networks=("image",))], [use("loha")], []):
        models.loras.use(loras)
        assert {x.device.type for x in unets(models).values()} == {"cuda"}
        is_used = any(layer.weight is own for layer in layers)
        assert own.device.type == ("cuda" if is_used else "cpu")
    assert torch.equal(own, before)
