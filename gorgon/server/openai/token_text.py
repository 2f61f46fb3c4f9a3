"""Tokens as text and text as tokens, in the forms that answers carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gorgon.llama.model import Model
from gorgon.request import TokenLogprob
from gorgon.server.openai.answers import ChatLogprob, ChatLogprobs, TextLogprobs, TopLogprob

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON has no number for


class TokenText:
    """Reads and writes with one model's vocabulary."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def tokens(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids; nothing in ``text`` is a control token."""
        return self._model.tokenize(text, add_special=add_special, parse_special=False)

    def text(self, tokens: Sequence[int]) -> str:
        """Text; control tokens add none."""
        pieces = {token: self._model.piece(token) for token in set(tokens)}
        return b"".join([pieces[token] for token in tokens]).decode("utf-8", "replace")

    def written(self, token: int) -> str:
        """One token with what it is written as, control tokens too."""
        return self._model.piece(token, special=True).decode("utf-8", "replace")

    def chat_logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs:
        """As chats carry them."""
        return ChatLogprobs(content=list(map(self._chat_logprob, entries)))

    def text_logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> TextLogprobs:
        """As completions carry them; ``offset`` is where the first token's text begins."""
        tokens = [self.written(entry.token) for entry in entries]
        return TextLogprobs(
            tokens=tokens,
            token_logprobs=[max(entry.logprob, LEAST_LOGPROB) for entry in entries],
            top_logprobs=[
                {self.written(token): max(logprob, LEAST_LOGPROB) for token, logprob in entry.top}
                for entry in entries
            ],
            text_offset=[offset + sum(map(len, tokens[:i])) for i in range(len(tokens))],
        )

    def _chat_logprob(self, entry: TokenLogprob) -> ChatLogprob:
        top = [TopLogprob(**self._top(*pair)) for pair in entry.top]
        return ChatLogprob(**self._top(entry.token, entry.logprob), top_logprobs=top)

    def _top(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._model.piece(token, special=True)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(raw)}
