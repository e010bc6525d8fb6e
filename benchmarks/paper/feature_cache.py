"""Features of the clips of a run, computed once for each clip and kept next to it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.paper.clips import read_frames
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.networks import ClipFeatures, ClipNetwork
from benchmarks.paper.run_folder import ClipKey, ClipManifest, RunFolder


def cached_features(folder: RunFolder, key: ClipKey, network: ClipNetwork, suffix: str) -> ClipFeatures:
    """Those of an earlier call, if clip and network are the same; else they are computed from the clip's file.

    Args:
        suffix: which file of the clip is measured, `mp4` or `mkv`.

    Raises BenchmarkError if the clip is missing.
    """
    manifest = folder.manifest(key)
    if manifest is None:
        raise BenchmarkError(f"{folder.clip(key, 'json')}: the clip is missing; run the generation again")
    if suffix not in manifest.files:
        raise BenchmarkError(
            f"{folder.clip(key, suffix)}: there is no lossless copy; generate with --lossless, or leave --frames out"
        )
    file, name = folder.features(f"{network.name}-{suffix}", key), _identity(manifest, network, suffix)
    found = _read(file, name)
    if found is None:
        found = network.of_clip(read_frames(folder.check_clip(key, manifest, suffix)), manifest.prompt)
        folder.write(file, _npz(found, name))
    return found


def complete(folder: RunFolder, keys: Iterable[ClipKey], network: ClipNetwork, suffix: str) -> int:
    """Compute what is missing. Returns the number of clips that have features now."""
    return sum(1 for key in keys if cached_features(folder, key, network, suffix))


def _identity(manifest: ClipManifest, network: ClipNetwork, suffix: str) -> str:
    """Of the clip and the network: features of another one are computed again."""
    return json.dumps({"clip": manifest.files[suffix], "prompt": manifest.prompt, "network": network.digest})


def _npz(features: ClipFeatures, name: str) -> bytes:
    arrays = {f"space {space}": vectors for space, vectors in features.spaces.items()}
    scores = {f"score {score}": np.float64(value) for score, value in features.scores.items()}
    stream = io.BytesIO()
    np.savez(stream, of=np.array(name), **arrays, **scores)  # pyright: ignore[reportArgumentType]  # its stub wants a bool
    return stream.getvalue()


def _read(file: Path, name: str) -> ClipFeatures | None:
    """None if there are none, or those of another clip or network."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError) as e:
        raise BenchmarkError(f"{file} is damaged ({e}); delete it to compute the features again") from e
    if str(arrays.pop("of", "")) != name:
        return None
    spaces = {key.removeprefix("space "): value for key, value in arrays.items() if key.startswith("space ")}
    scores = {key.removeprefix("score "): float(value) for key, value in arrays.items() if key.startswith("score ")}
    return ClipFeatures(spaces, scores)
