"""Finds every component of a new model in what the user named, and what has to be converted for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from service.catalog.family_components import (
    OPTIONAL_COMPONENTS,
    REQUIRED_COMPONENTS,
    SDXL,
    SDXL_TEXT,
    SPARSE_CONTROL,
    TEXT,
    WAN,
    Family,
    has_motion_adapter,
)
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import Component, Source
from service.errors import ConfigurationError
from worker.adding.adapters import SCALE, named_lora, selectable_lora
from worker.adding.configs import Prediction, checkpoint_configs, motion_config, vae_config
from worker.adding.distilled import is_lcm
from worker.adding.hub_spec import HubSpec, is_url
from worker.adding.layout import Part, Tree, guess_family, has_layout, is_sdxl, refuse_other_models
from worker.adding.repository import hub_hosts, open_repo
from worker.adding.single_files import single_file
from worker.adding.sparse_control_config import sparse_control_config
from worker.adding.tokenizers import PADDING, PADDING_2, copy_tokenizer, find_tokenizer
from worker.adding.weights_file import CHECKPOINT, INVERSION, LORA, MOTION, SPARSE, VAE, WeightsFile, check_family

ADAPTERS: dict[Family, str] = {  # what to use
    "animatediff": "guoyww/animatediff-motion-adapter-v1-5-3",
    SDXL: "guoyww/animatediff-motion-adapter-sdxl-beta",
}
WAYS_OUT = {
    "vae": "--vae",
    "image_unet": "--image-model, such as stable-diffusion-v1-5/stable-diffusion-v1-5",
    "tokenizer": "--tokenizer",
}


@dataclass(frozen=True)
class Given:
    """The options of `ivmix models add`."""

    name: str
    source: str
    family: Family | None = None
    motion_adapter: str | None = None
    image_model: str | None = None
    vae: str | None = None
    tokenizer: Path | None = None
    config: Path | None = None
    base: str | None = None
    loras: tuple[str, ...] = ()
    selectable_loras: tuple[str, ...] = ()
    inversions: tuple[str, ...] = ()
    variant: str | None = None
    prediction: Prediction | None = None
    distilled: str | None = None
    sparse_control: str | None = None


@dataclass(frozen=True)
class Conversion:
    """Writes files into the new model's folder. `size` is how many bytes at most."""

    what: str
    size: int
    run: Callable[[], None]


@dataclass
class Gathering:
    """What was found so far.

    Args:
        folder: where conversions write; made when the first one runs.
        weights_dir: where files of hubs are fetched to.
        downloads: files of hubs that conversions read.
        settings: keys of the entry that the model's own files decide.
        family: of the video model, once that is found.
    """

    given: Given
    registry: ModelRegistry
    folder: Path
    weights_dir: Path
    parts: dict[str, Part] = field(default_factory=dict)
    downloads: list[Component] = field(default_factory=list)
    conversions: list[Conversion] = field(default_factory=list)
    adapters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    family: Family = "animatediff"
    _file_variants: set[str | None] = field(default_factory=set)

    def run(self) -> Family:
        """Find all components. Raises ConfigurationError naming the option or file that helps; converts nothing."""
        self.family = family = self._video_model()
        if self.given.vae:
            self._one("vae", self.given.vae, VAE)
        if self.given.motion_adapter:
            self._one("motion_adapter", self.given.motion_adapter, MOTION)
        if self.given.sparse_control:
            self._one(SPARSE_CONTROL, self.given.sparse_control, SPARSE)
        if self.given.image_model:
            self._image_model(self.given.image_model)
        if self.given.tokenizer:
            self.parts["tokenizer"] = Tree.of_folder(self.given.tokenizer).only("tokenizer", None, family)
        self._adapters()
        known = {*REQUIRED_COMPONENTS[family], *OPTIONAL_COMPONENTS[family]}
        if unknown := sorted(set(self.parts) - known):
            raise ConfigurationError(f"family {family} takes no {', '.join(unknown)}; leave out that option")
        wanted = self.given.variant
        if wanted and wanted not in self._file_variants | {part.source.variant for part in self.parts.values()}:
            raise ConfigurationError(f"--variant {wanted}: no component has weights of this variant")
        self._from_base(family)
        if missing := [name for name in REQUIRED_COMPONENTS[family] if name not in self.parts]:
            ways_out = WAYS_OUT | {"motion_adapter": f"--motion-adapter, such as {ADAPTERS.get(family)}"}
            hints = [f"{name} (name it with {ways_out[name]})" if name in ways_out else name for name in missing]
            raise ConfigurationError(
                f"{self.given.source} has no {', '.join(hints)}; --base MODEL takes what is missing from another model"
            )
        return family

    def _video_model(self) -> Family:
        found = self._open_model(self.given.source)
        if isinstance(found, WeightsFile):
            family = SDXL if found.require(CHECKPOINT).is_sdxl else "animatediff"
            if not has_motion_adapter(self.given.family or family):
                raise ConfigurationError(
                    f"{found.where} is an image model, of which only family {family} makes a video model; give it with "
                    "--image-model"
                )
            check_family(found.where, found.is_sdxl, self.given.family or family)
            names = [*_image_parts(family), *([] if self.given.vae else ["vae"])]
            self._convert_checkpoint(found, names, prefix="")
            return family
        kind = refuse_other_models(found)
        family = self.given.family or guess_family(found, kind)
        check_family(found.where, is_sdxl(found), family)
        names = (*REQUIRED_COMPONENTS[family], *OPTIONAL_COMPONENTS[family])
        self.parts |= found.parts(names, self.given.variant)
        if "unet" not in self.parts and "config.json" in found.names:
            self.parts["unet"] = found.only("unet", self.given.variant, family)
        self._read_index(found, family)
        return family

    def _read_index(self, tree: Tree, family: Family) -> None:
        """What model_index.json says that no component's config does. Raises ConfigurationError."""
        index = tree.json("model_index.json")
        if index.get("force_zeros_for_empty_prompt") is False and family == SDXL:
            self.settings["force_zeros_for_empty_prompt"] = False
        if family != WAN:
            return
        if isinstance(boundary := index.get("boundary_ratio"), float):
            self.settings["boundary_ratio"] = boundary
        if index.get("expand_timesteps"):
            self.settings["image_conditioning"] = "tokens"
        elif index.get("_class_name") == "WanImageToVideoPipeline":
            self.settings["image_conditioning"] = "channels"

    def _image_model(self, spec: str) -> None:
        found = self._open_model(spec)
        if isinstance(found, WeightsFile):
            file = found.require(CHECKPOINT).for_family(self.family)
            return self._convert_checkpoint(file, _image_parts(self.family), prefix="image_")
        refuse_other_models(found)
        check_family(found.where, is_sdxl(found), self.family)
        self.parts |= found.parts(_image_parts(self.family), self.given.variant, prefix="image_")
        if "image_unet" not in self.parts:
            self.parts["image_unet"] = found.only("unet", self.given.variant, self.family)
        return None

    def _convert_checkpoint(self, file: WeightsFile, names: list[str], prefix: str) -> None:
        """Its components; --base gives those that it has been stripped of."""
        configs = checkpoint_configs(file, self.given.config, self.given.prediction)
        absent = [name for name, start in file.prefixes.items() if not file.has(f"^{re.escape(start)}")]
        absent += [name.replace("text_encoder", "tokenizer") for name in absent]
        targets = {name: self._target(prefix + name) for name in names if name not in absent}
        tokenizers = {name: targets.pop(name) for name in list(targets) if name.startswith("tokenizer")}
        for name, target in tokenizers.items():
            if prefix or name == "tokenizer_2" or not self.given.tokenizer:
                self._copy_tokenizer(file, name, target)

        def convert() -> None:
            from worker.networks.convert import convert_checkpoint

            convert_checkpoint(file.path, targets, configs, file.prefixes)

        self._convert(file, ", ".join(targets), convert)

    def _copy_tokenizer(self, file: WeightsFile, name: str, target: Path) -> None:
        own = self.given.config / name if self.given.config else None
        is_second, padding = name == "tokenizer_2", None
        if self.given.tokenizer:
            own, padding = self.given.tokenizer, PADDING_2 if is_second else None
        words = file.vocabulary(name.replace("tokenizer", "text_encoder"))
        if own is None or not own.is_dir():
            own = find_tokenizer(self.registry.known.values(), words or 0)
            padding = PADDING_2 if is_second else PADDING.get(file.text_width or 0)
        if own is None:
            raise ConfigurationError(
                f"{file.where} has no tokenizer, as all single files, and no model on this machine has one with "
                f"{words} tokens; name a folder with vocab.json and merges.txt with --tokenizer, or fetch a "
                "model that has one first: ivmix models fetch animatediff"
            )
        self.conversions.append(
            Conversion(f"copying the tokenizer in {own}", 10_000_000, partial(copy_tokenizer, own, target, padding))
        )

    def _one(self, name: str, spec: str, kind: str) -> None:
        """A component that the user named by itself."""
        found = self._open(spec)
        if isinstance(found, Tree):
            if (part := found.find(name, self.given.variant, self.family)) is not None:
                self.parts[name] = part
                return
            found = self._single_file(found, kind)
        file, target = found.require(kind).for_family(self.family), self._target(name)

        def convert() -> None:
            from worker.networks.convert import convert_motion_modules, convert_vae

            if kind == VAE:
                convert_vae(file.path, target, vae_config(self.given.config, self.family))
            else:
                config_of = sparse_control_config if kind == SPARSE else motion_config
                convert_motion_modules(file.path, target, config_of(file, self.given.config), name)

        self._convert(file, kind, convert)

    def _convert(self, file: WeightsFile, what: str, run: Callable[[], None]) -> None:
        """Convert a file, once it is here."""
        if file.remote is not None and file.remote not in self.downloads:
            self.downloads.append(file.remote)
        self.conversions.append(Conversion(f"converting {file.path.name}: {what}", file.size, run))

    def _target(self, name: str) -> Path:
        """The folder that a conversion writes the component to."""
        self.parts[name] = Part(Source(folder=self.folder), name)
        return self.folder / name

    def _adapters(self) -> None:
        loras = [self._adapter(spec, LORA, SCALE)[1:] for spec in self.given.loras]
        selectable = (named_lora(spec) for spec in self.given.selectable_loras)
        inversions = [self._adapter(spec, INVERSION, r"\S+") for spec in self.given.inversions]
        role = {"on": ["video"]} if is_lcm(self.given.distilled) else {}  # such a LoRA is a part of the distillation
        self.adapters = {
            "loras": [{"file": part, **({"scale": float(scale)} if scale else {}), **role} for part, scale in loras],
            "selectable_loras": [
                selectable_lora(name, *self._adapter(spec, LORA, SCALE), self.family) for name, spec in selectable
            ],
            "textual_inversions": [
                {"file": part, "token": token or f"<{'_'.join(Path(part.inside).stem.split())}>"}
                for _, part, token in inversions
            ],
        }

    def _adapter(self, spec: str, kind: str, suffix: str) -> tuple[WeightsFile, Part, str | None]:
        """A file of FILE or FILE:SUFFIX, on this machine or a hub, and where it is. Raises ConfigurationError."""
        split = re.fullmatch(rf"(.+):({suffix})", spec)
        if split and is_url(spec) and "/" in split[2]:  # the colon of https: or of a port
            split = None
        readings = [(spec, None), *([(split[1], split[2])] if split else [])]
        for name, value in readings:
            path = Path(name).expanduser().resolve()
            if path.is_file():
                file = WeightsFile.read(path).require(kind).for_family(self.family)
                return file, Part(Source(folder=path.parent), path.name), value
        name, value = readings[-1]
        if Path(name).expanduser().exists() or HubSpec.parse(name, hub_hosts) is None:
            raise ConfigurationError(f"{spec}: there is no file {Path(name).expanduser()}")
        found = self._open(name)
        file = self._single_file(found, kind) if isinstance(found, Tree) else found.require(kind)
        file.for_family(self.family)
        assert file.remote is not None
        return file, Part(file.remote.source, file.remote.inside), value

    def _from_base(self, family: Family) -> None:
        if self.given.base is None:
            return
        entry = self.registry.entry(self.given.base)
        required = REQUIRED_COMPONENTS[family]
        needs_image_model = "image_unet" in required and "image_unet" not in self.parts
        for name in (*required, *OPTIONAL_COMPONENTS[family]) if needs_image_model else required:
            if name in entry.all_components and name not in self.parts:
                component = entry.all_components[name]
                self.parts[name] = Part(component.source, component.inside)

    def _open_model(self, spec: str) -> WeightsFile | Tree:
        """A checkpoint in one file, or a folder or repository in the diffusers layout."""
        found = self._open(spec)
        return self._single_file(found, CHECKPOINT) if isinstance(found, Tree) and not has_layout(found) else found

    def _single_file(self, tree: Tree, kind: str) -> WeightsFile:
        file, variant = single_file(tree, kind, self.given.variant)
        self._file_variants.add(variant)
        return file

    def _open(self, spec: str) -> WeightsFile | Tree:
        """A file, a folder, or a repository. Raises ConfigurationError if it is none of them."""
        path = Path(spec).expanduser()
        if path.is_dir():
            return Tree.of_folder(path)
        if path.exists():
            return WeightsFile.read(path.resolve())
        if found := HubSpec.parse(spec, hub_hosts):
            try:
                tree = open_repo(found, self.weights_dir)
            except ConfigurationError as e:
                if found.file is None or is_url(spec):
                    raise
                raise ConfigurationError(f"there is no file {spec} on this machine, and {e.message}") from e
            return tree.file(found.file) if found.file else tree
        raise ConfigurationError(f"{spec} is neither a file or folder on this machine nor owner/repo[/FILE] of a hub")


def _image_parts(family: Family) -> list[str]:
    """The components of an image model that reads its own embeddings."""
    return ["unet", *(SDXL_TEXT if family == SDXL else TEXT), "scheduler"]
