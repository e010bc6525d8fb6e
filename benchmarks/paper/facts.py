"""Values with their source: what is known of a benchmark, what is assumed, and what no source says."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from service.frozen_model import FrozenModel

NOT_KNOWN = "not known"
HERE = Path(__file__).parent
T = TypeVar("T")


class Fact(FrozenModel, Generic[T]):
    """One value of a data file.

    Args:
        value: absent if and only if the status is `unknown`.
        status: `known`: read in the source; `assumed`: a choice of ours, for the reason in `source`.
        source: where the value was read, or why it is assumed or unknown.
    """

    value: T | None = None
    status: Literal["known", "assumed", "unknown"]
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _unknown_has_no_value(self) -> Self:
        if (self.value is None) != (self.status == "unknown"):
            raise ValueError(
                f"status {self.status} with value {self.value!r}: unknown values, and only they, are absent"
            )
        return self

    @property
    def text(self) -> str:
        """The value, or "not known"; an assumed one says so."""
        if self.value is None:
            return NOT_KNOWN
        return f"{self.value} (assumed)" if self.status == "assumed" else str(self.value)
