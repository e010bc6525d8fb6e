"""The words of a model with a closed vocabulary."""

from __future__ import annotations

from service.errors import InvalidParameter
from service.frozen_model import FrozenModel


class ClosedVocabulary(FrozenModel):
    """The only words a model was trained on, and the hint that the error for any other word ends with."""

    vocabulary: frozenset[str]
    can_draw: str

    def check(self, param: str, model: str, words: list[str]) -> None:
        """Raises InvalidParameter naming the unknown words."""
        if unknown := sorted(set(words) - self.vocabulary):
            shown = ", ".join(f"'{word[:40]}'" for word in unknown[:10])
            raise InvalidParameter(param, f"{param}: model '{model}' does not know {shown}. {self.can_draw}")
