"""The `after` parameter of lists: an id. Lists are ordered by id, so paging goes on after a deleted entry too."""

from __future__ import annotations

import re

from pydantic import AfterValidator, WithJsonSchema


def cursor(kind: str) -> AfterValidator:
    """Refuses what is no id of this kind."""

    def check(after: str) -> str:
        if not re.fullmatch(f"{kind}_[0-9a-f]{{32}}", after):
            raise ValueError(f"'{after[:40]}' is not an id of this list; send the last_id of the previous page")
        return after

    return AfterValidator(check)


def cursor_schema(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{kind}_[0-9a-f]{{32}}$"})
