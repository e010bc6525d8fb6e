"""Stored job records -> jobs. A damaged record is shown as a failed job with every field that can still be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from service.ids import created_at
from service.jobs.job_errors import RECORD_DAMAGED
from service.jobs.model import Generation, Job, JobState
from service.jobs.sampler_settings import SamplerSettings
from service.jobs.timestep_spacing import FlowSpacing, Spacing
from service.redis_records import Model, Record, decode_record, decode_value

ALWAYS_STORED = {"id", "owner", "state"}

# What a damaged record shows where its own value cannot be read.
_UNREADABLE_GENERATION: dict[str, Any] = {
    "model": "",
    "prompt": "",
    "negative_prompt": "",
    "seed": 0,
    "width": 1,
    "height": 1,
    "num_frames": 1,
    "fps": 1,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "sampler": {},
}


class DamagedJob(Job):
    """What can be read of a damaged record. `owner` is empty if it cannot be read."""


def decode_job(job_id: str, record: Record) -> Job | None:
    """Return the job, None for an empty record. Raises ValueError for a damaged one."""
    job = decode_record(Job, record)
    if job is not None:
        check_job(job_id, job)
    return job


def check_job(job_id: str, job: Job) -> None:
    """Raises ValueError if the job lacks a field that is always stored, or has another id."""
    if missing := ALWAYS_STORED - job.model_fields_set:
        raise ValueError(f"the record of {job_id} has no {', '.join(sorted(missing))}")
    if job.id != job_id:
        raise ValueError(f"the record of {job_id} has the id of another job")


def view_job(job_id: str, record: Record) -> Job | None:
    """Return the job, a DamagedJob for a damaged record, None for an empty one."""
    try:
        return decode_job(job_id, record)
    except ValueError:
        return salvage(job_id, record)


def salvage(job_id: str, record: Record) -> DamagedJob:
    """Return a failed job with every field of a damaged record that can be read."""
    values = {name.decode(errors="replace"): decode_value(value) for name, value in record.items()}
    shown = {"id": job_id, "state": JobState.FAILED, "error": RECORD_DAMAGED, "generation": _generation(values)}
    for name in ("output", "phase"):
        values.pop(name, None)
    required = {"created_at": created_at(job_id), "owner": ""}
    return _readable(DamagedJob, {"owner": None} | values | shown, required)


def _generation(values: Mapping[str, Any]) -> Generation:
    stored = values.get("generation")
    fields = dict(cast(dict[str, Any], stored)) if isinstance(stored, dict) else {}
    if isinstance(fields.get("sampler"), dict):
        fields["sampler"] = _readable(SamplerSettings, fields["sampler"], {})
    if isinstance(fields.get("spacing"), dict):
        spacing = cast(dict[str, Any], fields["spacing"])
        kind, required = (FlowSpacing, {"shift": 1.0}) if "kind" in spacing else (Spacing, dict[str, float]())
        fields["spacing"] = _readable(kind, spacing, required)
    return _readable(Generation, fields, _UNREADABLE_GENERATION)


def _readable(model: type[Model], values: Mapping[str, Any], required: Mapping[str, Any]) -> Model:
    """Validate without the fields that are invalid; those in `required` are replaced instead."""
    values = dict(values)
    while True:
        try:
            return model.model_validate(values)
        except ValidationError as e:
            for error in e.errors(include_url=False, include_input=False, include_context=False):
                name = str(error["loc"][0])
                values.pop(name, None)
                if name in required:
                    values[name] = required[name]
