"""`ivmix bench features VIDEO... -o FILE.npy`: features of your own copies of real clips, a row for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper.errors import BenchmarkError
from service.catalog.weight_files import file_sha256

SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".webm", ".mov"})


def features(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Files, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.npy", help="(n, d), in the order of names.")],
    network: Annotated[str, typer.Option(help="umt, i3d-crop, i3d-squash.")],
    weights: Annotated[Path, typer.Option(help="File of the network.")],
    frames: Annotated[int | None, typer.Option(min=1, help="From the beginning of each. Default: all.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Every so many-th frame.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
) -> None:
    """Compute features of real clips. A clip whose features are there is not read again; shorter clips are refused."""
    import numpy as np

    from benchmarks.paper.features import open_network
    from benchmarks.paper.preprocessing import strided_frames
    from worker.child import mp4

    files = video_files(videos)
    opened = open_network(network, weights, device)
    parts = output.with_name(f"{output.name}.parts")
    how = f"{network}.{file_sha256(weights)[:16]}.{frames or 'all'}.{stride}"
    rows: list[np.ndarray] = []
    for file in files:
        kept = parts / f"{file_sha256(file)[:32]}.{how}.npy"
        if not kept.is_file():
            clip = mp4.read_mp4(file)
            taken = strided_frames(frames or -(-len(clip) // stride), stride, len(clip))
            _save(kept, opened(clip[taken]))
        rows.append(np.load(kept, allow_pickle=False))
    _save(output, np.stack(rows))
    typer.echo(f"{output}: {len(rows)} rows of {network}; {parts} can be deleted")


def video_files(given: list[Path]) -> list[Path]:
    """Files, and those in folders, by name. Raises BenchmarkError if there is none, or a name is none of either."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise BenchmarkError(f"{path}: no such file or folder; give videos, or a folder of them")
    if len(found) < 2:
        raise BenchmarkError(f"{len(found)} videos found; a distance needs two or more")
    return found


def _save(file: Path, array: object) -> None:
    """Whole or not at all."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part.npy")
    np.save(part, np.asarray(array))
    part.replace(file)
