"""Clips to feature vectors and scores, by the name of a network.

A clip is uint8 (T, H, W, 3). On a GPU, UMT is published with float16 autocast, which is the default there; float32
gives slightly other features, and so does every CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.paper import preprocessing
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.preprocessing import Clip
from benchmarks.paper.umt import Umt
from benchmarks.paper.weights import load_i3d, load_umt

Vector = NDArray[np.float32]
FeatureNetwork = Callable[[Clip], Vector]  # (T, H, W, 3) -> (d,)
MAX_TOKENS = 32  # of a text, UMTScore


def open_network(name: str, weights: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> FeatureNetwork:
    """The network of a protocol.

    Args:
        name: umt (768 features), i3d-crop or i3d-squash (400).
        dtype: of autocast; default: float16 for umt on a GPU, else float32, which is none.

    Raises:
        BenchmarkError: unknown name, or the weights do not fit.
    """
    if name not in _NETWORKS:
        raise BenchmarkError(f"there is no network '{name}'; there are {', '.join(_NETWORKS)}")
    return _NETWORKS[name](weights, torch.device(device), dtype)


def _umt(weights: Path, device: torch.device, dtype: torch.dtype | None) -> FeatureNetwork:
    network = load_umt(weights).to(device)
    return _running(preprocessing.umt, network.features, device, dtype or _published_dtype(device))


def _i3d(prepare: Callable[[Clip], Tensor]) -> Callable[[Path, torch.device, torch.dtype | None], FeatureNetwork]:
    def opened(weights: Path, device: torch.device, dtype: torch.dtype | None) -> FeatureNetwork:
        return _running(prepare, load_i3d(weights).to(device), device, dtype or torch.float32)

    return opened


_NETWORKS: dict[str, Callable[[Path, torch.device, torch.dtype | None], FeatureNetwork]] = {
    "umt": _umt,
    "i3d-crop": _i3d(preprocessing.i3d_crop),
    "i3d-squash": _i3d(preprocessing.i3d_squash),
}


def _running(
    prepare: Callable[[Clip], Tensor], network: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
) -> FeatureNetwork:
    def features(clip: Clip) -> Vector:
        with torch.inference_mode(), _autocast(device, dtype):
            return _finite(network(prepare(clip)[None].to(device))[0], dtype)

    return features


def _finite(result: Tensor, dtype: torch.dtype) -> Vector:
    found = result.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise BenchmarkError(f"a result is not finite in {dtype}; use another dtype, or look at the clip")
    return found


class UmtScorer:
    """UMTScore of a clip and its text: the logit that they match; `both` gives the features too, from one pass.

    Raises:
        BenchmarkError: weights or vocabulary do not fit, or a result is not finite.
    """

    def __init__(self, weights: Path, vocabulary: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """`vocabulary`: `vocab.txt` of bert-large-uncased."""
        self._device = torch.device(device)
        self._dtype = dtype or _published_dtype(self._device)
        self._network: Umt = load_umt(weights).to(self._device)
        self._tokens = Tokens(vocabulary)

    def __call__(self, clip: Clip, text: str) -> float:
        return self.both(clip, text)[1]

    def both(self, clip: Clip, text: str) -> tuple[Vector, float]:
        """Features (768,), as `open_network("umt", ...)` gives them, and UMTScore."""
        frames = preprocessing.umt(clip)[None].to(self._device)
        ids, is_token = (each.to(self._device) for each in self._tokens(text))
        with torch.inference_mode(), _autocast(self._device, self._dtype):
            features, scores = self._network.features_and_scores(frames, ids, is_token)
        return _finite(features[0], self._dtype), float(_finite(scores, self._dtype)[0])


class Tokens:
    """A text to ids (1, 32) and a mask (1, 32), as UMTScore does it: cleaned, then truncated or padded."""

    def __init__(self, vocabulary: Path) -> None:
        from transformers import BertTokenizer

        if not vocabulary.is_file():
            raise BenchmarkError(f"{vocabulary}: no such file; UMTScore needs vocab.txt of bert-large-uncased")
        tokens = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if missing := {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}.difference(tokens):
            raise BenchmarkError(f"{vocabulary}: no vocabulary of BERT, it lacks {', '.join(sorted(missing))}")
        self._tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})

    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        options = {"padding": "max_length", "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        found = self._tokenizer(cleaned(text), **options)
        return found["input_ids"], found["attention_mask"].bool()


def cleaned(text: str) -> str:
    """Lower case without punctuation, as `pre_text` of github.com/OpenGVLab/unmasked_teacher."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


def _published_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
