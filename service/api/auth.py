"""Who is asking. Everything belongs to an owner; without API keys there is one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends


def owner() -> str:
    return "local"


Owner = Annotated[str, Depends(owner)]
