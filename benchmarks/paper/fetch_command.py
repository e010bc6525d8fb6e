"""`ivmix bench fetch NAME`: get what a benchmark needs from a hub, verified, and say where the rest is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper.downloads import Download, downloads
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.facts import NOT_KNOWN
from benchmarks.paper.protocols import protocol
from service.catalog.weight_files import Source, file_sha256

Report = Callable[[str], None]
CHUNK = 2**20


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Benchmark.")],
    data: Annotated[Path | None, typer.Option(help="Folder of downloads. Default: bench in IVMIX_WEIGHTS_DIR.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and download nothing.")] = False,
) -> None:
    """Download weights and data of a benchmark, verify them, and list what you must get yourself. Resumes downloads."""
    from benchmarks.paper.bench_commands import data_folder

    wanted = downloads(protocol(name).name)
    if not wanted:
        typer.echo(f"{name} needs no downloads")
        return
    folder = data_folder(data)
    missing = [file for file in wanted if not fetch_one(file, folder, typer.echo, dry_run=dry_run)]
    if missing and not dry_run:
        raise BenchmarkError(
            f"{len(missing)} of {len(wanted)} files must be got by hand, as listed above; put them into {folder} and "
            "run the command again"
        )


def fetch_one(file: Download, folder: Path, report: Report, *, dry_run: bool = False) -> bool:
    """Whether the file is there and, where its hash is known, the right one.

    Raises BenchmarkError if it is another one, ConfigurationError if the hub does not have it.
    """
    target = folder / file.stored_as
    if not target.is_file() and file.repo is not None and not dry_run:
        _download(file, target, report)
    state = "there" if target.is_file() else "missing"
    report(f"{file.stored_as}: {state}. {file.name}; {_facts(file)}")
    if target.is_file():
        check(file, target)
        return True
    report(f"  from {f'{file.repo} on the hub, {file.repo_path}' if file.repo else file.by_hand}")
    return False


def check(file: Download, target: Path) -> None:
    """Raises BenchmarkError if the file has another hash than the one that is known."""
    found = [("sha256", file.sha256.value, file_sha256)]
    found += [("git blob", file.git_blob.value, git_blob)] if file.git_blob else []
    for kind, expected, compute in found:
        if expected is not None and (value := compute(target)) != expected:
            raise BenchmarkError(f"{target} has {kind} {value}, expected {expected}; delete it and get it again")


def git_blob(file: Path) -> str:
    """The hash by which git knows the content of a file."""
    digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _facts(file: Download) -> str:
    size = NOT_KNOWN if file.bytes.value is None else f"{file.bytes.value:,}"
    return f"bytes: {size}; sha256: {file.sha256.text}; licence: {file.licence.text}"


def _download(file: Download, target: Path, report: Report) -> None:
    """Raises ConfigurationError naming the repository and file; what was received stays for the next attempt."""
    from worker.hub_files import fetch_file
    from worker.hub_listing import read_listing

    source = Source(repo=file.repo)
    listing = read_listing(source, None)
    remote = listing.files.get(file.repo_path or "")
    if remote is None:
        raise BenchmarkError(f"{file.repo} at {listing.revision} has no {file.repo_path}; see docs/benchmarks.md")
    report(f"{file.repo} at {listing.revision}: {file.repo_path}, {remote.size / 1e9:.2f} GB")
    found = fetch_file(source, listing.revision, remote, target, file.sha256.value or remote.sha256)
    report(f"  sha256 {found}")
