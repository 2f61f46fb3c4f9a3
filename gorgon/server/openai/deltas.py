"""From the engine's steps to pieces of text: what one step adds to an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from gorgon.errors import NotReadyError
from gorgon.request import FinishReason, Request, RequestStats, StepResult, TokenLogprob
from gorgon.server.generation import Generator
from gorgon.server.text import TextStream


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to the answer of choice ``index``.

    ``logprobs`` are of the tokens whose text is out. The last one has ``finish`` and ``stats``;
    ``num_tokens`` counts all tokens so far.
    """

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    finish: FinishReason | None = None
    stats: RequestStats | None = None


class _Answer:
    """One answer on its way: text and log-probabilities released together."""

    def __init__(self, generator: Generator, stop: Sequence[str], special: bool) -> None:
        self.stream = TextStream(generator.model, stop, special=special)
        self._eog_ids = generator.model.eog_ids
        self._entries: deque[tuple[int, int, TokenLogprob]] = deque()

    def push(self, result: StepResult) -> tuple[str, tuple[TokenLogprob, ...]]:
        text = ""
        for i, token in enumerate(result.tokens):
            ends = result.finish is FinishReason.STOP and token in self._eog_ids
            if self.stream.stopped or ends:
                self.stream.num_tokens += not self.stream.stopped
                break
            start = self.stream.num_decoded
            text += "".join(self.stream.push([token]))
            if result.logprobs:
                self._entries.append((start, self.stream.num_decoded, result.logprobs[i]))
        if result.finish is not None:
            text += self.stream.flush()
        return text, tuple(self._released(final=result.finish is not None or self.stream.stopped))

    def _released(self, final: bool) -> list[TokenLogprob]:
        """Entries whose text is out; at the end also one that is out in part."""
        out, released = self.stream.num_released, []
        while self._entries:
            start, end, entry = self._entries[0]
            if end > out and not (final and start < out):
                break
            released.append(entry)
            self._entries.popleft()
        return released


async def deltas(
    generator: Generator,
    request: Request,
    stop: Sequence[str] = (),
    *,
    index: int = 0,
    special: bool = False,
) -> AsyncGenerator[Delta, None]:
    """The answer to ``request``, step by step; closing it cancels the request.

    Raises:
        GorgonError: see ``Generator.results``.
        NotReadyError: when the server stops before the answer is complete.
    """
    answer = _Answer(generator, stop, special)
    async with contextlib.aclosing(generator.results(request)) as results:
        async for result in results:
            text, logprobs = answer.push(result)
            delta = Delta(index, text, logprobs, answer.stream.num_tokens)
            if answer.stream.stopped and result.finish is None:
                generator.cancel(request.id)
            if result.finish is not None:
                delta = replace(delta, finish=_finish(answer, result), stats=result.stats)
            if delta.text or delta.logprobs or delta.finish:
                yield delta


def _finish(answer: _Answer, result: StepResult) -> FinishReason:
    if answer.stream.stopped:
        return FinishReason.STOP
    if result.finish is FinishReason.CANCELLED:
        raise NotReadyError("the server is stopping; try again later")
    assert result.finish is not None
    return result.finish


async def merge(sources: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """The deltas of several answers as they come; closing it closes them all."""
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()

    async def drain(source: AsyncGenerator[Delta, None]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for delta in source:
                    queue.put_nowait(delta)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(drain(source)) for source in sources]
    try:
        num_open = len(tasks)
        while num_open:
            delta = await queue.get()
            if isinstance(delta, Exception):
                raise delta
            if delta is None:
                num_open -= 1
            else:
                yield delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
