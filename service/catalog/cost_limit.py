"""The limit of what one clip may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.errors import InvalidParameter
from service.jobs.model import Generation


def check_cost(generation: Generation, most: float | None, levers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InvalidParameter if the clip costs more than `most`.

    Args:
        levers: by parameter, the changes of the generation that its default would make. The error names the first one
            that would bring the cost below the limit.
    """
    if most is None or generation.cost <= most:
        return
    cheaper = (name for name, change in levers.items() if generation.model_copy(update=dict(change)).cost <= most)
    raise InvalidParameter(
        next(cheaper, "num_inference_steps"),
        f"This clip costs {generation.cost:.3g} (network calls x pixels x frames); model '{generation.model}' takes "
        f"at most {most:.3g}. Ask for fewer num_inference_steps or num_frames, a smaller size, or a sampler with "
        "fewer calls.",
    )
