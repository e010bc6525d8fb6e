"""What the texts of a request may be for a model: their length, their tokens, its vocabulary."""

from __future__ import annotations

import re

from pydantic import Field

from service.catalog.adapters import TextualInversion, without_tokens
from service.catalog.closed_vocabulary import ClosedVocabulary
from service.errors import InvalidParameter
from service.frozen_model import FrozenModel

NAME = r"^[A-Za-z0-9_.-]{1,64}$"

# How CLIP's tokenizer splits a text before it merges letters: every piece is at least one token.
CLIP_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)


class PromptLimits(FrozenModel):
    """The part of a registry entry that limits prompts."""

    id: str = Field(pattern=NAME)
    textual_inversions: tuple[TextualInversion, ...] = ()
    max_prompt_length: int = 2000
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="limit of the text encoders, 77 for CLIP")
    prompt: ClosedVocabulary | None = None

    @property
    def can_draw(self) -> str | None:
        return self.prompt.can_draw if self.prompt else None

    def check_text(self, param: str, text: str) -> None:
        """Raises InvalidParameter naming `param`."""
        if len(text) > self.max_prompt_length:
            raise InvalidParameter(
                param,
                f"{param} has {len(text)} characters; model '{self.id}' reads at most {self.max_prompt_length}.",
                "string_above_max_length",
            )
        words, inversions = without_tokens(text, self.textual_inversions)  # each is at least one token
        pieces = len(CLIP_PIECES.findall(words)) + inversions + 2  # start and end tokens
        if self.max_prompt_tokens is not None and pieces > self.max_prompt_tokens:
            raise InvalidParameter(
                param,
                f"{param} has at least {pieces} tokens; model '{self.id}' reads {self.max_prompt_tokens}. Shorten it.",
                "string_above_max_length",
            )
        if param == "prompt" and not _words(text):
            raise InvalidParameter(param, f"prompt is empty. {self.can_draw or ''}".rstrip())
        self.check_vocabulary(param, text)

    def check_vocabulary(self, param: str, text: str) -> None:
        """Raises InvalidParameter naming `param` and the words that a model with a closed vocabulary does not know."""
        if self.prompt is not None:
            self.prompt.check(param, self.id, _words(without_tokens(text, self.textual_inversions)[0]))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,.;:!?'\"()-]+", text.lower())
