"""The base of our values: made once, checked while they are made, then trusted."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    # hide_input: a complaint goes to the log, a prompt does not
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
