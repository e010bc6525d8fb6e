"""Adds the words of textual inversions to a tokenizer and text encoder, as diffusers' load_textual_inversion does."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from service.catalog.adapters import Role, TextualInversion
from service.errors import ConfigurationError
from worker.networks.text_encoder import TextEncoder

# Keys of SDXL's files, by the text encoder that each is for.
SDXL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def read_vectors(inversion: TextualInversion, dtype: torch.dtype, key: str | None = None) -> Tensor:
    """(vectors, dim) float32.

    Args:
        dtype: of the model's entry, which must hold the vectors.
        key: of a file for SDXL, which has one for each text encoder; None: the file is for another model.

    Raises:
        ConfigurationError: naming the file and what it is instead.
    """
    file = inversion.file.path
    assert file is not None, "check_files refuses what was not fetched"
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as e:
        raise ConfigurationError(f"{file} is not a safetensors file: {e}") from e
    names, vectors = _tensor(file, found, key)
    if vectors.ndim not in (1, 2) or not vectors.numel():
        raise ConfigurationError(
            f"textual inversion {file}: {names} has shape {tuple(vectors.shape)}, expected (vectors, dim) or (dim,)"
        )
    if not torch.isfinite(vectors).all():
        raise ConfigurationError(f"textual inversion {file}: {names} is not finite; get the file again")
    if not torch.isfinite(vectors.to(dtype)).all():
        raise ConfigurationError(
            f"textual inversion {file}: {names} holds {float(vectors.abs().max()):.3g}, more than the model's dtype "
            'can; set dtype = "bfloat16" or "float32" in its entry'
        )
    return vectors.reshape(-1, vectors.shape[-1])


def _tensor(file: Path, found: Mapping[str, Tensor], key: str | None) -> tuple[str, Tensor]:
    """(its name, the tensor) for one text encoder. Raises ConfigurationError."""
    names, keys = ", ".join(sorted(found)[:3]), set(SDXL_KEYS.values())
    if key is not None and set(found) != keys:
        raise ConfigurationError(f"textual inversion {file} is not for SDXL ({names}); use one with clip_l and clip_g")
    if key is None and keys & set(found):
        raise ConfigurationError(
            f"textual inversion {file} is for SDXL ({names}); use one for the model's text encoder"
        )
    if key is None and len(found) != 1:
        raise ConfigurationError(f"textual inversion {file} has {len(found)} weights ({names}); expected one")
    return (key, found[key].float()) if key else (names, next(iter(found.values())).float())


def add_inversions(
    text: TextEncoder,
    inversions: Sequence[TextualInversion],
    role: Role,
    dtype: torch.dtype,
    key: str | None = None,
) -> TextEncoder:
    """An encoder that knows the words; the tokenizer and the network are changed. A network on the meta device stays.

    Args:
        key: see `read_vectors`.

    Raises:
        ConfigurationError: the vectors have another width, `dtype` cannot hold them, or a word is in the vocabulary
            already.
    """
    multi_vector = dict(text.multi_vector)
    for inversion in inversions:
        vectors = read_vectors(inversion, dtype, key)
        if vectors.shape[1] != text.dim:
            raise ConfigurationError(
                f"textual inversion {inversion.file.path} has vectors of dim {vectors.shape[1]}, the text encoder of "
                f"the {role} model takes {text.dim}; name the models that get it with `on`, or get one of that dim"
            )
        ids = _add_tokens(text.tokenizer, inversion, len(vectors))
        if len(ids) > 1:
            multi_vector[ids[0]] = tuple(ids)
        _add_vectors(text.encoder, vectors)
    return TextEncoder(text.tokenizer, text.encoder, multi_vector)


def _add_tokens(tokenizer: Any, inversion: TextualInversion, count: int) -> list[int]:
    """The ids of the word and of its further vectors, which diffusers calls <x>_1, <x>_2."""
    token, first = inversion.token, len(tokenizer)
    known = tokenizer(token, add_special_tokens=False)["input_ids"]
    for name in (token, *(f"{token}_{number}" for number in range(1, count))):
        is_word = name == token and len(known) == 1 and known[0] != tokenizer.unk_token_id
        if is_word or name in tokenizer.get_vocab() or tokenizer.add_tokens(name) != 1:
            raise ConfigurationError(
                f"textual inversion {inversion.file.path}: the token '{name}' is in the tokenizer's vocabulary "
                "already; choose another one"
            )
    return list(range(first, len(tokenizer)))


def _add_vectors(encoder: Any, vectors: Tensor) -> None:
    embedding: nn.Embedding = encoder.get_input_embeddings()
    weight = torch.cat((embedding.weight, vectors.to(embedding.weight)))
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    embedding.num_embeddings = encoder.config.vocab_size = len(weight)
