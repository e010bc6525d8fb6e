"""Arms: the samplers that a benchmark compares, each as the fields of an API request that differ from the model's.

`NAME-matched` is that sampler with the number of steps whose network calls come closest to the reference arm's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import Field

from service.errors import InvalidParameter
from service.frozen_model import FrozenModel

Fields = dict[str, Any]  # of a VideoRequest, without prompt and seed
CountCalls = Callable[[Fields], Mapping[str, int]]  # network calls of a request, by network

SAMPLERS: dict[str, Fields] = {
    "iv-mixed": {"sampler": {"name": "iv-mixed"}},
    "official": {"sampler": {"name": "official"}},
    "ddim": {"sampler": {"name": "ddim"}},
    "ddim-image": {"sampler": {"name": "ddim", "network": "image"}},
    "freeinit": {"sampler": {"name": "freeinit"}},
    "zigzag": {"sampler": {"name": "zigzag"}},
    "evs": {"sampler": {"name": "evs"}},
    "fused": {"sampler": {"name": "fused"}},
}
MATCHED = "-matched"
COMPUTE_MATCHED = f"ddim{MATCHED}"  # in every run: more steps of the video model alone, for as many calls
REFERENCES = ("iv-mixed", "official")  # the first of them in a run is the reference of `-matched`
SAFE_NAME = r"^[a-z0-9][a-z0-9.,_+-]{0,63}$"  # arms are folders

# arXiv:2410.04171 Fig. 5: the C(4,2) combinations of two models.
PAIRS = ("IV-IV", "IV-VI", "VI-IV", "VI-VI", "II-VV", "VV-II")
# Its Fig. 4 has intervals "begin % to end %" of the run; which ones is not known here. Ours: thirds and halves.
INTERVALS = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.0, 0.3), (0.3, 0.7), (0.7, 1.0), (0.3, 1.0))
RENOISE = ("R-I", "R-V", "RR-II", "RR-VV")
IMAGE_GUIDANCE = (0.25, 0.5, 1.0, 2.0)  # times the model's own


class Arm(FrozenModel):
    """One sampler of a run.

    Args:
        name: also its folder.
        fields: of the request, with `num_inference_steps` if it is not the run's.
        calls: of each network for one clip; None if a server does not say.
    """

    name: str = Field(pattern=SAFE_NAME)
    fields: Fields
    calls: dict[str, int] | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def total_calls(self) -> int | None:
        return None if self.calls is None else sum(self.calls.values())


def ablation(name: str, own: Mapping[str, Any]) -> dict[str, Fields]:
    """The arms of one of the paper's ablations, or of ours.

    Args:
        name: a key of `ABLATIONS`.
        own: the model's sampler settings for `iv-mixed`.

    Raises InvalidParameter.
    """
    if name not in ABLATIONS:
        raise InvalidParameter("ablation", f"There is no ablation '{name}'; there are {', '.join(ABLATIONS)}.")
    return {arm: {"sampler": {"name": "iv-mixed", **changes}} for arm, changes in ABLATIONS[name](own).items()}


def _intervals(_own: Mapping[str, Any]) -> dict[str, Fields]:
    return {f"interval-{begin:g}-{end:g}": {"interval": [begin, end]} for begin, end in INTERVALS}


def _combinations(_own: Mapping[str, Any]) -> dict[str, Fields]:
    return {pair.lower(): {"combination": pair} for pair in PAIRS}


def _renoise(_own: Mapping[str, Any]) -> dict[str, Fields]:
    """R needs `goback_first`, so a combination without R in that order is what they are compared with."""
    goback_first = {"order": "goback_first"}
    arms = {pair.lower(): {"combination": pair, **goback_first} for pair in RENOISE}
    return {"iv-iv-goback-first": {"combination": "IV-IV", **goback_first}, **arms}


def _guidance(own: Mapping[str, Any]) -> dict[str, Fields]:
    base = [float(scale) for scale in own["image_guidance"]]
    return {
        f"image-guidance-x{factor:g}": {"image_guidance": [round(factor * scale, 6) for scale in base]}
        for factor in IMAGE_GUIDANCE
    }


ABLATIONS: dict[str, Callable[[Mapping[str, Any]], dict[str, Fields]]] = {
    "intervals": _intervals,
    "combinations": _combinations,
    "renoise": _renoise,
    "guidance": _guidance,
}


def choose(names: Iterable[str], extra: Mapping[str, Fields], base: Fields, count: CountCalls) -> list[Arm]:
    """The arms of a run, in the order given, with the compute-matched one always among them.

    Args:
        names: of `SAMPLERS`, with or without `-matched`.
        extra: more arms by name.
        base: fields that all arms share.
        count: network calls of a request.

    Raises InvalidParameter for an unknown or repeated name, or if nothing can be matched.
    """
    listed = [*names, *extra]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise InvalidParameter("arms", f"The arm '{twice[0]}' is named more than once; name each arm once.")
    if COMPUTE_MATCHED not in listed:
        listed.append(COMPUTE_MATCHED)
    fields = {name: _merged(base, _fields(name, extra)) for name in listed}
    reference = next((name for name in (*REFERENCES, *extra) if name in listed), None)
    if reference is None:
        raise InvalidParameter(
            "arms", f"--arms has none of {', '.join(REFERENCES)} to match the network calls of; add one."
        )
    target = _total(count(fields[reference]))
    for name in listed:
        if name.endswith(MATCHED) and name not in extra:
            fields[name] = _matched(name, fields[name], target, count)
    return [Arm(name=name, fields=fields[name], calls=_counted(count, fields[name])) for name in listed]


def _fields(name: str, extra: Mapping[str, Fields]) -> Fields:
    known = {**extra, **SAMPLERS}
    wanted = name if name in known else name.removesuffix(MATCHED)
    if wanted not in known or (wanted != name and wanted in REFERENCES):
        raise InvalidParameter(
            "arms",
            f"There is no arm '{name}'; there are {', '.join(SAMPLERS)}, those of --ablation and --arm, and "
            f"NAME{MATCHED} for all but {', '.join(REFERENCES)}.",
        )
    return known[wanted]


def _merged(base: Fields, own: Fields) -> Fields:
    sampler = {**cast("Fields", base.get("sampler", {})), **cast("Fields", own.get("sampler", {}))}
    return {**base, **own, **({"sampler": sampler} if sampler else {})}


def _matched(name: str, fields: Fields, target: int, count: CountCalls) -> Fields:
    """With the number of steps whose calls are closest to `target`; of two, the fewer. Calls grow with the steps."""

    def calls(steps: int) -> int:
        return _total(count({**fields, "num_inference_steps": steps}))

    low, high = 1, 1
    while calls(high) < target:
        low, high = high, 2 * high
        if low > target:
            raise InvalidParameter("arms", f"'{name}' cannot reach {target} network calls.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if calls(middle) < target else (low, middle)
    steps = min((low, high), key=lambda steps: abs(calls(steps) - target))
    return {**fields, "num_inference_steps": steps}


def _total(calls: Mapping[str, int]) -> int:
    return sum(calls.values())


def _counted(count: CountCalls, fields: Fields) -> dict[str, int]:
    return dict(count(fields))


def given_arms(texts: Sequence[str]) -> dict[str, Fields]:
    """`NAME=JSON` of --arm, with the fields of a request. Raises InvalidParameter."""
    found: dict[str, Fields] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            fields = json.loads(value)
        except ValueError as e:
            raise InvalidParameter("arm", f"--arm {text}: it must be NAME=JSON ({e}).") from e
        if not isinstance(fields, dict) or {"prompt", "seed"} & set(cast("Fields", fields)):
            raise InvalidParameter(
                "arm", f"--arm {text}: it must be an object of request fields without prompt and seed."
            )
        found[name] = cast("Fields", fields)
    return found
