"""Chats and completions in OpenAI's form, on top of the generator. No HTTP here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import TypeAdapter

from gorgon.errors import GorgonError, RequestError, UnknownModelError
from gorgon.server.failures import detail
from gorgon.server.generation import Generator
from gorgon.server.openai import answers
from gorgon.server.openai.bodies import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from gorgon.server.openai.choice import Choice, speculation, usage
from gorgon.server.openai.chunks import ChatChunks, ChoiceChunks, TextChunks
from gorgon.server.openai.deltas import Delta, deltas, merge
from gorgon.server.openai.job import Job, JobMaker, is_ids
from gorgon.server.openai.messages import ToolCall
from gorgon.server.openai.token_text import TokenText
from gorgon.server.openai.tools import ToolCallReader

_DONE = b"data: [DONE]\n\n"
_JSON = TypeAdapter(Any)


class OpenAi:
    """Serves ``/v1`` for one loaded model."""

    def __init__(self, generator: Generator, model: str, heads: int, max_length: int) -> None:
        self._generator = generator
        self._token_text = TokenText(generator.model)
        self._jobs = JobMaker(generator, self._token_text)
        self.card = answers.ModelCard(
            id=model, created=int(time.time()), max_model_len=max_length, heads=heads
        )

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not the served one.

        Raises:
            UnknownModelError: naming the served one.
        """
        if name not in (None, self.card.id):
            raise UnknownModelError(
                f"the model '{name}' is not served here; this is '{self.card.id}'", "model"
            )

    def job(self, body: ChatRequest | CompletionRequest) -> Job:
        """The requests that ``body`` asks for.

        Raises:
            GorgonError: when they cannot be served.
        """
        self.check_model(body.model)
        if isinstance(body, ChatRequest):
            return self._jobs.chat(body)
        return self._jobs.completion(body)

    # -- whole answers ----------------------------------------------------------------------------

    async def chat(self, job: Job) -> answers.ChatAnswer:
        """A whole answer to a chat.

        Raises:
            GorgonError: when it cannot be served.
        """
        choices = await self._run(job)
        return answers.ChatAnswer(
            id=job.id,
            created=job.created,
            model=self.card.id,
            choices=[self._chat_choice(job, i, choice) for i, choice in enumerate(choices)],
            usage=usage(job.prompts, choices),
            speculation=speculation(choices),
        )

    async def complete(self, job: Job) -> answers.TextAnswer:
        """Whole continuations of one or more texts.

        Raises:
            GorgonError: when it cannot be served.
        """
        choices = await self._run(job)
        return answers.TextAnswer(
            id=job.id,
            created=job.created,
            model=self.card.id,
            choices=[self._text_choice(job, i, choice) for i, choice in enumerate(choices)],
            usage=usage(job.prompts, choices),
            speculation=speculation(choices),
        )

    async def _run(self, job: Job) -> list[Choice]:
        choices = [Choice() for _ in job.requests]
        async with contextlib.aclosing(self._deltas(job)) as steps:
            async for delta in steps:
                choices[delta.index].add(delta)
        return choices

    def _deltas(self, job: Job) -> AsyncGenerator[Delta, None]:
        special = job.tools is not None
        return merge(
            [
                deltas(self._generator, request, job.body.stops, index=i, special=special)
                for i, request in enumerate(job.requests)
            ]
        )

    def _chat_choice(self, job: Job, index: int, choice: Choice) -> answers.ChatChoice:
        content: str | None = choice.text
        calls: list[ToolCall] = []
        if job.tools is not None:
            reader = ToolCallReader(job.tools.format)
            begun = reader.push(choice.text)
            rest, calls = reader.finish()
            content = begun + rest
        logprobs = None
        if job.requests[index].num_logprobs is not None:
            logprobs = self._token_text.chat_logprobs(choice.logprobs)
        message = answers.AnswerMessage(
            content=(content or None) if calls else content, tool_calls=calls or None
        )
        return answers.ChatChoice.model_validate(
            {
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": "tool_calls" if calls else choice.finish,
            }
        )

    def _text_choice(self, job: Job, index: int, choice: Choice) -> answers.TextChoice:
        echoed = self._echo(job, index)
        logprobs = None
        if job.requests[index].num_logprobs is not None:
            logprobs = self._token_text.text_logprobs(choice.logprobs, len(echoed))
        return answers.TextChoice.model_validate(
            {
                "index": index,
                "text": echoed + choice.text,
                "logprobs": logprobs,
                "finish_reason": choice.finish,
            }
        )

    def _echo(self, job: Job, index: int) -> str:
        if not (isinstance(job.body, CompletionRequest) and job.body.echo):
            return ""
        prompt = job.body.prompt
        if isinstance(prompt, str):
            return prompt
        item = prompt if is_ids(prompt) else prompt[index // job.num_each]
        return (
            item if isinstance(item, str) else self._token_text.text(job.requests[index].prompt_ids)
        )

    # -- streams ----------------------------------------------------------------------------------

    async def stream(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Server-sent events of a job: one a step, then usage if wanted, then ``[DONE]``.

        Raises:
            GorgonError: only before the first event; later ones become an event.
        """
        begun = False
        try:
            async with contextlib.aclosing(self._chunks(job)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield _event(chunk)
        except GorgonError as error:
            if not begun:
                raise
            yield _event({"error": detail(error).model_dump()})
        yield _DONE

    async def _chunks(self, job: Job) -> AsyncGenerator[dict[str, Any], None]:
        choices = [Choice() for _ in job.requests]
        streams = [self._choice_chunks(job, i) for i in range(len(job.requests))]
        options = job.body.stream_options
        with_usage = options is not None and options.include_usage
        head = {
            "id": job.id,
            "object": _chunk_kind(job),
            "created": job.created,
            "model": self.card.id,
        }
        no_usage_yet = {"usage": None} if with_usage else {}
        async with contextlib.aclosing(self._deltas(job)) as steps:
            async for delta in steps:
                choices[delta.index].add(delta)
                for part in streams[delta.index].push(delta, choices[delta.index]):
                    yield {**head, "choices": [part], **no_usage_yet}
        if with_usage:
            total, stats = usage(job.prompts, choices), speculation(choices)
            costs = {"usage": answers.dump(total), "speculation": answers.dump(stats)}
            yield {**head, "choices": [], **costs}

    def _choice_chunks(self, job: Job, index: int) -> ChoiceChunks:
        if isinstance(job.body, ChatRequest):
            reader = ToolCallReader(job.tools.format) if job.tools else None
            return ChatChunks(index, self._token_text, reader)
        return TextChunks(index, self._token_text, self._echo(job, index))

    # -- tokens -----------------------------------------------------------------------------------

    def tokenize(self, body: TokenizeRequest) -> answers.TokenizeAnswer:
        """Token ids of a text or a chat."""
        if body.messages is not None:
            tokens = self._generator.chat.encode([m.for_template() for m in body.messages])
        else:
            tokens = self._token_text.tokens(body.text or "", add_special=body.add_special)
        written = {token: self._token_text.written(token) for token in set(tokens)}
        pieces = [written[token] for token in tokens]
        return answers.TokenizeAnswer(tokens=tokens, pieces=pieces, count=len(tokens))

    def detokenize(self, body: DetokenizeRequest) -> answers.DetokenizeAnswer:
        """Text of token ids.

        Raises:
            RequestError: for an id that is not in the vocabulary.
        """
        size = self._generator.model.info.num_vocab
        if any(token >= size for token in body.tokens):
            raise RequestError(f"token ids must be 0 to {size - 1}", "tokens")
        return answers.DetokenizeAnswer(text=self._token_text.text(body.tokens))


def _chunk_kind(job: Job) -> str:
    return "chat.completion.chunk" if isinstance(job.body, ChatRequest) else "text_completion"


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + _JSON.dump_json(chunk) + b"\n\n"
