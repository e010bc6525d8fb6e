"""Which file of a folder or repository without the diffusers layout is taken, and how people name one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.errors import ConfigurationError
from tests.unit.worker.test_weights_file import ACCEPTED, REFUSED
from worker.adding.hub_spec import HubSpec
from worker.adding.layout import Tree, has_layout
from worker.adding.single_files import MAX_CANDIDATES, single_file
from worker.adding.weights_file import CHECKPOINT, INVERSION, LORA, MOTION, VAE

KINDS = {"sd1": CHECKPOINT, "v3": MOTION, "vae": VAE, "kohya": LORA, "embedding": INVERSION}


def tree(folder: Path, files: dict[str, str]) -> Tree:
    """Kinds of `test_weights_file`, or texts, by the name of the file."""
    for name, kind in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        shapes = ACCEPTED[kind][1] if kind in ACCEPTED else REFUSED[kind][0] if kind in REFUSED else None
        if shapes is None:
            file.write_text(kind)
        else:
            save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, file)
    return Tree.of_folder(folder)


def test_the_only_file_of_a_kind_is_taken(tmp_path: Path) -> None:
    found = tree(tmp_path, {f"folder/{kind}.safetensors": kind for kind in KINDS} | {"sd.ckpt": "never read"})
    assert not has_layout(found)
    for name, kind in KINDS.items():
        assert single_file(found, kind, None)[0].path == tmp_path / f"folder/{name}.safetensors"


@pytest.mark.parametrize(
    ("names", "wanted", "taken"),
    [
        (("sd", "sd.fp16"), None, "sd"),
        (("sd", "sd.fp16"), "fp16", "sd.fp16"),
        (("sd", "sd-fp16"), "other", "sd"),
        (("sd_fp16",), None, "sd_fp16"),
        (("sd.bf16", "sd.mine"), "mine", "sd.mine"),
    ],
)
def test_variants(tmp_path: Path, names: tuple[str, ...], wanted: str | None, taken: str) -> None:
    found = tree(tmp_path, {f"{name}.safetensors": "sd1" for name in names})
    file, variant = single_file(found, CHECKPOINT, wanted)
    assert file.path.stem == taken
    assert variant == (None if taken == "sd" else taken[3:])


MANY = {f"a{number:02}.safetensors": "sd1" for number in range(MAX_CANDIDATES + 1)}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"sd.safetensors": "sd1", "other.safetensors": "unet", "mm.safetensors": "v3"},
            r"has 2 files for --from or --image-model: other\.safetensors, sd\.safetensors; name one, such as .*/oth",
        ),
        (MANY, r"has 51 files for .*a07\.safetensors and 43 more; name one"),
        ({"sd.fp16.safetensors": "sd1", "sd.ema.safetensors": "sd1"}, "variants ema, fp16; choose one with --var"),
        ({"a.safetensors": "kohya", "adapter_config.json": "{}"}, "is a LoRA, not a checkpoint; give it with --lora"),
        ({"a.safetensors": "flux"}, "diffusion transformer"),
        ({"sd.ckpt": "pickle"}, "is a pickle, .* This converts it"),
        ({"notes.txt": "text"}, r"has no checkpoint: neither the diffusers layout nor .*, only notes\.txt"),
        ({}, "only no files"),
    ],
)
def test_refusals(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        single_file(tree(tmp_path, files), CHECKPOINT, None)


def hubs() -> frozenset[str]:
    return frozenset({"hub.test"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repo", HubSpec("owner/repo")),
        ("owner/repo@refs/pr/1", HubSpec("owner/repo", "refs/pr/1")),
        ("owner/repo@feature/x", HubSpec("owner/repo", "feature/x")),
        ("owner/repo/a.safetensors", HubSpec("owner/repo", None, "a.safetensors")),
        ("owner/repo@v1.5/sub/a b.ckpt", HubSpec("owner/repo", "v1.5", "sub/a b.ckpt")),
        ("owner/repo@refs/pr/1/a.safetensors", HubSpec("owner/repo", "refs/pr/1", "a.safetensors")),
        ("https://hub.test/owner/repo", HubSpec("owner/repo")),
        ("https://hub.test/owner/repo/tree/main", HubSpec("owner/repo", "main")),
        ("https://hub.test/owner/repo/blob/refs%2Fpr%2F1/a.pt", HubSpec("owner/repo", "refs/pr/1", "a.pt")),
        (
            "https://hub.test/owner/repo/resolve/main/sub/a%20b.safetensors?download=true",
            HubSpec("owner/repo", "main", "sub/a b.safetensors"),
        ),
        ("owner", None),
        ("models/sd.safetensors", None),
        ("/data/models/sd.safetensors", None),
        ("owner/repo/folder", None),
        ("./folder", None),
        ("../folder", None),
        ("./sub/sd.safetensors", None),
    ],
)
def test_how_people_name_a_repository(text: str, expected: HubSpec | None) -> None:
    assert HubSpec.parse(text, hubs) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://other.test/models/1", r"is not on the hub \(hub\.test\); download the file and name it"),
        ("https://hub.test/owner/repo/blob/main/README.md", "neither a repository nor a file of weights"),
        ("https://hub.test/datasets", "neither a repository"),
    ],
)
def test_other_pages_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        HubSpec.parse(url, hubs)
