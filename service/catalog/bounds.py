"""Inclusive bounds of a numeric setting, with its default, as registry entries give them."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from service.errors import InvalidParameter
from service.frozen_model import FrozenModel


class Range(FrozenModel):
    """Inclusive bounds, and the default."""

    default: int | float
    min: int | float
    max: int | float

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.min <= self.default <= self.max:
            raise ValueError(f"min={self.min:g}, default={self.default:g}, max={self.max:g} must be in ascending order")
        return self

    def resolve(self, param: str, value: float | None) -> float:
        if value is None:
            return self.default
        if not self.min <= value <= self.max:
            raise InvalidParameter(param, f"{param}={value:g} is outside {self.min:g}..{self.max:g} for this model.")
        return value
