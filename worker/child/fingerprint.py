"""Fingerprint of a run, stored in its checkpoints: a run resumes only from a checkpoint with the same fingerprint."""

from __future__ import annotations

import hashlib
import json

import torch

from sampler import Plan
from service.catalog.optimise import Optimise
from service.catalog.weight_files import file_sha256
from service.jobs.model import Generation
from worker.networks.loading import AnyModels
from worker.networks.optimise.weight_memory import stored_tensors


def run_fingerprint(weights: str, optimise: Optimise, generation: Generation, plan: Plan) -> str:
    """`weights`: from `weights_digest`. The name of the GPU is left out, so that a job may resume on another one."""
    return _sha256("3", weights, optimise.fingerprinted, generation.model_dump_json(), repr(plan))


def run_fingerprints_0_1(weights: str, optimise: Optimise, generation: Generation, plan: Plan) -> set[str]:
    """What version 0.1 computed for the same run, so that its checkpoints can still be resumed.

    It had one switch more, halves_once; its value is unknown, so there is one fingerprint for each.
    """
    found: set[str] = set()
    if (optimise.attention_backend, optimise.guidance_halves) != ("native", "together"):
        return found  # 0.1 had no other
    for halves_once in (True, False):
        switches = {
            "text_once": optimise.cache_text_kv,
            "halves_once": halves_once,
            "time_table": optimise.cache_time_embeds,
            "channels_last": optimise.channels_last,
            "compile": optimise.compile,
        }
        networks = f"{weights} {json.dumps(switches, separators=(',', ':'))}"
        found.add(_sha256("2", networks, generation.model_dump_json(), repr(plan)))
    return found


def _sha256(version: str, *parts: str) -> str:
    return hashlib.sha256("\n".join((version, torch.__version__, *parts)).encode()).hexdigest()


@torch.no_grad()
def weights_digest(models: AnyModels) -> str:
    """Names and shapes of all weights, and the first and last number of each: training changes all of them, and reading
    the weights whole would take seconds at every start."""
    digest = hashlib.sha256()
    for network in models.digested_networks:
        digest.update(type(network).__name__.encode())
        for name, x in network.state_dict().items():
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        numbers = [x for parameter in network.parameters() for x in stored_tensors(parameter) if x.numel()]
        ends = [x[(end,) * x.ndim].double() for x in numbers for end in (0, -1)]
        digest.update(torch.stack(ends).cpu().numpy().tobytes())
    for adapter in (
        *models.entry.loras,
        *models.entry.textual_inversions,
    ):  # may leave first and last numbers unchanged
        assert adapter.file.path is not None
        digest.update(f"{file_sha256(adapter.file.path)} {adapter.model_dump_json(exclude={'file'})}".encode())
    return digest.hexdigest()
