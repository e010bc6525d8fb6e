"""Whatever a hub sends, `ivmix models fetch` writes nothing outside the folder of its commit and says why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.settings import Settings
from tests.fake_hub import Hub, serve_hub
from tests.integration.test_fetch import BIG, REPO, Machine
from worker import fetch as fetching
from worker.hub_listing import is_safe_path

SMALL = "scheduler/scheduler_config.json"
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "image_unet", "image_tokenizer", "image_text_encoder")


def small_files() -> dict[str, bytes]:
    """Names of a whole model; what is in them does not matter to the fetch."""
    weights = {"text_encoder": "model.safetensors", "image_text_encoder": "model.safetensors"}
    names = {"tokenizer": "vocab.json", "image_tokenizer": "vocab.json", "scheduler": "scheduler_config.json"}
    networks = "diffusion_pytorch_model.safetensors"
    return {f"{part}/{ {**names, **weights}.get(part, networks) }": part.encode() * 100 for part in PARTS}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as served:
        served.commit(REPO, small_files())
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


class Box:
    """Fetches in this process, and knows every file outside the weights folder."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.machine = folder, Machine(folder, hub)
        self.machine.register('sha256 = "unknown"')
        self.weights = self.machine.weights_dir
        self.before = self.outside()

    def outside(self) -> set[str]:
        return {str(path) for path in self.folder.rglob("*") if not path.is_relative_to(self.weights)}

    def fetch(self) -> None:
        settings = Settings(models_file=self.machine.registry_file, weights_dir=self.weights)
        fetching.fetch(self.machine.registry().known["tiny"], settings, lambda _: None)

    def refused(self, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match) as raised:
            self.fetch()
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 1000
        assert self.outside() == self.before


@pytest.fixture
def box(tmp_path: Path, hub: Hub) -> Box:
    return Box(tmp_path, hub)


def test_an_honest_hub_is_fetched(box: Box) -> None:
    box.fetch()
    assert box.machine.registry().ids() == ("tiny",)


@pytest.mark.parametrize(
    "sha",
    [
        "../../../outside",
        "/tmp/outside",
        "..",
        "",
        ".",
        "a" * 39,
        "a" * 41,
        "A" * 40,
        "g" * 40,
        "a" * 40 + "\n",
        "a" * 39 + "/",
        "..\\..\\outside" + "a" * 27,
        "\u0661" * 40,
        "\x1b[2J" + "a" * 36,
        5,
        None,
        ["a" * 40],
        {"x": 1},
    ],
)
def test_a_revision_that_is_no_commit_id_is_refused(box: Box, hub: Hub, sha: object) -> None:
    hub.overrides = {"sha": sha}
    box.refused("no commit id|response is invalid")
    assert not [path for path in box.weights.rglob("*") if path.is_dir()]


HOSTILE_NAMES = [
    "../outside.safetensors",
    "unet/../../../outside/diffusion_pytorch_model.safetensors",
    "/tmp/outside.safetensors",
    "unet//diffusion_pytorch_model.safetensors",
    "./unet/diffusion_pytorch_model.safetensors",
    "unet/./diffusion_pytorch_model.safetensors",
    "..\\outside.safetensors",
    "unet\\diffusion_pytorch_model.safetensors",
    "C:\\outside.safetensors",
    "unet/diffusion_pytorch_model.safetensors\n",
    "unet/diffusion_pytorch_model.safetensors\x00.json",
    "unet/diffusion_pytorch_model-" + "1" * 300 + "-of-1.safetensors",
    "~/outside.safetensors",
    "",
    "/",
    "..",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_not_safe_paths(name: str) -> None:
    assert not is_safe_path(name)


def test_hostile_names_in_a_listing_are_never_written(box: Box, hub: Hub) -> None:
    hub.commit(REPO, small_files() | dict.fromkeys(HOSTILE_NAMES, b"evil"))
    box.fetch()
    assert box.outside() == box.before
    fetched = {path for path in box.weights.rglob("*") if path.is_file()}
    assert not [path for path in fetched if path.read_bytes() == b"evil"]


@pytest.mark.parametrize("name", [5, None, ["unet"], {"a": 1}, True])
def test_a_name_of_another_type_is_ignored_or_refused(box: Box, hub: Hub, name: object) -> None:
    hub.file_overrides = {BIG: {"rfilename": name}}
    box.refused("no weights for unet|response is invalid")


@pytest.mark.parametrize("size", [-1, 2**60, 10**30, None, "12", 1.5, True, [1]])
def test_impossible_sizes_are_refused(box: Box, hub: Hub, size: object) -> None:
    hub.file_overrides = {SMALL: {"size": size}}
    box.refused("gives scheduler/scheduler_config.json the size|response is invalid")


def test_more_than_fits_on_the_disk_is_refused_before_the_first_byte(box: Box, hub: Hub) -> None:
    hub.file_overrides = {BIG: {"size": 2**49}}
    box.refused("GB are free; make room or set IVMIX_WEIGHTS_DIR")
    assert not hub.downloads()


@pytest.mark.parametrize("sha256", ["../x", "A" * 64, "a" * 63, 5, ["a"]])
def test_hashes_that_are_none_are_refused(box: Box, hub: Hub, sha256: object) -> None:
    hub.file_overrides = {BIG: {"lfs": {"sha256": sha256, "size": 400, "pointerSize": 1}}}
    box.refused("the sha256|response is invalid")


def test_a_file_that_never_ends_is_cut_off(box: Box, hub: Hub) -> None:
    hub.body_overrides = {SMALL: b"x" * 30_000_000}
    box.refused("sent more than the announced 900 bytes")
    assert all(path.stat().st_size <= 1000 for path in box.weights.rglob("scheduler_config.json*"))


def test_countless_files_are_refused(box: Box, hub: Hub) -> None:
    many = {f"unet/diffusion_pytorch_model-{n:05}-of-99999.safetensors": b"x" for n in range(2500)}
    hub.commit(REPO, small_files() | many)
    box.refused("files with names of weights, more than 2000")
    assert not hub.downloads()


@pytest.mark.parametrize("answer", [{"siblings": 5}, {"siblings": [5]}, {"siblings": [{}]}, {"siblings": "text"}])
def test_listings_of_another_shape_are_refused(box: Box, hub: Hub, answer: dict[str, object]) -> None:
    hub.overrides = answer
    box.refused("response is invalid")


def test_a_symlink_in_the_way_is_not_followed(box: Box, hub: Hub, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = box.weights / REPO.replace("/", "--") / hub.head[REPO]
    (folder / "unet").mkdir(parents=True)
    (outside / "victim").write_bytes(b"mine")
    (folder / f"{BIG}.part").symlink_to(outside / "victim")
    box.fetch()
    assert (outside / "victim").read_bytes() == b"mine"
    assert not (folder / BIG).is_symlink()


def test_a_linked_folder_is_refused(box: Box, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    folder = box.weights / REPO.replace("/", "--") / hub.head[REPO]
    folder.mkdir(parents=True)
    os.symlink(tmp_path / "outside", folder / "unet")
    box.before = box.outside()
    box.refused("would be written outside")


def test_a_redirect_to_another_host_gets_no_token(box: Box, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve_hub() as other:
        other.commits, other.head = hub.commits, hub.head
        hub.redirect_to = other.url.replace("127.0.0.1", "localhost")
        box.fetch()
        assert "Bearer hf_secret" in hub.authorizations
        assert set(other.authorizations) == {None}
    assert box.outside() == box.before
