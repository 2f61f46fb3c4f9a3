"""Chats and completions in OpenAI's form, on top of the generator. No HTTP here."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gorgon.errors import GorgonError, RequestError, UnknownModelError
from gorgon.request import FinishReason, Request, RequestStats, SpeculationParams, TokenLogprob
from gorgon.server import openai_wire as wire
from gorgon.server.deltas import Delta, deltas, merge
from gorgon.server.generation import Generator
from gorgon.server.json_schema import json_object_grammar, schema_grammar
from gorgon.server.text import Message
from gorgon.server.tools import ToolCallReader, ToolUse, tool_use

_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Choice:
    """One answer as it grows."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    finish: str = "length"
    stats: RequestStats = field(default_factory=RequestStats)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.num_tokens = delta.num_tokens
        if delta.finish is not None:
            self.finish = "stop" if delta.finish is FinishReason.STOP else "length"
            self.stats = delta.stats or self.stats


@dataclass(frozen=True, slots=True)
class _Job:
    """One body on its way: a request per answer, ``n`` of them for each prompt."""

    id: str
    kind: str
    created: int
    body: wire.GenerationFields
    requests: Sequence[Request]
    prompts: Sequence[tuple[int, ...]]
    tools: ToolUse | None = None


class OpenAi:
    """Serves ``/v1`` for one loaded model."""

    def __init__(self, generator: Generator, model: str, heads: int, max_length: int) -> None:
        self._generator, self._model = generator, generator.model
        self.card = wire.ModelCard(
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

    # -- whole answers ----------------------------------------------------------------------------

    async def chat(self, body: wire.ChatRequest) -> wire.ChatAnswer:
        """A whole answer to a chat.

        Raises:
            GorgonError: when it cannot be served.
        """
        job = self.chat_job(body)
        choices = await self._run(job)
        return wire.ChatAnswer(
            id=job.id,
            created=job.created,
            model=self.card.id,
            choices=[self._chat_choice(job, i, choice) for i, choice in enumerate(choices)],
            usage=_usage(job, choices),
            speculation=_speculation(choices),
        )

    async def complete(self, body: wire.CompletionRequest) -> wire.TextAnswer:
        """Whole continuations of one or more texts.

        Raises:
            GorgonError: when it cannot be served.
        """
        job = self.completion_job(body)
        choices = await self._run(job)
        return wire.TextAnswer(
            id=job.id,
            created=job.created,
            model=self.card.id,
            choices=[self._text_choice(job, i, choice) for i, choice in enumerate(choices)],
            usage=_usage(job, choices),
            speculation=_speculation(choices),
        )

    async def _run(self, job: _Job) -> list[_Choice]:
        choices = [_Choice() for _ in job.requests]
        async with contextlib.aclosing(self._deltas(job)) as steps:
            async for delta in steps:
                choices[delta.index].add(delta)
        return choices

    def _deltas(self, job: _Job) -> AsyncGenerator[Delta, None]:
        return merge(
            [
                deltas(
                    self._generator,
                    request,
                    job.body.stops,
                    index=i,
                    special=job.tools is not None,
                )
                for i, request in enumerate(job.requests)
            ]
        )

    def _chat_choice(self, job: _Job, index: int, choice: _Choice) -> wire.ChatChoice:
        content: str | None = choice.text
        calls: list[wire.ToolCall] = []
        if job.tools is not None:
            reader = ToolCallReader(job.tools.format)
            begun = reader.push(choice.text)
            rest, calls = reader.finish()
            content = begun + rest
        logprobs = None
        if job.requests[index].num_logprobs is not None:
            logprobs = wire.ChatLogprobs(content=list(map(self._chat_logprob, choice.logprobs)))
        message = wire.AnswerMessage(
            content=(content or None) if calls else content, tool_calls=calls or None
        )
        return wire.ChatChoice.model_validate(
            {
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": "tool_calls" if calls else choice.finish,
            }
        )

    def _text_choice(self, job: _Job, index: int, choice: _Choice) -> wire.TextChoice:
        echoed = self._echo(job, index)
        logprobs = None
        if job.requests[index].num_logprobs is not None:
            logprobs = self._text_logprobs(choice.logprobs, len(echoed))
        return wire.TextChoice.model_validate(
            {
                "index": index,
                "text": echoed + choice.text,
                "logprobs": logprobs,
                "finish_reason": choice.finish,
            }
        )

    def _echo(self, job: _Job, index: int) -> str:
        if not (isinstance(job.body, wire.CompletionRequest) and job.body.echo):
            return ""
        prompt = job.body.prompt
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt[0], str):
            return str(prompt[index // (job.body.n or 1)])
        return self.text_of(job.requests[index].prompt_ids)

    # -- streams ----------------------------------------------------------------------------------

    async def stream(self, job: _Job) -> AsyncGenerator[bytes, None]:
        """Server-sent events of a job: one a step, then usage if wanted, then ``[DONE]``.

        Raises:
            GorgonError: only before the first event; later ones become an event.
        """
        choices = [_Choice() for _ in job.requests]
        begun = False
        try:
            async with contextlib.aclosing(self._chunks(job, choices)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield _event(chunk)
        except GorgonError as error:
            if not begun:
                raise
            yield _event({"error": _error(error)})
        yield _DONE

    async def _chunks(
        self, job: _Job, choices: list[_Choice]
    ) -> AsyncGenerator[dict[str, Any], None]:
        streams = [
            (_ChatStream if isinstance(job.body, wire.ChatRequest) else _TextStream)(self, job, i)
            for i in range(len(job.requests))
        ]
        include_usage = (
            job.body.stream_options is not None and job.body.stream_options.include_usage
        )
        head = {
            "id": job.id,
            "object": job.kind,
            "created": job.created,
            "model": self.card.id,
        }
        usage = {"usage": None} if include_usage else {}
        async with contextlib.aclosing(self._deltas(job)) as steps:
            async for delta in steps:
                choices[delta.index].add(delta)
                for part in streams[delta.index].push(delta, choices[delta.index]):
                    yield {**head, "choices": [part], **usage}
        stats = wire.dump(_speculation(choices))
        if include_usage:
            total = wire.dump(_usage(job, choices))
            yield {**head, "choices": [], "usage": total, "speculation": stats}

    # -- bodies to requests -----------------------------------------------------------------------

    def chat_job(self, body: wire.ChatRequest) -> _Job:
        """The requests that ``body`` asks for.

        Raises:
            RequestError: for fields that do not go together or with this model.
        """
        tools = tool_use(body, self._generator.chat)
        listed = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        messages = [_message(message) for message in body.messages]
        ids = self._generator.chat.encode(messages, listed if tools else None)
        constraint = self._constraint(body, tools)
        top = (body.top_logprobs or 0) if body.logprobs else None
        limit = body.max_completion_tokens or body.max_tokens
        return self._job(body, [tuple(ids)], limit, top, constraint, tools)

    def completion_job(self, body: wire.CompletionRequest) -> _Job:
        """See ``chat_job``."""
        if body.echo and body.logprobs is not None:
            raise RequestError("echo with logprobs is not supported; leave one out", "echo")
        constraint = self._constraint(body, None)
        return self._job(
            body, self._prompts(body), body.max_tokens, body.logprobs, constraint, None
        )

    def _prompts(self, body: wire.CompletionRequest) -> list[tuple[int, ...]]:
        prompt = body.prompt
        items = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
        if not items:
            raise RequestError("prompt is an empty list; write some text", "prompt")
        prompts = []
        for item in items:
            ids = self.tokens_of(item) if isinstance(item, str) else item
            assert isinstance(ids, list)
            if not ids:
                raise RequestError("prompt is empty; write some text", "prompt")
            prompts.append(tuple(ids))
        return prompts  # type: ignore[return-value]

    def _constraint(
        self, body: wire.GenerationFields, tools: ToolUse | None
    ) -> tuple[str | None, str | None]:
        """Grammar and trigger."""
        found: dict[str, tuple[str | None, str | None]] = {}
        if body.grammar is not None:
            if not self._generator.settings.allow_grammar:
                raise RequestError("this server takes no grammar", "grammar")
            found["grammar"] = body.grammar, None
        form = getattr(body, "response_format", None)
        if isinstance(form, wire.JsonObjectFormat):
            found["response_format"] = json_object_grammar(), None
        elif isinstance(form, wire.JsonSchemaFormat):
            where = "response_format.json_schema.schema"
            found["response_format"] = schema_grammar(form.json_schema.schema_, where), None
        if tools is not None:
            found["tools"] = tools.grammar, tools.trigger
        if len(found) > 1:
            first, second = list(found)[:2]
            raise RequestError(f"{first} and {second} do not go together; give one", first)
        return next(iter(found.values()), (None, None))

    def _job(
        self,
        body: wire.GenerationFields,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int | None,
        num_logprobs: int | None,
        constraint: tuple[str | None, str | None],
        tools: ToolUse | None,
    ) -> _Job:
        self.check_model(body.model)
        count, most = len(prompts) * (body.n or 1), self._generator.settings.max_choices
        if count > most:
            field_name = "n" if len(prompts) == 1 else "prompt"
            raise RequestError(f"{count} answers asked for, at most {most} at once", field_name)
        prefix, kind = ("chatcmpl", "chat.completion.chunk")
        if isinstance(body, wire.CompletionRequest):
            prefix, kind = ("cmpl", "text_completion")
        for ids in prompts:
            self._check_length(len(ids), max_tokens or 1)
        job_id = f"{prefix}-{uuid.uuid4().hex}"
        speculation = SpeculationParams() if body.speculation is None else body.speculation.params()
        requests = [
            Request(
                id=f"{job_id}-{i}-{choice}",
                prompt_ids=ids,
                max_tokens=max_tokens or self._generator.default_tokens(len(ids)),
                sampling=body.sampling(choice, *constraint),
                speculation=speculation,
                num_logprobs=num_logprobs,
            )
            for i, ids in enumerate(prompts)
            for choice in range(body.n or 1)
        ]
        return _Job(job_id, kind, int(time.time()), body, requests, prompts, tools)

    def _check_length(self, num_prompt: int, max_tokens: int) -> None:
        limit = self._generator.max_length
        if num_prompt >= limit:
            raise RequestError(
                f"the prompt has {num_prompt} tokens, the context holds {limit}; shorten it",
                "prompt",
            )
        if num_prompt + max_tokens > limit:
            raise RequestError(
                f"prompt ({num_prompt} tokens) and max_tokens ({max_tokens}) exceed the context "
                f"of {limit}; max_tokens can be at most {limit - num_prompt}",
                "max_tokens",
            )

    # -- tokens -----------------------------------------------------------------------------------

    def tokenize(self, body: wire.TokenizeRequest) -> wire.TokenizeAnswer:
        """Token ids of a text or a chat."""
        if body.messages is not None:
            tokens = self._generator.chat.encode([_message(m) for m in body.messages])
        else:
            tokens = self.tokens_of(body.text or "", add_special=body.add_special)
        pieces = [self._written(token) for token in tokens]
        return wire.TokenizeAnswer(tokens=tokens, pieces=pieces, count=len(tokens))

    def detokenize(self, body: wire.DetokenizeRequest) -> wire.DetokenizeAnswer:
        """Text of token ids.

        Raises:
            RequestError: for an id that is not in the vocabulary.
        """
        size = self._model.info.num_vocab
        if any(token >= size for token in body.tokens):
            raise RequestError(f"token ids must be 0 to {size - 1}", "tokens")
        return wire.DetokenizeAnswer(text=self.text_of(body.tokens))

    def tokens_of(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids; nothing in ``text`` is a control token."""
        return self._model.tokenize(text, add_special=add_special, parse_special=False)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Text; control tokens add none."""
        return b"".join(map(self._model.piece, tokens)).decode("utf-8", "replace")

    def _written(self, token: int) -> str:
        return self._model.piece(token, special=True).decode("utf-8", "replace")

    def _top(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._model.piece(token, special=True)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    def _chat_logprob(self, entry: TokenLogprob) -> wire.ChatLogprob:
        top = [wire.TopLogprob(**self._top(*pair)) for pair in entry.top]
        return wire.ChatLogprob(**self._top(entry.token, entry.logprob), top_logprobs=top)

    def _text_logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> wire.TextLogprobs:
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(self._written(entry.token))
        return wire.TextLogprobs(
            tokens=[self._written(entry.token) for entry in entries],
            token_logprobs=[max(entry.logprob, -9999.0) for entry in entries],
            top_logprobs=[
                {self._written(token): max(logprob, -9999.0) for token, logprob in entry.top}
                for entry in entries
            ],
            text_offset=offsets,
        )

    def chat_logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """As a chunk carries them."""
        return wire.dump(wire.ChatLogprobs(content=list(map(self._chat_logprob, entries))))

    def text_logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """As a chunk carries them."""
        return wire.dump(self._text_logprobs(entries, offset))

    def echo(self, job: _Job, index: int) -> str:
        """What a stream says before its first token."""
        return self._echo(job, index)


class _ChatStream:
    """The chunks of one choice of a chat."""

    def __init__(self, api: OpenAi, job: _Job, index: int) -> None:
        self._api, self._index = api, index
        self._with_logprobs = job.requests[index].num_logprobs is not None
        self._reader = ToolCallReader(job.tools.format) if job.tools else None
        self._begun = False

    def push(self, delta: Delta, choice: _Choice) -> list[dict[str, Any]]:
        """What one step adds; the last chunk has the reason of the end and no text."""
        chunks = []
        if not self._begun:
            self._begun = True
            chunks.append(self._chunk({"role": "assistant", "content": ""}))
        text = self._reader.push(delta.text) if self._reader else delta.text
        calls: list[wire.ToolCall] = []
        if self._reader and delta.finish is not None:
            rest, calls = self._reader.finish()
            text += rest
        logprobs = self._api.chat_logprobs(delta.logprobs) if delta.logprobs else None
        if text or logprobs:
            chunks.append(self._chunk({"content": text}, logprobs))
        if calls:
            parts = [{"index": i, **wire.dump(call)} for i, call in enumerate(calls)]
            chunks.append(self._chunk({"tool_calls": parts}))
        if delta.finish is not None:
            chunks.append(self._chunk({}, finish="tool_calls" if calls else choice.finish))
        return chunks

    def _chunk(
        self,
        delta: Mapping[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs if self._with_logprobs else None,
            "finish_reason": finish,
        }


class _TextStream:
    """The chunks of one choice of a completion."""

    def __init__(self, api: OpenAi, job: _Job, index: int) -> None:
        self._api, self._index = api, index
        self._prefix = api.echo(job, index)
        self._offset = len(self._prefix)

    def push(self, delta: Delta, choice: _Choice) -> list[dict[str, Any]]:
        """What one step adds."""
        text, self._prefix = self._prefix + delta.text, ""
        logprobs = None
        if delta.logprobs:
            logprobs = self._api.text_logprobs(delta.logprobs, self._offset)
            self._offset += sum(map(len, logprobs["tokens"]))
        finish = choice.finish if delta.finish is not None else None
        return [{"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish}]


def _is_ids(prompt: Sequence[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _message(message: wire.ChatMessage) -> Message:
    extra: dict[str, Any] = {}
    if message.name is not None:
        extra["name"] = message.name
    if message.tool_call_id is not None:
        extra["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        extra["tool_calls"] = [_call(call) for call in message.tool_calls]
    role = "system" if message.role == "developer" else message.role
    return Message(role, message.text, extra)


def _call(call: wire.ToolCall) -> dict[str, Any]:
    """As templates expect it: arguments as an object where they are one."""
    written = wire.dump(call)
    with contextlib.suppress(ValueError):
        written["function"]["arguments"] = json.loads(call.function.arguments)
    return written


def _usage(job: _Job, choices: Sequence[_Choice]) -> wire.Usage:
    prompt = sum(map(len, job.prompts))
    completion = sum(choice.num_tokens for choice in choices)
    each = len(choices) // len(job.prompts)
    cached = sum(choice.stats.cached_tokens for choice in choices[::each])
    return wire.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=wire.PromptTokensDetails(cached_tokens=cached),
    )


def _speculation(choices: Sequence[_Choice]) -> wire.SpeculationStats:
    stats = [choice.stats for choice in choices]
    steps = sum(s.steps for s in stats)
    tokens = sum(choice.num_tokens for choice in choices)
    return wire.SpeculationStats(
        steps=steps,
        drafted=sum(s.drafted for s in stats),
        accepted=sum(s.accepted for s in stats),
        tokens_per_step=tokens / steps if steps else 0.0,
        drafted_by_depth=_add_lists([s.drafted_by_depth for s in stats]),
        accepted_by_depth=_add_lists([s.accepted_by_depth for s in stats]),
        drafted_by_source=_add_counts([s.drafted_by_source for s in stats]),
        accepted_by_source=_add_counts([s.accepted_by_source for s in stats]),
        queue_time=max(s.queue_time for s in stats),
        prefill_time=max(s.prefill_time for s in stats),
        decode_time=max(s.decode_time for s in stats),
    )


def _add_lists(lists: Sequence[Sequence[int]]) -> list[int]:
    length = max(map(len, lists), default=0)
    return [sum(counts[i] for counts in lists if i < len(counts)) for i in range(length)]


def _add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def _error(error: GorgonError) -> dict[str, Any]:
    return {"message": str(error), "type": "server_error", "param": None, "code": error.code}
