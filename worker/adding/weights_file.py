"""Which kind of weights a safetensors file holds, from the names and shapes in its header. Reads no weights."""

from __future__ import annotations

import json
import re
import shlex
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from service.catalog.family_components import SDXL, Family
from service.catalog.weight_files import PICKLE_SUFFIXES, Component
from service.errors import ConfigurationError

SDXL_MOTION, SD_MOTION = [320, 640, 1280], [320, 640, 1280, 1280]  # widths of motion modules
MAX_SD_TEXT_WIDTH = 1024  # of the embeddings that UNets of Stable Diffusion 1 and 2 read
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_REMOTE_HEADER_BYTES = 25_000_000  # of a file on a hub: the hub client's limit
QUANTISED = {"F8_E4M3", "F8_E5M2", "I8", "U8"}
# Reads the tensors of a pickle without running its code. A checkpoint has them in state_dict, an embedding in
# string_to_param. Clones, because safetensors stores no tensor twice.
CONVERT = (
    "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], 'cpu', weights_only=True); "
    "w = w.get('state_dict', w.get('string_to_param', w)); "
    "s.save_file({k: v.detach().clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, sys.argv[2])"
)

CHECKPOINT, MOTION, VAE, LORA, INVERSION = "checkpoint", "motion modules", "VAE", "LoRA", "textual inversion"
SPARSE = "SparseCtrl"
OPTIONS = {
    CHECKPOINT: "--from or --image-model",
    MOTION: "--motion-adapter",
    SPARSE: "--sparse-control",
    VAE: "--vae",
    LORA: "--lora",
    INVERSION: "--textual-inversion",
}
UNET, TEXT, AUTOENCODER = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."
SDXL_TEXT, SDXL_TEXT_2 = "conditioner.embedders.0.", "conditioner.embedders.1."
# Names of the words in a text encoder, after its prefix: CLIP's and OpenCLIP's.
WORDS = "transformer.text_model.embeddings.token_embedding.weight", "model.token_embedding.weight"
_CONV_IN = f"{UNET}input_blocks.0.0.weight"
_MOTION_WIDTHS = r"^(?:module\.)?down_blocks\.(\d+)\.motion_modules\.0\.(?:temporal_transformer\.)?norm\.weight$"
_ADAPTERS = r"lora_(down|up|A|B)\b|\.lora\.|\.alpha$|hada_w1|lokr_|dora_scale|_lora\."


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class WeightsFile:
    """The header of a safetensors file.

    Args:
        path: where it is on this machine, or will be once `remote` is fetched.
        size: of the file in bytes.
        remote: the file in a repository of a hub; None: it is here.
    """

    path: Path
    size: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: frozenset[str]
    remote: Component | None = None

    @classmethod
    def read(cls, path: Path) -> WeightsFile:
        """Raises ConfigurationError for a pickle or another file that is not in safetensors."""
        refuse_pickle(path)
        try:
            with path.open("rb") as stream:
                return cls.parse(stream, path.stat().st_size, path)
        except OSError as e:
            raise ConfigurationError(f"{path} cannot be read: {e.strerror}") from e

    @classmethod
    def parse(cls, stream: _Readable, size: int, path: Path, remote: Component | None = None) -> WeightsFile:
        """Reads no more than the header. Raises ConfigurationError if the stream is not in safetensors."""
        most = MAX_REMOTE_HEADER_BYTES if remote else MAX_HEADER_BYTES
        try:
            length = struct.unpack("<Q", stream.read(8))[0]
            header: dict[str, Any] = json.loads(stream.read(length)) if length <= most - 8 else {}
            tensors = {name: value for name, value in header.items() if name != "__metadata__"}
            end = max(value["data_offsets"][1] for value in tensors.values())
            if 8 + length + end != size:
                raise ValueError("cut off")
            shapes = {name: tuple(map(int, value["shape"])) for name, value in tensors.items()}
            return cls(path, size, shapes, frozenset(str(value["dtype"]) for value in tensors.values()), remote)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError, struct.error) as e:
            way_out = "download it again, or run `git lfs pull` in a clone" if remote is None else "name another one"
            raise ConfigurationError(
                f"{_shown(path, remote)} is not a safetensors file, or is cut off; {way_out}"
            ) from e

    @property
    def where(self) -> str:
        """Its name in messages."""
        return _shown(self.path, self.remote)

    @cached_property
    def names(self) -> str:
        """All names, one a line, for searching."""
        return "\n".join(self.shapes)

    def has(self, pattern: str) -> bool:
        return re.search(pattern, self.names, re.MULTILINE) is not None

    def width(self, name: str, axis: int) -> int | None:
        shape = self.shapes.get(name, ())
        return shape[axis] if len(shape) > 1 else None

    @property
    def text_width(self) -> int | None:
        """Width of the embeddings that the UNet of a checkpoint reads."""
        keys = (name for name in self.shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
        return next((self.width(name, 1) for name in keys), None)

    @property
    def prefixes(self) -> dict[str, str]:
        """What the weights of each component of a checkpoint are named with."""
        text = {"text_encoder": SDXL_TEXT, "text_encoder_2": SDXL_TEXT_2} if self.is_sdxl else {"text_encoder": TEXT}
        return {"unet": UNET, "vae": AUTOENCODER, **text}

    def vocabulary(self, encoder: str) -> int | None:
        """Number of tokens that a text encoder of a checkpoint knows."""
        return next((width for end in WORDS if (width := self.width(self.prefixes[encoder] + end, 0))), None)

    @property
    def motion_widths(self) -> list[int]:
        """Of the blocks of motion modules, from the first on."""
        found = {int(m[1]): shape[0] for name, shape in self.shapes.items() if (m := re.match(_MOTION_WIDTHS, name))}
        return [width for _, width in sorted(found.items())]

    @cached_property
    def is_sdxl(self) -> bool | None:
        """Whether it is for SDXL; None: a LoRA, a VAE or another file that does not say so."""
        if self.has(r"^conditioner\.embedders\.|^clip_g$") or (self.text_width or 0) > MAX_SD_TEXT_WIDTH:
            return True
        if _CONV_IN in self.shapes or self.has(r"^emb_params$"):
            return False
        return self.motion_widths == SDXL_MOTION if self.motion_widths in (SDXL_MOTION, SD_MOTION) else None

    def for_family(self, family: Family) -> WeightsFile:
        """Returns itself. Raises ConfigurationError if only one of file and family is of SDXL."""
        check_family(self.where, self.is_sdxl, family)
        return self

    def is_a(self, kind: str) -> bool:
        """Whether it is of this kind, and not one of those that are refused."""
        return self._recognised() == (kind, None)

    def require(self, kind: str) -> WeightsFile:
        """Returns itself if it is of this kind. Raises ConfigurationError that says what it is, and what to do."""
        found, reason = self._recognised()
        if reason is not None:
            raise ConfigurationError(f"{self.where} is {found}: {reason}")
        if found != kind:
            raise ConfigurationError(f"{self.where} is a {found}, not a {kind}; give it with {OPTIONS[found]}")
        if kind in (CHECKPOINT, MOTION, VAE, SPARSE) and (found_types := self.dtypes & QUANTISED):
            raise ConfigurationError(
                f"{self.where} has weights in {', '.join(sorted(found_types))}; use its version in float16, bfloat16 "
                "or float32"
            )
        return self

    def _recognised(self) -> tuple[str, str | None]:
        """The kind, and why it is refused if it is."""
        for name, reason, matches in _KINDS:
            if matches(self):
                return name, reason
        some = ", ".join(sorted(self.shapes)[:3]) or "none"
        return "not recognised", f"its weights are named {some}, as in no format that ivmix knows"


def check_family(where: str, is_sdxl: bool | None, family: Family) -> None:
    """Raises ConfigurationError if only one of what the user named and the family is of SDXL; None: it is not known."""
    if is_sdxl and family != SDXL:
        raise ConfigurationError(
            f"{where} is of SDXL: its latents and two text encoders are others than those of family {family}; use one "
            f"of Stable Diffusion 1.5 or 2, or make a model of family {SDXL}: its --from is an SDXL model"
        )
    if is_sdxl is False and family == SDXL:
        raise ConfigurationError(
            f"{where} is not of SDXL: family {SDXL} has other latents and two text encoders; use one of SDXL"
        )


_IMAGE_INPUT = "its UNet also takes an image, which no sampler here gives; use the model's text-to-image version"

_Rule = tuple[str, str | None, Callable[[WeightsFile], bool]]
_KINDS: list[_Rule] = [
    (LORA, None, lambda file: file.has(_ADAPTERS)),
    (
        "a SparseCtrl for sketches",
        "it does not read pictures; use SparseCtrl RGB, such as guoyww/animatediff-sparsectrl-rgb",
        lambda file: file.has(r"controlnet_cond_embedding\.conv_in\.") and file.has(r"motion_modules\."),
    ),
    (SPARSE, None, lambda file: file.has(r"controlnet_cond_embedding\.weight$") and file.has(r"motion_modules\.")),
    (
        "a ControlNet",
        "it is not supported",
        lambda file: file.has(r"^control_model\.|controlnet_|input_hint"),
    ),
    ("an IP-Adapter", "it is not supported", lambda file: file.has(r"^(image_proj|ip_adapter)\.")),
    (
        "a HotshotXL motion model",
        "it is not supported; for SDXL use guoyww/animatediff-motion-adapter-sdxl-beta",
        lambda file: file.has(r"temporal_attentions\.|pos_encoder\.positional_encoding$"),
    ),
    (MOTION, None, lambda file: file.has(r"motion_modules\.")),
    (
        "an SDXL refiner",
        "it refines the images of another model; use a base model, or a fine-tune of one",
        lambda file: file.has(r"^conditioner\.embedders\.0\.model\."),
    ),
    (
        "a checkpoint of Playground 2.5",
        "its noise schedule (EDM) is not supported; use another SDXL model",
        lambda file: file.has(r"^edm_(mean|std)$"),
    ),
    (
        "an inpainting or image-conditioned checkpoint",
        _IMAGE_INPUT,
        lambda file: file.width(_CONV_IN, 1) not in (None, 4),
    ),
    (CHECKPOINT, None, lambda file: _CONV_IN in file.shapes and bool(file.is_sdxl)),
    ("an unCLIP checkpoint", _IMAGE_INPUT, lambda file: file.has(r"label_emb\.")),
    (INVERSION, None, lambda file: file.has(r"^clip_[gl]$")),
    (
        "an original VideoCrafter or ModelScope checkpoint",
        "only its diffusers version is loaded; give that folder or repository",
        lambda file: (
            file.has(r"temopral_conv|fps_embedding|input_blocks\.0\.1\.") or len(file.shapes.get(_CONV_IN, ())) == 5
        ),
    ),
    (CHECKPOINT, None, lambda file: _CONV_IN in file.shapes),
    (
        "a checkpoint of a diffusion transformer (Stable Diffusion 3, Flux or another)",
        "the image model must be a UNet of Stable Diffusion 1.5 or 2",
        lambda file: (
            file.has(r"(joint|double|single|transformer)_blocks\.\d+\..*(attn|img|x_block)")
            and not file.has(r"(down|up)_blocks\.|text_model|resblocks")
        ),
    ),
    (
        "a UNet in the diffusers layout without its config.json",
        "give the folder that it is from",
        lambda file: file.has(r"^(down|up)_blocks\.0\.resnets\."),
    ),
    (
        "a VAE of another latent space",
        "the video models have the latents of Stable Diffusion 1.5, with 4 channels",
        lambda file: any(n.endswith("decoder.conv_in.weight") and s[1:2] != (4,) for n, s in file.shapes.items()),
    ),
    (VAE, None, lambda file: file.has(r"(^|first_stage_model\.|vae\.)decoder\.(up|up_blocks)\.0\.")),
    (
        "a text encoder",
        "give the folder or checkpoint that it is from",
        lambda file: file.has(r"text_model\.|resblocks\."),
    ),
    (
        INVERSION,
        None,
        lambda file: 0 < len(file.shapes) <= 2 and all(len(shape) <= 2 for shape in file.shapes.values()),
    ),
]


def _shown(path: Path, remote: Component | None) -> str:
    return f"{remote.source.repo}/{remote.inside}" if remote else str(path)


def refuse_pickle(path: Path) -> None:
    """Raises ConfigurationError with a command that converts the file, if it is a pickle by name or content."""
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as e:
        raise ConfigurationError(f"{path} cannot be read: {e.strerror}") from e
    looks_like_one = start.startswith((b"PK", b"\x80")) and start[8:] != b"{"  # where safetensors has its header
    if path.suffix.lower() in PICKLE_SUFFIXES or looks_like_one:
        command = shlex.join([sys.executable, "-c", CONVERT, str(path), str(path.with_suffix(".safetensors"))])
        raise ConfigurationError(
            f"{path} is a pickle, which can run code when it is loaded; only safetensors are. This converts it without "
            f"running its code: {command}"
        )
