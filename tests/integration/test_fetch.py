"""`ivmix models fetch` and `verify` as a user runs them, against a server that speaks a hub's API."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import LOCK_FILE
from service.errors import ConfigurationError, ModelNotFetched
from service.jobs.request import VideoRequest
from service.wiring import Services
from tests.adding import new_machine, use_hub
from tests.commands import ivmix_here
from tests.fake_hub import Hub, serve_hub
from tests.processes import clean_environment, wait_for
from tests.tiny_models import ENTRY, save_model

REPO = "owner/tiny-modelscope"
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "image_unet", "image_tokenizer", "image_text_encoder")
BIG = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as served:
        yield served


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole model as its repository has it, with files that are not needed."""
    folder = tmp_path_factory.mktemp("repo")
    save_model("modelscope", folder)
    content = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    del content["models.toml"]
    return content | {"README.md": b"# tiny", "unet/diffusion_pytorch_model.bin": b"pickle", "big.ckpt": b"pickle"}


class Machine:
    """A user's machine: a registry file, a folder for weights, and the command line."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.registry_file, self.weights_dir = folder, folder / "models.toml", folder / "weights"
        self.environment = {
            **clean_environment(),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",
            "IVMIX_MODELS_FILE": str(self.registry_file),
            "IVMIX_WEIGHTS_DIR": str(self.weights_dir),
        }

    def register(self, *source: str) -> None:
        components = "\n".join(f'{name} = "tiny/{name}"' for name in PARTS)
        entry = ENTRY.format(family="modelscope").replace('path = "."\n', "")
        text = f'[models.tiny]{entry}\n[models.tiny.components]\n{components}\n[sources.tiny]\nrepo = "{REPO}"\n'
        self.registry_file.write_text(text + "\n".join(source))

    def process(self, *arguments: str) -> tuple[int, str]:
        ran = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=240
        )
        return ran.returncode, ran.stdout + ran.stderr

    def ivmix(self, *arguments: str) -> tuple[int, str]:
        """The same in this process, which has imported the hub's client and torch already."""
        ran = ivmix_here("models", *arguments, cwd=self.folder, environment=self.environment)
        return ran.returncode, ran.stdout + ran.stderr

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "service.cli", "models", *arguments]

    def registry(self) -> ModelRegistry:
        return ModelRegistry.load(self.registry_file, weights_dir=self.weights_dir)

    def file(self, name: str) -> Path:
        root = self.registry().known["tiny"].all_components["unet"].root
        assert root is not None
        return root / name


@pytest.fixture
def machine(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    use_hub(hub, monkeypatch)
    with new_machine(tmp_path, monkeypatch):  # for commands in this process
        yield Machine(tmp_path, hub)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pins(files: dict[str, bytes], **wrong: str) -> str:
    wanted = {
        name: sha256(data) for name, data in files.items() if name.startswith(PARTS) and not name.endswith(".bin")
    }
    lines = (f'"{name}" = "{value}"' for name, value in (wanted | wrong).items())
    return "\n".join(["[sources.tiny.sha256]", *lines])


def test_pinned_model_is_fetched_verified_and_makes_a_clip(machine: Machine, hub: Hub, files: dict[str, bytes]) -> None:
    revision = hub.commit(REPO, files)
    hub.commit(REPO, {"README.md": b"the branch has moved on"})
    machine.register(f'revision = "{revision}"', pins(files))
    with pytest.raises(ModelNotFetched, match="ivmix models fetch tiny"):
        machine.registry().get("tiny")
    code, said = machine.process("fetch", "tiny")
    assert (code, "tiny is ready" in said) == (0, True), said
    names = {path.partition(f"/resolve/{revision}/")[2] for path, _ in hub.downloads()}
    assert BIG in names
    assert not [name for name in names if name.endswith((".bin", ".ckpt", ".md"))]
    assert machine.file(BIG).read_bytes() == files[BIG]
    code, said = machine.ivmix("verify", "tiny")
    assert code == 0, said
    assert "unet: OK (sha256 of 2 files, names, shapes and values of all weights)" in said
    import torch

    from worker.child.engine import Engine

    entry = machine.registry().get("tiny")
    request = VideoRequest(prompt="a red circle", num_frames=2, num_inference_steps=2)
    assert Engine(entry, torch.device("cpu")).generate(entry.resolve(request)).frames.shape == (2, 32, 32, 3)


def test_unpinned_model_is_trusted_once_and_then_held_to_what_came(
    machine: Machine, hub: Hub, files: dict[str, bytes]
) -> None:
    revision = hub.commit(REPO, files)
    machine.register('revision = "unpinned"', 'sha256 = "unknown"')
    code, said = machine.ivmix("fetch", "tiny")
    assert code == 0, said
    assert f"{BIG}: sha256 {sha256(files[BIG])} recorded (trust on first use)" in said
    lock = (machine.weights_dir / LOCK_FILE).read_text()
    assert revision in lock
    assert sha256(files[BIG]) in lock
    hub.commit(REPO, {**files, BIG: b"something else"})
    before = len(hub.downloads())
    assert machine.ivmix("fetch", "tiny")[0] == 0  # stays with the commit it had, and has all of it
    assert len(hub.downloads()) == before
    assert machine.file(BIG).read_bytes() == files[BIG]


def test_fetched_model_is_in_the_audit_log_once(
    machine: Machine, hub: Hub, files: dict[str, bytes], services: Services
) -> None:
    machine.environment["IVMIX_REDIS_URL"] = services.redis_url
    machine.register(f'revision = "{hub.commit(REPO, files)}"', pins(files))
    for _ in range(2):  # the second one finds all of it here
        assert machine.ivmix("fetch", "tiny")[0] == 0
    (entry,) = services.audit.newest_first()
    assert (entry.action, entry.target) == ("model.fetched", "tiny")


def test_one_unknown_file_among_pinned_ones_is_fetched_and_recorded(
    machine: Machine, hub: Hub, files: dict[str, bytes]
) -> None:
    config = "unet/config.json"
    revision = hub.commit(REPO, files)
    machine.register(f'revision = "{revision}"', pins(files, **{config: "unknown"}))
    code, said = machine.ivmix("fetch", "tiny")
    assert code == 0, said
    assert [line.strip() for line in said.splitlines() if "trust on first use" in line] == [
        f"{config}: sha256 {sha256(files[config])} recorded (trust on first use)"
    ]
    machine.file(config).write_bytes(files[config].replace(b"{", b"[", 1))
    code, said = machine.ivmix("verify", "tiny")
    assert (code, f"expected {sha256(files[config])}" in said) == (1, True), said


def test_file_that_is_not_what_the_registry_says_is_thrown_away(
    machine: Machine, hub: Hub, files: dict[str, bytes]
) -> None:
    """The hub reports the sha256 of weights, so a wrong one is not even fetched; a small file is read."""
    revision = hub.commit(REPO, files)
    for name, said_of_it in ((BIG, "not fetched"), ("unet/config.json", "deleted")):
        machine.register(f'revision = "{revision}"', pins(files, **{name: "0" * 64}))
        code, said = machine.ivmix("fetch", "tiny")
        assert code == 1
        assert f"{name} at {revision} has sha256 {sha256(files[name])}, expected {'0' * 64}; {said_of_it}" in said
    assert not list(machine.weights_dir.rglob("unet/config.json*"))
    assert machine.registry().ids() == ()


def test_commit_that_is_gone_is_said(machine: Machine, hub: Hub, files: dict[str, bytes]) -> None:
    hub.commit(REPO, files)
    machine.register(f'revision = "{"a" * 40}"', pins(files))
    code, said = machine.ivmix("fetch", "tiny")
    assert code == 1
    assert f"{REPO} no longer has commit {'a' * 40}" in said


def test_hub_that_gives_another_commit_is_not_believed(machine: Machine, hub: Hub, files: dict[str, bytes]) -> None:
    revision = hub.commit(REPO, files)
    machine.register(f'revision = "{"b" * 40}"', 'sha256 = "unknown"')
    hub.answers_with = revision
    code, said = machine.ivmix("fetch", "tiny")
    assert code == 1
    assert f"asked for commit {'b' * 40}, the hub returned {revision}" in said


def test_repository_that_does_not_exist_is_said(machine: Machine) -> None:
    machine.register('sha256 = "unknown"')
    code, said = machine.ivmix("fetch", "tiny")
    assert (code, f"{REPO} is not on the hub, or needs HF_TOKEN" in said) == (1, True)


def test_repository_with_other_variants_only_is_refused_with_their_name(
    machine: Machine, hub: Hub, files: dict[str, bytes]
) -> None:
    hub.commit(REPO, {name.replace("model.safe", "model.fp16.safe"): data for name, data in files.items()})
    machine.register('sha256 = "unknown"')
    code, said = machine.ivmix("fetch", "tiny")
    assert (code, 'as variant fp16 only; add variant = "fp16" to its source' in said.replace("\n", " ")) == (1, True), (
        said
    )


def test_repository_with_pickles_only_is_refused_and_says_so(
    machine: Machine, hub: Hub, files: dict[str, bytes]
) -> None:
    hub.commit(REPO, {name: data for name, data in files.items() if name != BIG})
    machine.register('sha256 = "unknown"')
    code, said = machine.ivmix("fetch", "tiny")
    assert code == 1
    assert "has only pickles (unet/diffusion_pytorch_model.bin), which run code" in said
    assert not list(machine.weights_dir.rglob("*.bin"))


def test_download_that_is_killed_goes_on_where_it_was(machine: Machine, hub: Hub, files: dict[str, bytes]) -> None:
    """The library writes in pieces of 10 MB, so the file has to be larger than one."""
    large = bytes(range(256)) * (25 * 2**20 // 256)
    hub.commit(REPO, {**files, BIG: large})
    machine.register('sha256 = "unknown"')
    hub.hold_after[BIG] = len(large) // 2

    def begun() -> int | None:
        parts = machine.weights_dir.rglob("unet/*.safetensors.part")
        return next((size for part in parts if part.parent.name == "unet" and (size := part.stat().st_size)), None)

    process = subprocess.Popen(machine.command("fetch", "tiny"), env=machine.environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(begun, timeout_s=120)
    finally:
        process.kill()
        process.wait(30)
        hub.release.set()
    there = begun()  # only now: the download went on until it was killed
    assert machine.registry().ids() == ()  # half a model is no model
    code, said = machine.ivmix("fetch", "tiny")
    assert code == 0, said
    ranges = [sent for path, sent in hub.downloads() if path.endswith(f"/{BIG}") and "image" not in path]
    assert ranges == [None, f"bytes={there}-"]
    assert machine.file(BIG).read_bytes() == large
    assert not list(machine.weights_dir.rglob("*.part"))


@pytest.mark.slow
def test_weights_that_changed_on_disk_are_found_by_verify_and_refused_by_the_worker(
    machine: Machine, hub: Hub, files: dict[str, bytes]
) -> None:
    hub.commit(REPO, files)
    machine.register('sha256 = "unknown"')
    assert machine.ivmix("fetch", "tiny")[0] == 0
    file = machine.file(BIG)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, said = machine.ivmix("verify", "tiny")
    assert code == 1
    assert f"{file} has sha256 {sha256(bytes(data))}, expected {sha256(files[BIG])}" in said.replace("\n", " ")
    from worker.networks.loading import load

    with pytest.raises(ConfigurationError, match="expected"):
        load(machine.registry().get("tiny"), "cpu")
    file.unlink()
    assert machine.registry().ids() == ()
    assert machine.ivmix("fetch", "tiny")[0] == 0
    assert machine.registry().ids() == ("tiny",)


def test_list_says_what_is_here(machine: Machine, hub: Hub, files: dict[str, bytes]) -> None:
    hub.commit(REPO, files)
    machine.register('sha256 = "unknown"')
    assert machine.ivmix("list")[1].splitlines()[1].split()[:4] == ["tiny", "modelscope", "no", "no"]
    assert machine.ivmix("fetch", "tiny")[0] == 0
    assert machine.ivmix("list")[1].splitlines()[1].split()[:4] == ["tiny", "modelscope", "yes", "yes"]
