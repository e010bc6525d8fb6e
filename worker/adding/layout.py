"""Which parts of a model a folder or hub repository in the diffusers layout has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from service.catalog.family_components import COGVIDEOX, SDXL, SPARSE_CONTROL, WAN, Family
from service.catalog.weight_files import PICKLE_SUFFIXES, Component, Source
from service.errors import ConfigurationError
from worker.adding.configs import read_json
from worker.adding.weights_file import SD_MOTION, SDXL_MOTION, WeightsFile, check_family, refuse_pickle

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": "animatediff",
    "StableDiffusionImg2ImgPipeline": "animatediff",
    "AnimateDiffPipeline": "animatediff",
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusionXLImg2ImgPipeline": SDXL,
    "AnimateDiffSDXLPipeline": SDXL,
    "TextToVideoSDPipeline": "modelscope",
    "VideoToVideoSDPipeline": "modelscope",
    "VideoCrafterPipeline": "videocrafter",
    "WanPipeline": WAN,
    "WanVideoToVideoPipeline": WAN,
    "WanImageToVideoPipeline": WAN,
    "CogVideoXPipeline": COGVIDEOX,
    "CogVideoXVideoToVideoPipeline": COGVIDEOX,
}
# Parts of class names -> why such a folder is refused.
REFUSED = {
    "Inpaint": "its UNet also takes an image and a mask, which no sampler here gives; use the text-to-image version",
    "InstructPix2Pix": "its UNet also takes an image, which no sampler here gives; use the text-to-image version",
    "AnimateDiffSparseControlNet": (
        "its UNet has the motion modules merged into it; give the folder of the image model, the motion modules with "
        "--motion-adapter, and its controlnet folder with --sparse-control"
    ),
    "SparseControlNet": "it is a SparseCtrl network; give it with --sparse-control",
    "ControlNet": "ControlNets are not supported",
    "CogVideoXImageToVideo": "its transformer also takes an image; use the text-to-video version",
    "CogVideoXFun": "its transformer also takes a control clip; use the text-to-video version",
    "WanVACE": "its transformer also takes a clip and a mask; use the text-to-video version",
    "WanAnimate": "its transformer also takes a pose and a face; use the text-to-video version",
    "AutoencoderKL": "it is a VAE; give it with --vae",
    "MotionAdapter": "it is a motion adapter; give it with --motion-adapter",
    "UNetMotionModel": (
        "its UNet has the motion modules merged into it; give the folder of the image model, and the motion modules "
        "with --motion-adapter"
    ),
    "CLIPText": "it is a text encoder; give the folder of the whole model",
}
CLASSES = {"vae": "AutoencoderKL", "motion_adapter": "MotionAdapter", SPARSE_CONTROL: "SparseControlNetModel"}
SDXL_SCALING, SD_SCALING = 0.13025, 0.18215  # of autoencoders
REFINER_TEXT_WIDTH = 1280  # of the embeddings that the UNet of SDXL's refiner reads
WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")


class Part(NamedTuple):
    """Where a component is: a source, and the folder or file in it."""

    source: Source
    inside: str


@dataclass(frozen=True)
class Tree:
    """The files of a folder on this machine, or of a repository at one commit.

    `where` names it in messages, `spec` on the command line; `names` are relative, those of a folder two levels deep;
    `read` returns the content of a JSON file, `header` that of a safetensors file.
    """

    where: str
    spec: str
    source: Source
    names: frozenset[str]
    read: Callable[[str], dict[str, Any]]
    header: Callable[[str], WeightsFile]

    @classmethod
    def of_folder(cls, folder: Path) -> Tree:
        """Raises ConfigurationError if the folder cannot be read."""
        try:
            files = [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.is_file()]
        except OSError as e:
            raise ConfigurationError(f"{folder} cannot be read: {e.strerror}") from e
        names = frozenset(file.relative_to(folder).as_posix() for file in files)
        resolved = folder.resolve()

        def header(name: str) -> WeightsFile:
            return WeightsFile.read(resolved / name)

        return cls(
            str(folder), str(folder), Source(folder=resolved), names, lambda name: read_json(folder / name), header
        )

    def json(self, name: str) -> dict[str, Any]:
        return self.read(name) if name in self.names else {}

    def file(self, name: str) -> WeightsFile:
        """A file that the user named. Raises ConfigurationError if it is missing or a pickle."""
        if name not in self.names:
            there = ", ".join(sorted(n for n in self.names if n.endswith(".safetensors"))[:5]) or "no safetensors"
            raise ConfigurationError(f"{self.where} has no {name}; it has {there}")
        if name.endswith(PICKLE_SUFFIXES):
            raise ConfigurationError(
                f"{self.spec}/{name} is a pickle, which can run code when it is loaded; only safetensors are. "
                "Download it and name the file: ivmix then says how to convert it"
            )
        return self.header(name)

    def inside(self, folder: str) -> list[str]:
        """Names of the files in a folder; "" is the root."""
        return sorted(name.rpartition("/")[2] for name in self.names if name.rpartition("/")[0] == folder)

    def part(self, name: str, folder: str, variant: str | None) -> Part | None:
        """The component `name` in `folder`, in its only variant or the wanted one; None if it has no files.

        Raises ConfigurationError if it has only pickles, or several variants and none of them is wanted.
        """
        files = self.inside(folder)
        source = self.source
        if Component(name=name, source=source, inside=folder, root=None).has_weights:
            variants = {found["variant"] for file in files if (found := WEIGHTS.fullmatch(file))}
            if not variants:
                self._refuse_pickles(name, folder, files)
                return None
            source = source.model_copy(update={"variant": self._variant(name, variants, variant)})
        component = Component(name=name, source=source, inside=folder, root=None)
        prefix = f"{folder}/" if folder else ""
        return Part(source, folder) if any(component.has_file(prefix + file) for file in files) else None

    def _variant(self, name: str, variants: set[str | None], wanted: str | None) -> str | None:
        if wanted in variants:
            return wanted
        if None in variants:
            return None
        if len(variants) == 1:
            return variants.pop()
        names = ", ".join(sorted(filter(None, variants)))
        raise ConfigurationError(f"{self.where} has {name} in variants {names}; choose one with --variant")

    def _refuse_pickles(self, name: str, folder: str, files: list[str]) -> None:
        pickles = [file for file in files if file.endswith(PICKLE_SUFFIXES)]
        others = sorted(name for name in self.names if name.endswith(".safetensors"))
        if not pickles or (not folder and others):  # one of those may be meant
            return
        if self.source.folder is not None:
            refuse_pickle(self.source.folder / folder / pickles[0])
        single = next((other for other in others if "/" not in other), None)
        raise ConfigurationError(
            f"{self.where} has {name} only as pickles ({', '.join(pickles)}), which can run code when they are loaded; "
            "name another revision with owner/repo@REVISION, or another repository"
            + (f", or a file of this one: {self.spec}/{single}" if single else "")
        )

    def parts(self, names: Iterable[str], variant: str | None, prefix: str = "") -> dict[str, Part]:
        """Those of the components that exist; `prefix` is put before their names."""
        found = {prefix + name: self.part(name, name, variant) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    def only(self, name: str, variant: str | None, family: Family) -> Part:
        """One component, from the root or from its folder. Raises ConfigurationError."""
        found = self.find(name, variant, family)
        if found is None:
            raise ConfigurationError(f"{self.where} has no {name}: neither config.json with weights, nor {name}/")
        return found

    def find(self, name: str, variant: str | None, family: Family) -> Part | None:
        """The same; None if it is not there."""
        found = self.part(name, name, variant)
        if found is None and (name == "tokenizer" or "config.json" in self.names):
            found = self.part(name, "", variant)
        if found is None:
            return None
        config = self.json(f"{found.inside}/config.json" if found.inside else "config.json")
        kind, expected = _shown(config.get("_class_name")), CLASSES.get(name)
        if kind and expected and kind != expected:
            raise ConfigurationError(f"{self.where} is a {kind}; {name} must be of class {expected}")
        check_family(self.where, _is_sdxl(name, config), family)
        return found


def has_layout(tree: Tree) -> bool:
    """Whether it is a model, or one of its networks, in the diffusers layout; else it may hold single files."""
    named = tree.json("model_index.json").get("_class_name") or tree.json("config.json").get("_class_name")
    return bool(named) or "unet/config.json" in tree.names or "down_block_types" in tree.json("config.json")


def refuse_other_models(tree: Tree) -> str:
    """The class of a pipeline's or network's folder. Raises ConfigurationError for those that cannot be used."""
    kind = _shown(tree.json("model_index.json").get("_class_name") or tree.json("config.json").get("_class_name"))
    unet = tree.json("unet/config.json")
    for name in (kind, _shown(unet.get("_class_name"))):
        for part, reason in REFUSED.items():
            if part in name:
                raise ConfigurationError(f"{tree.where} is a {name}: {reason}")
    if unet.get("addition_embed_type") == "text_time" and unet.get("cross_attention_dim") == REFINER_TEXT_WIDTH:
        raise ConfigurationError(
            f"{tree.where} is SDXL's refiner: it refines the images of another model; use a base model, or a fine-tune "
            "of one"
        )
    return kind


def guess_family(tree: Tree, kind: str) -> Family:
    """Raises ConfigurationError if the configs do not show it."""
    config = tree.json("unet/config.json") or tree.json("config.json")
    if config.get("fps_cond"):
        return "videocrafter"
    if config.get("addition_embed_type") == "text_time":
        return SDXL
    blocks = str(config.get("down_block_types"))
    by_blocks: Family | None = "modelscope" if "3D" in blocks else "animatediff" if "2D" in blocks else None
    family = FAMILIES.get(kind) or by_blocks
    if family is None:
        raise ConfigurationError(
            f"{tree.where} is a {kind or 'model'} whose family cannot be read from its configs; name it with --family "
            "animatediff, animatediff-sdxl, modelscope, videocrafter, wan or cogvideox"
        )
    return family


def is_sdxl(tree: Tree) -> bool | None:
    """Whether a model or UNet is of SDXL; None: there is no config that says so."""
    config = tree.json("unet/config.json") or tree.json("config.json")
    return _is_sdxl("unet", config) if config else None


def _is_sdxl(name: str, config: dict[str, Any]) -> bool | None:
    """Whether a component is of SDXL; None: its config does not say so."""
    widths = config.get("block_out_channels")
    match name:
        case "unet":
            return config.get("addition_embed_type") == "text_time"
        case "vae":
            return {SDXL_SCALING: True, SD_SCALING: False}.get(config.get("scaling_factor", 0))
        case "motion_adapter" if widths in (SDXL_MOTION, SD_MOTION):
            return widths == SDXL_MOTION
        case _:
            return None


def _shown(name: object) -> str:
    """A class name; a hub could send anything."""
    return "".join(letter for letter in str(name or "") if letter.isalnum() or letter == "_")[:80]
