from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from service.catalog.family_components import OPTIONAL_COMPONENTS, REQUIRED_COMPONENTS
from service.catalog.optimise import Configuration, Optimise
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import LOCK_FILE, LockedFile, LockedSource, LockFile
from service.errors import ConfigurationError, ModelNotFetched, ModelNotFound
from service.jobs.request import VideoRequest
from service.settings import MODELS_FILE, Settings

SHIPPED = ModelRegistry.load()
ENTRY = """
family = "modelscope"
created = 1
description = ""
licence = ""
sizes = ["256x256"]
num_frames = { default = 8, min = 8, max = 8 }
fps = { default = 8, min = 1, max = 24 }
num_inference_steps = { default = 20, min = 1, max = 200 }
guidance_scale = { default = 3, min = 0, max = 20 }
"""
PARTS = REQUIRED_COMPONENTS["modelscope"]


def write(folder: Path, text: str) -> Path:
    file = folder / "models.toml"
    file.write_text(text)
    return file


def hub_model(folder: Path, source: str = "") -> Path:
    """A registry of one model from a hub, and the folder for its weights."""
    components = "\n".join(f'{part} = "hub/{part}"' for part in PARTS)
    text = f'[models.m]{ENTRY}\n[models.m.components]\n{components}\n[sources.hub]\nrepo = "a/b"\n{source}'
    return write(folder, text)


def put_weights(folder: Path, revision: str = "c" * 40) -> None:
    """What `fetch` leaves behind, with small files."""
    names = {"tokenizer": "vocab.json", "scheduler": "scheduler_config.json"}
    files = {f"{part}/{names.get(part, 'config.json')}": b"{}" for part in PARTS}
    for name, data in files.items():
        file = folder / "a--b" / revision / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    locked = {name: LockedFile(sha256="d" * 64, size=len(data)) for name, data in files.items()}
    LockFile(sources={"a/b@unpinned": LockedSource(revision=revision, files=locked)}).write(folder)


def test_demo_needs_no_fetch_and_is_the_default() -> None:
    assert SHIPPED.ids() == ("demo",)
    assert SHIPPED.get().id == "demo"
    assert SHIPPED.get("demo").missing == []


def test_the_papers_three_set_ups_are_known_and_say_how_to_get_them() -> None:
    assert {name: entry.family for name, entry in SHIPPED.known.items()} == {
        "demo": "animatediff",
        "animatediff": "animatediff",
        "animatediff-sparsectrl": "animatediff",
        "animatediff-sdxl": "animatediff-sdxl",
        "modelscope": "modelscope",
        "videocrafter2": "videocrafter",
        "wan-1.3b": "wan",
        "wan-14b": "wan",
        "wan-2.2-a14b": "wan",
        "cogvideox-2b": "cogvideox",
    }
    with pytest.raises(ModelNotFetched, match="`ivmix models fetch modelscope` downloads them"):
        SHIPPED.get("modelscope")


@pytest.mark.parametrize(
    "name", ["animatediff", "animatediff-sparsectrl", "modelscope", "videocrafter2", "wan-1.3b", "wan-2.2-a14b"]
)
def test_shipped_entries_pin_every_commit_and_the_weights_that_are_known(name: str) -> None:
    entry = SHIPPED.known[name]
    assert set(entry.all_components) >= set(REQUIRED_COMPONENTS[entry.family])
    for part in entry.all_components.values():
        source = part.source
        assert source.repo is not None
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
        if source.sha256 != "unknown":
            assert part.sha256, f"{part.name} of {source.repo} has no pinned file"
            assert part.has_weights == any(file.endswith(".safetensors") for file in part.sha256)


def test_entry_with_sparsectrl_differs_from_animatediff_by_that_network_alone() -> None:
    own = {"id", "created", "description", "licence", "components"}
    plain, controlled = (SHIPPED.known[name] for name in ("animatediff", "animatediff-sparsectrl"))
    assert controlled.model_dump(exclude=own) == plain.model_dump(exclude=own)
    components = controlled.all_components
    assert components.pop("sparse_control").source.repo == "guoyww/animatediff-sparsectrl-rgb"
    assert components == plain.all_components
    assert (plain.has_sparse_control, controlled.has_sparse_control) == (False, True)


def test_sdxls_entry_pins_all_weights_but_the_second_text_encoder_of_the_image_model() -> None:
    parts = SHIPPED.known["animatediff-sdxl"].all_components.values()
    pinned = {part.name for part in parts if any(file.endswith(".safetensors") for file in part.sha256)}
    assert {part.name for part in parts if part.has_weights} - pinned == {"image_text_encoder_2"}
    assert all(re.fullmatch(r"[0-9a-f]{40}", part.source.revision) for part in parts)


def test_the_examples_of_a_model_are_prompts_that_it_takes() -> None:
    demo = SHIPPED.get("demo")
    assert len(demo.examples) >= 3
    for prompt in demo.examples:
        assert demo.resolve(VideoRequest(prompt=prompt)).prompt == prompt


def test_named_models_are_offered_wherever_their_weights_are() -> None:
    """The API of a cluster has no weights; its operator says what the workers have."""
    registry = ModelRegistry.of(Settings(models=("modelscope", "demo")))
    assert registry.ids() == ("modelscope", "demo")
    assert registry.get().id == "modelscope"
    with pytest.raises(ConfigurationError, match="there is no nothing in the registry; it has demo, animatediff"):
        ModelRegistry.of(Settings(models=("nothing",)))


def test_unknown_model_is_refused_with_the_offered_ones() -> None:
    with pytest.raises(ModelNotFound, match=r"'sora-2'.*demo"):
        SHIPPED.get("sora-2")


def test_model_is_offered_once_all_its_files_are_there(tmp_path: Path) -> None:
    file = hub_model(tmp_path)
    nothing = ModelRegistry.load(file, weights_dir=tmp_path)
    assert (nothing.ids(), nothing.known["m"].missing) == ((), list(PARTS))
    with pytest.raises(ModelNotFetched, match="ivmix models fetch m"):
        nothing.get()
    put_weights(tmp_path)
    assert ModelRegistry.load(file, weights_dir=tmp_path).ids() == ("m",)
    config = tmp_path / "a--b" / ("c" * 40) / "unet" / "config.json"
    config.write_bytes(b"{ }")  # not the size that was fetched
    assert ModelRegistry.load(file, weights_dir=tmp_path).known["m"].missing == ["unet"]
    config.unlink()
    assert ModelRegistry.load(file, weights_dir=tmp_path).known["m"].missing == ["unet"]


def test_registrys_sha256_wins_over_the_lock_files(tmp_path: Path) -> None:
    file = hub_model(tmp_path, f'[sources.hub.sha256]\n"unet/config.json" = "{"e" * 64}"')
    put_weights(tmp_path)
    parts = ModelRegistry.load(file, weights_dir=tmp_path).known["m"].all_components
    assert parts["unet"].sha256 == {"unet/config.json": "e" * 64}
    assert parts["vae"].sha256 == {"vae/config.json": "d" * 64}
    with pytest.raises(ConfigurationError, match=r"unet/config.json has sha256 \w{64}, expected e{64}"):
        parts["unet"].verify()


def test_lock_file_that_was_broken_is_named(tmp_path: Path) -> None:
    file = hub_model(tmp_path)
    (tmp_path / LOCK_FILE).write_text("sources = 3")
    with pytest.raises(ConfigurationError, match=rf"{LOCK_FILE} cannot be read"):
        ModelRegistry.load(file, weights_dir=tmp_path)


def test_lock_survives_the_way_through_its_file(tmp_path: Path) -> None:
    put_weights(tmp_path)
    lock = LockFile.read(tmp_path)
    lock.write(tmp_path)
    assert LockFile.read(tmp_path) == lock
    assert not list(tmp_path.glob(f".{LOCK_FILE}*"))


def test_components_that_are_not_named_are_in_the_models_own_folder(tmp_path: Path) -> None:
    demo = SHIPPED.get("demo").path
    assert demo is not None
    shutil.copytree(demo, tmp_path / "weights", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.move(tmp_path / "weights" / "image_unet", tmp_path / "elsewhere")
    own = ('path = "weights"', 'components = { image_unet = "other" }', "[sources.other]", 'folder = "elsewhere"')
    entry = f"[models.m]{ENTRY}" + "\n".join(own)
    parts = ModelRegistry.load(write(tmp_path, entry.replace("modelscope", "animatediff"))).get("m").all_components
    assert parts["unet"].path == tmp_path / "weights" / "unet"
    assert parts["image_unet"].path == tmp_path / "elsewhere" / ""
    assert "image_text_encoder" not in parts
    assert set(parts) <= {*REQUIRED_COMPONENTS["animatediff"], *OPTIONAL_COMPONENTS["animatediff"]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "models"),
        ("models = ", "Invalid value"),
        (f"[models.m]{ENTRY}", "components lack image_unet, scheduler, text_encoder, tokenizer, unet, vae"),
        (f'[models.m]{ENTRY}components = {{ unet = "nowhere/unet" }}', "there is no source"),
        (f'[models.m]{ENTRY}path = "."\ncomponents = {{ brain = "s" }}\n[sources.s]\nfolder = "."', "brain"),
        (f'[models.m]{ENTRY}path = "."\nsize = 3', "size"),
        (f'[models.m]{ENTRY}path = "."\ncomponents = {{ lora = "s" }}\n[sources.s]\nfolder = "."', "must name a .saf"),
        (f"[models.m]{ENTRY}path = 3", "models.m: path must be a text, not 3"),
        (f'[models.m]{ENTRY}path = "~not-a-user-here/x"', "there is no such home directory"),
        (f'[models.m]{ENTRY}components = "unet"', "models.m: components must be a table"),
        (f"[models.m]{ENTRY}components = {{ unet = 3 }}", "models.m: components must be a table"),
        ('[sources.s]\nrepo = "a/b"\nrevision = "main"\n[models]', "sources.s.revision"),
        ('[sources.s]\nrepo = "a/b"\nfolder = "."\n[models]', "either folder or repo"),
        ('[sources.s]\nrepo = "a/b"\n[sources.s.sha256]\n"x" = "12"\n[models]', "sources.s.sha256"),
    ],
    ids=[
        "empty",
        "no toml",
        "no components",
        "no source",
        "unknown part",
        "unknown field",
        "lora folder",
        "path that is a number",
        "unknown home directory",
        "components that are a text",
        "component that is a number",
        "branch",
        "both",
        "short sha",
    ],
)
def test_registry_that_contradicts_itself_stops_the_start_and_is_named(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"models file .*models\.toml") as raised:
        ModelRegistry.load(write(tmp_path, text))
    assert complaint in raised.value.message


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("max = 200 }", "max = 10 }"), ('"384x384"', '"384"'), ("max = 200 }", "max = 1001 }"), ('"demo"', '"de mo"')],
    ids=["range", "size", "more steps than timesteps", "id"],
)
def test_shipped_registry_with_one_thing_wrong_stops_the_start(tmp_path: Path, right: str, wrong: str) -> None:
    text = MODELS_FILE.read_text().replace("[models.demo", '[models."demo"')
    with pytest.raises(ConfigurationError, match=r"models\.toml"):
        ModelRegistry.load(write(tmp_path, text.replace(right, wrong)))


def test_missing_registry_stops_the_start_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        ModelRegistry.load(tmp_path / "nowhere.toml")


def test_switches_of_version_0_1_are_accepted_and_the_removed_one_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    switches = "optimise = { text_once = false, halves_once = false, time_table = false, compile = true }"
    file = write(tmp_path, f'[models.m]{ENTRY}path = "."\n{switches}')
    assert ModelRegistry.load(file).entry("m").optimise == Optimise(
        cache_text_kv=False, cache_time_embeds=False, compile=True
    )
    assert [r.getMessage() for r in caplog.records] == [
        "optimise.halves_once was removed and is ignored; delete it from the models file"
    ]
    with pytest.raises(ConfigurationError, match="text_twice"):
        ModelRegistry.load(write(tmp_path, f'[models.m]{ENTRY}path = "."\noptimise = {{ text_twice = true }}'))


@pytest.mark.parametrize("line", ["", 'optimise = "auto"'])
def test_optimise_is_auto_by_default(tmp_path: Path, line: str) -> None:
    entry = ModelRegistry.load(write(tmp_path, f'[models.m]{ENTRY}path = "."\n{line}')).entry("m")
    assert entry.optimise is None
    assert Configuration.of(entry.optimise) == Configuration(source="default", optimise=Optimise())


def test_table_of_switches_is_used_as_it_is(tmp_path: Path) -> None:
    text = 'optimise = { attention_backend = "_native_cudnn", guidance_halves = "apart" }'
    found = ModelRegistry.load(write(tmp_path, f'[models.m]{ENTRY}path = "."\n{text}')).entry("m").optimise
    assert found == Optimise(attention_backend="_native_cudnn", guidance_halves="apart")
    assert Configuration.of(found).source == "set"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"fast"', "optimise: 'fast' must be \"auto\" or a table of switches"),
        ('{ attention_backend = "fast" }', "optimise.attention_backend='fast': Input should be 'native', "),
    ],
)
def test_unknown_value_of_optimise_is_named(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ModelRegistry.load(write(tmp_path, f'[models.m]{ENTRY}path = "."\noptimise = {value}'))
    assert message in raised.value.message


def test_folders_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own = ('path = "~/weights"', 'components = { image_unet = "other" }', "[sources.other]", 'folder = "~/elsewhere"')
    write(tmp_path, f"[models.m]{ENTRY}" + "\n".join(own))
    entry = ModelRegistry.load(Path("~/models.toml")).entry("m")
    assert entry.all_components["unet"].root == tmp_path / "weights"
    assert entry.all_components["image_unet"].root == tmp_path / "elsewhere"
