"""What the texts of a request may be for a model: their length, their tokens, its vocabulary."""

from __future__ import annotations

import re

from pydantic import Field

from service.catalog.adapters import TextualInversion, without_tokens
from service.catalog.closed_vocabulary import ClosedVocabulary
from service.catalog.prompt_weights import without_weights
from service.errors import InvalidParameter
from service.frozen_model import FrozenModel

NAME = r"^[A-Za-z0-9_.-]{1,64}$"

# How CLIP's tokenizer splits a text before it merges letters: every piece is at least one token.
CLIP_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)

BREAK = re.compile(r"\s*\bBREAK\b\s*")  # in a long prompt, it ends a window of the text encoder


class PromptLimits(FrozenModel):
    """The part of a registry entry that limits prompts."""

    id: str = Field(pattern=NAME)
    textual_inversions: tuple[TextualInversion, ...] = ()
    max_prompt_length: int = 2000
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="limit of the text encoders, 77 for CLIP")
    prompt_chunks: int = Field(
        default=1,
        ge=1,
        le=8,
        description="above 1, longer texts are split into up to so many windows of the text encoder",
    )
    prompt_weighting: bool = Field(default=False, description="whether (word:1.3), (word) and [word] weight words")
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
        plain = self._plain(param, text)
        self._check_tokens(param, plain)
        if param == "prompt" and not _words(" ".join(self.parts(plain))):
            raise InvalidParameter(param, f"prompt is empty. {self.can_draw or ''}".rstrip())
        self.check_vocabulary(param, text)

    def check_vocabulary(self, param: str, text: str) -> None:
        """Raises InvalidParameter naming `param` and the words that a model with a closed vocabulary does not know."""
        if self.prompt is not None:
            plain = " ".join(self.parts(self._plain(param, text)))
            self.prompt.check(param, self.id, _words(without_tokens(plain, self.textual_inversions)[0]))

    def parts(self, text: str) -> list[str]:
        """The text between the words BREAK, where the model knows that word; empty parts are left out."""
        found = BREAK.split(text) if self.prompt_chunks > 1 else [text]
        return [part for part in found if part] or [""]

    def _plain(self, param: str, text: str) -> str:
        """The text without weights. Raises InvalidParameter."""
        try:
            return without_weights(text) if self.prompt_weighting else text
        except ValueError as e:
            raise InvalidParameter(param, f"{param}: {e}.") from e

    def _check_tokens(self, param: str, text: str) -> None:
        """Raises InvalidParameter for a text that the tokenizers certainly make too many tokens of."""
        if self.max_prompt_tokens is None:
            return
        room = max(self.max_prompt_tokens - 2, 1)  # without start and end tokens
        counts = [self._least_tokens(part) for part in self.parts(text)]
        if sum(-(-max(count, 1) // room) for count in counts) <= self.prompt_chunks:
            return
        limit = str(self.max_prompt_tokens)
        if self.prompt_chunks > 1:
            limit = f"{self.prompt_chunks} windows of {limit}, and BREAK begins another one"
        message = f"{param} has at least {sum(counts) + 2} tokens; model '{self.id}' reads {limit}. Shorten it."
        raise InvalidParameter(param, message, "string_above_max_length")

    def _least_tokens(self, text: str) -> int:
        words, inversions = without_tokens(text, self.textual_inversions)  # each is at least one token
        return len(CLIP_PIECES.findall(words)) + inversions


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,.;:!?'\"()-]+", text.lower())
