"""The results of a run as data: what `table` prints, writes as JSON and draws. Depends on the clips alone, not on the
order in which they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paper.arms import COMPUTE_MATCHED, MATCHED, REFERENCES, SAMPLERS, Arm
from benchmarks.paper.clips import MP4
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.feature_cache import cached_features
from benchmarks.paper.measure import ArmFeatures, arm_numbers, differences, floor
from benchmarks.paper.networks import ClipFeatures, ClipNetwork
from benchmarks.paper.prompts import Prompt, PromptList
from benchmarks.paper.protocols import Protocol
from benchmarks.paper.published import figures, why_not_comparable
from benchmarks.paper.run_folder import ClipKey, ClipManifest, Run, RunFolder, seed_of

Results = dict[str, Any]  # JSON
NAMED = 3  # missing clips in a message


@dataclass(frozen=True)
class Question:
    """What is asked of a folder.

    Args:
        prompts: all of the run; `first` of them are asked for.
        clips: of each prompt.
        arms: names; None: all.
        suffix: the file of each clip that is measured.
        permutations: of each paired test.
    """

    protocol: Protocol
    prompts: PromptList
    first: int
    clips: int
    arms: Sequence[str] | None
    suffix: str
    permutations: int

    @property
    def asked(self) -> Sequence[Prompt]:
        return self.prompts.prompts[: self.first]


def results(folder: RunFolder, question: Question, network: ClipNetwork) -> Results:
    """Raises BenchmarkError: a clip is missing, or the folder is of another benchmark, protocol or list of prompts."""
    run, protocol = folder.run, question.protocol
    check_run(run, question)
    arms = chosen_arms(folder, question.arms)
    check_clips(folder, question, arms)
    found = {arm.name: _clips(folder, question, arm, network) for arm in arms}
    features = {name: ArmFeatures.of(clips, network.columns) for name, clips in found.items()}
    real = network.real(question.asked)
    numbers = {name: arm_numbers(each, real, protocol, network.columns) for name, each in features.items()}
    paired = differences(features, COMPUTE_MATCHED, real, protocol, network.columns, question.permutations)
    manifests = {arm.name: [_manifest(folder, key) for key in _keys(question, arm)] for arm in arms}
    deviating = deviations(run, question)
    return {
        **_about(run, question, network, deviating),
        "real": {
            "source": real.source,
            "n": len(real.reference[network.columns.space]),
            "is_by_prompt": real.is_by_prompt,
        },
        "floor": floor(real, protocol, network.columns),
        "arms": [_arm(arm) | numbers[arm.name] | {"less_matched": paired.get(arm.name)} for arm in arms],
        "published": _published(question.first, question.clips, protocol, deviating),
        "made": _made(manifests),
    }


def check_run(run: Run, question: Question) -> None:
    """Raises BenchmarkError unless the folder was made for this protocol and these prompts."""
    protocol, prompts = question.protocol, question.prompts
    if run.benchmark != protocol.name or run.protocol != protocol.digest:
        raise BenchmarkError(
            f"protocol mismatch: the clips are of {run.benchmark}, protocol {run.protocol}, and this version has "
            f"{protocol.name}, protocol {protocol.digest}; use the version that made them, or make them again"
        )
    if run.prompts != prompts.digest:
        raise BenchmarkError(
            f"protocol mismatch: the clips are of {run.n} prompts with digest {run.prompts[:16]}, and the list here "
            f"has {len(prompts.prompts)} with digest {prompts.digest[:16]}; give the same --prompts"
        )


def chosen_arms(folder: RunFolder, names: Sequence[str] | None) -> list[Arm]:
    """The reference and what it is compared with first. Raises BenchmarkError for an arm that there is not."""
    known = folder.arms
    wanted = set(known if names is None else names) | {COMPUTE_MATCHED}
    if unknown := sorted(wanted - set(known)):
        raise BenchmarkError(f"{folder.root} has no arm '{unknown[0]}'; it has {', '.join(sorted(known))}")
    usual = [*REFERENCES, COMPUTE_MATCHED, *(each for name in SAMPLERS for each in (name, f"{name}{MATCHED}"))]

    def rank(arm: Arm) -> tuple[int, str]:
        return usual.index(arm.name) if arm.name in usual else len(usual), arm.name

    return sorted((known[name] for name in wanted), key=rank)


def _keys(question: Question, arm: Arm) -> list[ClipKey]:
    return [ClipKey(arm.name, prompt.id, repeat) for prompt in question.asked for repeat in range(question.clips)]


def check_clips(folder: RunFolder, question: Question, arms: Sequence[Arm]) -> None:
    """Raises BenchmarkError unless every clip is there and was made as this table says. Never a smaller n."""
    texts = {prompt.id: prompt.text for prompt in question.asked}
    missing: list[ClipKey] = []
    for arm in arms:
        for key in _keys(question, arm):
            manifest = folder.manifest(key)
            if manifest is None:
                missing.append(key)
            else:
                _check_manifest(folder, key, manifest, arm, question.protocol.name, texts[key.prompt_id])
    if missing:
        named = ", ".join(f"{key.arm} {key.prompt_id} repeat {key.repeat}" for key in missing[:NAMED])
        raise BenchmarkError(
            f"{len(missing)} clips are missing ({named}{', ...' if len(missing) > NAMED else ''}); run the generation "
            "again, copy the other shards into this folder, or ask for less with --limit, --clips or --arms"
        )


def _check_manifest(
    folder: RunFolder, key: ClipKey, found: ClipManifest, arm: Arm, benchmark: str, prompt: str
) -> None:
    expected = {
        "benchmark": benchmark,
        "arm": arm.name,
        "plan": arm.digest,
        "prompt": prompt,
        "seed": seed_of(benchmark, key.prompt_id, key.repeat),
    }
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise BenchmarkError(
                f"protocol mismatch: {folder.clip(key, 'json')} has {name} {getattr(found, name)!r}, this table needs "
                f"{value!r}; delete the clip to make it again"
            )


def _manifest(folder: RunFolder, key: ClipKey) -> ClipManifest:
    found = folder.manifest(key)
    assert found is not None, "check_clips found it"
    return found


def _clips(folder: RunFolder, question: Question, arm: Arm, network: ClipNetwork) -> list[list[ClipFeatures]]:
    """By prompt and repeat."""
    found = [cached_features(folder, key, network, question.suffix) for key in _keys(question, arm)]
    return [found[i : i + question.clips] for i in range(0, len(found), question.clips)]


def deviations(run: Run, question: Question) -> list[str]:
    """What the run does otherwise than the protocol."""
    protocol, found = question.protocol, list[str]()
    sha256 = protocol.prompts_sha256.value
    if sha256 is None or run.prompts_file != sha256:
        found.append("prompts that are not, or not known to be, the benchmark's")
    if question.first != protocol.n.value:
        found.append(f"{question.first} prompts instead of {protocol.n.text}")
    if question.clips != protocol.clips.value:
        found.append(f"{question.clips} clips per prompt instead of {protocol.clips.text}")
    if run.cut_prompts:
        found.append("prompts that were cut after the last word that the model takes")
    if question.suffix != MP4:
        found.append("distances of lossless copies instead of mp4 files")
    usual = base_request(protocol)
    for name in sorted({*usual, *run.request}):
        if run.request.get(name) != usual.get(name):
            found.append(f"{name} {json.dumps(run.request.get(name))} instead of {json.dumps(usual.get(name))}")
    return found


def base_request(protocol: Protocol) -> dict[str, Any]:
    """The fields that all arms of a benchmark share, as far as they are known or assumed."""
    facts = {
        "size": protocol.size,
        "num_frames": protocol.num_frames,
        "fps": protocol.fps,
        "num_inference_steps": protocol.steps,
    }
    return {name: fact.value for name, fact in facts.items() if fact.value is not None}


def _about(run: Run, question: Question, network: ClipNetwork, deviating: Sequence[str]) -> Results:
    return {
        "benchmark": run.benchmark,
        "title": question.protocol.title,
        "model": run.model,
        "weights": run.weights,
        "n": question.first,
        "clips": question.clips,
        "batch": run.batch,
        "request": run.request,
        "measured": question.suffix,
        "network": {"name": network.name, "digest": network.digest},
        "protocol": {name: fact.text for name, fact in question.protocol.facts.items()},
        "deviations": list(deviating),
        "columns": {
            "distances": dict(network.columns.spaces),
            "scores": dict(network.columns.scores),
            "lower_is_better": sorted(network.columns.lower_is_better),
        },
        "matched_with": COMPUTE_MATCHED,
    }


def _arm(arm: Arm) -> Results:
    return {"name": arm.name, "fields": arm.fields, "calls": arm.calls, "total_calls": arm.total_calls}


def _published(n: int, clips: int, protocol: Protocol, deviating: Sequence[str]) -> list[Results]:
    return [
        {
            "system": figure.system,
            "measure": figure.measure,
            "value": figure.value,
            "n": figure.n.text,
            "clips": figure.clips.text,
            "source": figure.source,
            "date": figure.date,
            "why_not_comparable": why_not_comparable(figure, n, clips, deviating),
        }
        for figure in figures(protocol.name)
    ]


def _made(manifests: Mapping[str, Sequence[ClipManifest]]) -> Results:
    """What differs between two runs that have the same table: by whom the clips were made, and how long it took."""
    every = [manifest for of_arm in manifests.values() for manifest in of_arm]
    return {
        "by": sorted({manifest.made_by for manifest in every}),
        "devices": sorted({manifest.device for manifest in every}),
        "seconds_per_clip": {
            name: round(sum(manifest.seconds for manifest in of_arm) / len(of_arm), 3)
            for name, of_arm in manifests.items()
        },
        "cpu_seconds_per_clip": {
            name: round(sum(manifest.cpu_seconds or 0.0 for manifest in of_arm) / len(of_arm), 3)
            for name, of_arm in manifests.items()
            if all(manifest.cpu_seconds is not None for manifest in of_arm)
        },
    }
