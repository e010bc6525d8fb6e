"""A repository of a hub as `ivmix models add` reads it: its listing, its configs and the headers of its weights."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from service.catalog.weight_files import Component, Source, snapshot_dir
from service.errors import ConfigurationError
from worker.adding.configs import read_json
from worker.adding.hub_spec import HubSpec
from worker.adding.layout import Tree
from worker.adding.weights_file import MAX_REMOTE_HEADER_BYTES, WeightsFile

MAX_JSON_BYTES = 1_000_000


def hub_hosts() -> frozenset[str]:
    """Host names of the hub that is used (HF_ENDPOINT), and of the public one."""
    from huggingface_hub import constants

    urls = (constants.ENDPOINT, constants._HF_DEFAULT_ENDPOINT)  # pyright: ignore[reportPrivateUsage]
    return frozenset(urlsplit(url).netloc.lower() for url in urls)


def open_repo(spec: HubSpec, weights_dir: Path) -> Tree:
    """The files of a repository at the commit that the hub names now. Raises ConfigurationError."""
    from worker.hub_files import fetch_file, read_start
    from worker.hub_listing import read_listing

    repo = spec.repo
    listing = read_listing(Source(repo=repo), None, spec.revision)
    source = Source(repo=repo, revision=listing.revision)
    root = snapshot_dir(weights_dir, repo, listing.revision)

    def read(name: str) -> dict[str, Any]:
        file = listing.files[name]
        if file.size > MAX_JSON_BYTES:
            raise ConfigurationError(f"{repo}: {name} has {file.size} bytes, more than a config")
        with TemporaryDirectory() as folder:
            target = Path(folder) / "config.json"
            fetch_file(source, listing.revision, file, target, file.sha256)
            return read_json(target)

    def header(name: str) -> WeightsFile:
        size = listing.files[name].size
        component = Component(name=name, source=source, inside=name, root=root, sizes={name: size})
        with read_start(repo, listing.revision, listing.files[name], MAX_REMOTE_HEADER_BYTES) as start:
            return WeightsFile.parse(start, size, root / name, component)

    named = f"{repo}@{spec.revision}" if spec.revision else repo
    return Tree(f"{repo} at {listing.revision}", named, source, frozenset(listing.files), read, header)
