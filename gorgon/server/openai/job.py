"""From a body to the requests that the engine gets: one for each answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gorgon.errors import RequestError
from gorgon.request import Request, SpeculationParams
from gorgon.server.generation import Generator
from gorgon.server.json_schema import json_object_grammar, schema_grammar
from gorgon.server.openai.bodies import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from gorgon.server.openai.fields import GenerationFields
from gorgon.server.openai.token_text import TokenText
from gorgon.server.openai.tools import ToolUse, tool_use


@dataclass(frozen=True, slots=True)
class Job:
    """One body on its way: ``n`` requests for each prompt, those of the first prompt first."""

    id: str
    created: int
    body: GenerationFields
    requests: Sequence[Request]
    prompts: Sequence[tuple[int, ...]]
    tools: ToolUse | None = None

    @property
    def num_each(self) -> int:
        """Answers of each prompt."""
        return len(self.requests) // len(self.prompts)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What confines an answer: a grammar, and the text from which on it holds."""

    grammar: str | None = None
    trigger: str | None = None


class JobMaker:
    """Makes jobs for one loaded model."""

    def __init__(self, generator: Generator, token_text: TokenText) -> None:
        self._generator, self._token_text = generator, token_text

    def chat(self, body: ChatRequest) -> Job:
        """The requests that ``body`` asks for.

        Raises:
            RequestError: for fields that do not go together or with this model.
        """
        tools = tool_use(body, self._generator.chat)
        listed = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        messages = [message.for_template() for message in body.messages]
        ids = self._generator.chat.encode(messages, listed if tools else None)
        top = (body.top_logprobs or 0) if body.logprobs else None
        limit = body.max_completion_tokens or body.max_tokens
        constraint = self._constraint(body, tools)
        return self._job("chatcmpl", body, [tuple(ids)], limit, top, constraint, tools)

    def completion(self, body: CompletionRequest) -> Job:
        """See ``chat``."""
        if body.echo and body.logprobs is not None:
            raise RequestError("echo with logprobs is not supported; leave one out", "echo")
        prompts = self._prompts(body)
        constraint = self._constraint(body, None)
        limit, top = body.max_tokens, body.logprobs
        return self._job("cmpl", body, prompts, limit, top, constraint, None)

    def _prompts(self, body: CompletionRequest) -> list[tuple[int, ...]]:
        prompt = body.prompt
        items: Sequence[Any] = [prompt] if isinstance(prompt, str) or is_ids(prompt) else prompt
        if not items:
            raise RequestError("prompt is an empty list; write some text", "prompt")
        prompts = [
            tuple(self._token_text.tokens(item) if isinstance(item, str) else item)
            for item in items
        ]
        if not all(prompts):
            raise RequestError("prompt is empty; write some text", "prompt")
        return prompts

    def _constraint(self, body: GenerationFields, tools: ToolUse | None) -> Constraint:
        found: dict[str, Constraint] = {}
        if body.grammar is not None:
            if not self._generator.settings.allow_grammar:
                raise RequestError("this server takes no grammar", "grammar")
            found["grammar"] = Constraint(body.grammar)
        form = body.response_format if isinstance(body, ChatRequest) else None
        if isinstance(form, JsonObjectFormat):
            found["response_format"] = Constraint(json_object_grammar())
        elif isinstance(form, JsonSchemaFormat):
            where = "response_format.json_schema.schema"
            found["response_format"] = Constraint(schema_grammar(form.json_schema.schema_, where))
        if tools is not None:
            found["tools"] = Constraint(tools.grammar, tools.trigger)
        if len(found) > 1:
            first, second = list(found)[:2]
            raise RequestError(f"{first} and {second} do not go together; give one", first)
        return next(iter(found.values()), Constraint())

    def _job(
        self,
        prefix: str,
        body: GenerationFields,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int | None,
        num_logprobs: int | None,
        constraint: Constraint,
        tools: ToolUse | None,
    ) -> Job:
        self._check_count(len(prompts), body.n or 1)
        for ids in prompts:
            self._check_length(len(ids), max_tokens)
        job_id = f"{prefix}-{uuid.uuid4().hex}"
        speculation = SpeculationParams() if body.speculation is None else body.speculation.params()
        requests = [
            Request(
                id=f"{job_id}-{i}-{choice}",
                prompt_ids=ids,
                max_tokens=max_tokens or self._generator.default_tokens(len(ids)),
                sampling=body.sampling(choice, constraint.grammar, constraint.trigger),
                speculation=speculation,
                ignore_eos=body.ignore_eos,
                reuse_prefix=body.cache_prompt,
                num_logprobs=num_logprobs,
            )
            for i, ids in enumerate(prompts)
            for choice in range(body.n or 1)
        ]
        return Job(job_id, int(time.time()), body, requests, prompts, tools)

    def _check_count(self, num_prompts: int, num_each: int) -> None:
        count, most = num_prompts * num_each, self._generator.settings.max_choices
        if count > most:
            field = "n" if num_prompts == 1 else "prompt"
            raise RequestError(f"{count} answers asked for, at most {most} at once", field)

    def _check_length(self, num_prompt: int, max_tokens: int | None) -> None:
        limit = self._generator.max_length
        if num_prompt >= limit:
            raise RequestError(
                f"the prompt has {num_prompt} tokens, the context holds {limit}; shorten it",
                "prompt",
            )
        if num_prompt + (max_tokens or 1) > limit:
            raise RequestError(
                f"prompt ({num_prompt} tokens) and max_tokens ({max_tokens}) exceed the context "
                f"of {limit}; max_tokens can be at most {limit - num_prompt}",
                "max_tokens",
            )


def is_ids(prompt: Sequence[Any]) -> bool:
    """Whether ``prompt`` is one prompt of token ids, not a list of prompts."""
    return bool(prompt) and isinstance(prompt[0], int)
