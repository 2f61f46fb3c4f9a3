"""From a wire request to the engine and back, on the event loop's side of the fence."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from gorgon.config import ServerSettings
from gorgon.engine.load import Loaded
from gorgon.engine.worker import Worker
from gorgon.errors import RequestError, TimeLimitError
from gorgon.request import FinishReason, Mode, Request, RequestStats, StepResult
from gorgon.server.preparation import prepared
from gorgon.server.schemas import CompareResponse, GenerateRequest, GenerateResponse
from gorgon.server.text import ChatPrompt, Message, TextStream, choose_template


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    text: str
    num_tokens: int
    finish: FinishReason
    stats: RequestStats


class Mailbox:
    """Results on their way from the engine's thread to the requests of one event loop.

    The loop is woken once for all results of a step: each call of ``call_soon_threadsafe`` gives
    the interpreter away in the midst of a step.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queues: dict[str, asyncio.Queue[StepResult | None]] = {}

    @contextlib.contextmanager
    def open(self, request_id: str) -> Iterator[asyncio.Queue[StepResult | None]]:
        """Where the results of a request arrive."""
        queue = self._queues[request_id] = asyncio.Queue()
        try:
            yield queue
        finally:
            del self._queues[request_id]

    def deliver(self, results: Sequence[StepResult]) -> None:
        """Pass results on; on the engine's thread. A loop that is closed has nobody to tell."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._hand_out, results)

    def _hand_out(self, results: Sequence[StepResult]) -> None:
        for result in results:
            if (queue := self._queues.get(result.request_id)) is not None:
                queue.put_nowait(result)


class Generator:
    """Serves generations of one loaded model."""

    def __init__(self, worker: Worker, loaded: Loaded, settings: ServerSettings) -> None:
        self._worker, self.loaded = worker, loaded
        self._mailbox: Mailbox | None = None
        self.settings, self.model = settings, loaded.model
        own = loaded.model.info.chat_template
        template = choose_template(own, settings.chat_template)
        self.chat = ChatPrompt(loaded.model, template)

    def encode(self, body: GenerateRequest) -> tuple[int, ...]:
        """Prompt token ids.

        Raises:
            RequestError: when there is no token in it.
        """
        if body.chat:
            return tuple(self.chat.encode([Message("user", body.prompt)]))
        ids = self.loaded.model.tokenize(body.prompt, add_special=True, parse_special=False)
        if not ids:
            raise RequestError("prompt is empty; write some text", "prompt")
        return tuple(ids)

    async def run(
        self,
        body: GenerateRequest,
        mode: Mode,
        *,
        reuse_prefix: bool = True,
        is_held: bool = False,
    ) -> Generation:
        """Generate to the end; cancelling the awaiting task cancels the request.

        ``is_held``: see ``Worker.submit``.

        Raises:
            GorgonError: what the engine answers to a request that it cannot serve.
        """
        prompt_ids = await prepared(len(body.prompt), lambda: self.encode(body))
        num_prompt = len(prompt_ids)
        request = Request(
            id=uuid.uuid4().hex,
            prompt_ids=prompt_ids,
            max_tokens=body.max_length or self.default_tokens(num_prompt),
            sampling=body.sampling(),
            speculation=body.speculation(mode),
            ignore_eos=body.ignore_eos,
            reuse_prefix=reuse_prefix and body.cache_prompt,
        )
        stream, parts = TextStream(self.loaded.model, body.stop), []
        finish, stats = FinishReason.CANCELLED, RequestStats()
        async with contextlib.aclosing(self.results(request, is_held)) as results:
            async for result in results:
                parts += stream.push(result.tokens)
                if stream.stopped:
                    self._worker.cancel(request.id)
                if result.finish is not None:
                    finish, stats = result.finish, result.stats or stats
        parts.append(stream.flush())
        if stream.stopped:
            finish = FinishReason.STOP
        return Generation("".join(parts), stream.num_tokens, finish, stats)

    @property
    def max_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return self._worker.engine.max_length

    def default_tokens(self, num_prompt: int) -> int:
        """How many new tokens a request gets that names no limit: as many as fit, at most."""
        room = self.max_length - num_prompt
        return max(1, min(self.settings.max_new_tokens, room))

    def _check_prompt(self, request: Request) -> None:
        limit, length = self.settings.max_prompt_tokens, len(request.prompt_ids)
        if limit is not None and length > limit:
            raise RequestError(f"prompt has {length} tokens, this server takes {limit}", "prompt")

    async def results(
        self, request: Request, is_held: bool = False
    ) -> AsyncGenerator[StepResult, None]:
        """The engine's results for ``request``, the last one included.

        Leaving the iteration early cancels the request. ``is_held``: see ``Worker.submit``.

        Raises:
            GorgonError: what the engine answers to a request that it cannot serve.
            TimeLimitError: when it takes longer than ``request_timeout``.
        """
        self._check_prompt(request)
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        with self._mailbox.open(request.id) as results:
            self._worker.submit(request, self._mailbox.deliver, is_held)
            limit = loop.call_later(self.settings.request_timeout, results.put_nowait, None)
            finished = False
            try:
                while not finished:
                    result = await results.get()
                    if result is None:
                        raise self._too_late()
                    finished = result.finish is not None
                    if result.error is not None:
                        raise result.error
                    yield result
            finally:
                limit.cancel()
                if not finished:
                    self._worker.cancel(request.id)

    def _too_late(self) -> TimeLimitError:
        return TimeLimitError(f"not done after {self.settings.request_timeout:g} s; ask for less")

    def cancel(self, request_id: str) -> None:
        """End a request; its results end with what it cost so far."""
        self._worker.cancel(request_id)

    async def generate(self, body: GenerateRequest, mode: Mode) -> GenerateResponse:
        """One generation as it goes over the wire.

        Raises:
            RequestError: when plain decoding is to draft a tree.
            GorgonError: see ``run``.
        """
        if mode == "normal" and body.tree is not None:
            raise RequestError("plain decoding drafts nothing; leave the tree out", "tree")
        generation = await self.run(body, mode)
        return describe(generation, self.plain_time(generation), mode)

    async def compare(self, body: GenerateRequest) -> CompareResponse:
        """Normal, then Medusa, each from an empty prefix so that neither has a head start."""
        quiet = self._worker.num_open == 0
        with self._worker.hold():
            normal = await self.run(body, "normal", reuse_prefix=False, is_held=True)
            medusa = await self.run(body, "medusa", reuse_prefix=False, is_held=True)
        quiet = quiet and normal.stats.max_batch <= 1 and medusa.stats.max_batch <= 1
        plain = _speed(normal)
        answer = describe(medusa, medusa.num_tokens / plain if plain else 0.0, "medusa")
        return CompareResponse(
            normal=describe(normal, 0.0, "normal"),
            medusa=answer,
            speedup=answer.speedup_factor,
            same_text=normal.text == medusa.text,
            quiet=quiet,
        )

    def plain_time(self, generation: Generation) -> float:
        """Seconds that plain decoding would have taken here, by its measured step time."""
        stats = generation.stats
        if not generation.num_tokens:
            return 0.0
        context = stats.prompt_tokens + generation.num_tokens // 2
        step = self.loaded.plain_step.at(context)
        return stats.prefill_time + (generation.num_tokens - 1) * step


def describe(generation: Generation, plain_time: float, mode: Mode) -> GenerateResponse:
    """The wire form of a generation; ``plain_time`` is what the speed-up is measured against."""
    stats, count = generation.stats, generation.num_tokens
    duration = stats.prefill_time + stats.decode_time
    return GenerateResponse(
        text=generation.text,
        generation_time=duration,
        tokens_generated=count,
        tokens_per_second=_speed(generation),
        speedup_factor=1.0 if mode == "normal" or not duration else plain_time / duration,
        acceptance_rate=100 * stats.accepted / stats.drafted if stats.drafted else None,
        finish_reason=generation.finish,
        prompt_tokens=stats.prompt_tokens,
        cached_tokens=stats.cached_tokens,
        steps=stats.steps,
        tokens_per_step=count / stats.steps if stats.steps else 0.0,
        drafted=stats.drafted,
        accepted=stats.accepted,
        accepted_by_depth=list(stats.accepted_by_depth),
        drafted_by_depth=list(stats.drafted_by_depth),
        accepted_by_source=dict(stats.accepted_by_source),
        drafted_by_source=dict(stats.drafted_by_source),
        queue_time=stats.queue_time,
        prefill_time=stats.prefill_time,
        decode_time=stats.decode_time,
    )


def _speed(generation: Generation) -> float:
    duration = generation.stats.prefill_time + generation.stats.decode_time
    return generation.num_tokens / duration if duration else 0.0
