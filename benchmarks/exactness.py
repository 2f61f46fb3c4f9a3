"""Does drafting change the text? Every way of decoding against plain decoding, row by row.

    python -m benchmarks.exactness --prompts mt_bench.jsonl
    python -m benchmarks.exactness --prompts mt_bench.jsonl --no-flash-attention
    GORGON_KERNELS=0 python -m benchmarks.exactness --prompts mt_bench.jsonl --context 600

Plain decoding of one request at a time, with no prefix reused, is the reference. For each way and
prompt the logits behind every token are compared with the reference's up to the first token that
differs. There a difference is called rounding when the distance between the two rows of logits is
enough to explain it; docs/exactness.md says where the distances come from.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.steps import GivenCost
from gorgon.backend import Floats, Output, Sampler
from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.errors import GorgonError
from gorgon.llama import kernels
from gorgon.llama.backend import LlamaBackend
from gorgon.noise import Noise
from gorgon.request import Request, SamplingParams, SpeculationParams, TreePaths
from gorgon.server.text import VICUNA_TEMPLATE, ChatPrompt, Message
from gorgon.speculation.cost import StepTimes

PLAIN = SpeculationParams(mode="normal")
TREES: dict[str, TreePaths] = {
    "chain of 3": ((0,), (0, 0), (0, 0, 0)),
    "tree of 4": ((0,), (0, 0), (0, 0, 0), (1,)),
    "tree of 8": ((0,), (0, 0), (0, 0, 0), (0, 1), (1,), (1, 0), (2,), (3,)),
}
SPECULATIONS = {
    "normal": PLAIN,
    **{name: SpeculationParams(mode="fixed", tree=paths) for name, paths in TREES.items()},
    "automatic": SpeculationParams(mode="medusa"),
}
SAMPLINGS = {
    "greedy": SamplingParams(),
    "top-k, top-p": SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=1),
    "min-p": SamplingParams(temperature=1.2, min_p=0.05, seed=2),
    "penalties": SamplingParams(
        temperature=0.7, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1, seed=3
    ),
    "greedy, penalty": SamplingParams(repetition_penalty=1.2),
}
GAP = 2  # steps between two arrivals in a batch


@dataclass
class Trace:
    """The tokens of one request and the logits, [num_vocab], that each was drawn from."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    accepted: int = 0


class RecordingSampler:
    """Draws as ``inner`` does and writes down what it saw."""

    def __init__(self, inner: Sampler, trace: Trace) -> None:
        self._inner, self._trace = inner, trace

    @property
    def failure(self) -> GorgonError | None:
        """See ``Sampler``."""
        return self._inner.failure

    @property
    def noise(self) -> Noise | None:
        """See ``Sampler``."""
        return self._inner.noise

    def draw(self, output: Output, row: int) -> int:
        self._trace.tokens.append(self._inner.draw(output, row))
        self._trace.logits.append(output.logits[row].copy())
        return self._trace.tokens[-1]

    def observe(self, token: int) -> None:
        raise AssertionError("lossless acceptance draws every token itself")

    def close(self) -> None:
        self._inner.close()


class RecordingBackend(LlamaBackend):
    """Llama.cpp whose draws are recorded, into ``traces`` in the order of admission."""

    traces: deque[Trace]

    def make_sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        return RecordingSampler(super().make_sampler(params, prompt), self.traces.popleft())


class Recorder:
    """An engine whose requests leave traces.

    Every draft with a chance is tried: where drafts do not pay, nothing would be compared. Steps
    are said to take a second, so that drafts never bring less than was expected either.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.backend = RecordingBackend(settings)
        times = StepTimes((32,), (1, 64), np.array([[1.0, 1.01]]))
        self.engine = Engine(self.backend, settings, GivenCost(times, self.backend.max_rows))

    def run(self, requests: Sequence[Request]) -> list[Trace]:
        """The trace of each request; in company they arrive ``GAP`` steps after each other."""
        traces = {request.id: Trace() for request in requests}
        self.backend.traces = deque(traces.values())
        for request in requests:
            self.engine.submit(request)
            for _ in range(GAP if len(requests) > 1 else 0):
                self._step(traces)
        while self.engine.has_work:
            self._step(traces)
        self.engine.check_integrity()
        return list(traces.values())

    def run_steadily(self, requests: Sequence[Request], num_running: int) -> list[Trace]:
        """The same with ``num_running`` at any time: cells are freed and filled beside them."""
        traces = {request.id: Trace() for request in requests}
        self.backend.traces = deque(traces.values())
        scheduler, later = self.engine.scheduler, deque(requests)
        while later or self.engine.has_work:
            while later and len(scheduler.running) + len(scheduler.waiting) < num_running:
                self.engine.submit(later.popleft())
            self._step(traces)
        self.engine.check_integrity()
        return list(traces.values())

    def forget(self) -> None:
        """Empty the cache, so that what comes next is alone in it."""
        self.engine.pool.forget_prefixes()

    def _step(self, traces: dict[str, Trace]) -> None:
        for result in self.engine.step():
            if result.error is not None:
                raise result.error
            if result.stats is not None:
                traces[result.request_id].accepted = result.stats.accepted


@dataclass
class Tally:
    """What comparing traces with their references found."""

    texts: int = 0
    same_texts: int = 0
    rows: int = 0
    same_rows: int = 0
    accepted: int = 0
    distance: float = 0.0
    unexplained: int = 0
    gaps: list[float] = field(default_factory=list)

    def add(self, reference: Trace, trace: Trace) -> None:
        """Compare up to the first token that differs; there both still have the same past."""
        self.texts += 1
        self.accepted += trace.accepted
        self.same_texts += trace.tokens == reference.tokens
        pairs = zip(reference.tokens, reference.logits, trace.tokens, trace.logits, strict=False)
        for wanted, logits, token, other in pairs:
            distance = float(np.abs(logits - other).max())
            self.rows, self.same_rows = self.rows + 1, self.same_rows + (distance == 0.0)
            self.distance = max(self.distance, distance)
            if token != wanted:
                self._differ(float(logits[wanted] - logits[token]), distance)
                return

    def _differ(self, gap: float, distance: float) -> None:
        """Two tokens change places only if each row moved by half of the gap between them.

        For sampled tokens, which need not be neighbours, only the distance says anything.
        """
        self.gaps.append(abs(gap))
        self.unexplained += distance == 0.0


def make_requests(
    prompts: Sequence[tuple[int, ...]],
    length: int,
    sampling: SamplingParams,
    speculation: SpeculationParams,
    reuse: bool,
) -> list[Request]:
    """One request a prompt, each with a seed of its own."""
    return [
        Request(str(i), prompt, length, sampling, speculation, reuse_prefix=reuse)
        for i, prompt in enumerate(prompts)
    ]


def compare(
    recorder: Recorder, requests: Sequence[Request], references: Sequence[Trace], batch: int = 1
) -> Tally:
    """Run ``requests``, ``batch`` at a time, against the traces of plain decoding."""
    tally = Tally()
    for start in range(0, len(requests), batch):
        recorder.forget()
        traces = recorder.run(requests[start : start + batch])
        for trace, reference in zip(traces, references[start : start + batch], strict=True):
            tally.add(reference, trace)
    return tally


def compare_under_load(
    recorder: Recorder, requests: Sequence[Request], references: Sequence[Trace], num_running: int
) -> Tally:
    """Run ``requests`` with ``num_running`` at any time, in a cache that is never emptied."""
    tally = Tally()
    traces = recorder.run_steadily(requests, num_running)
    for trace, reference in zip(traces, references, strict=True):
        tally.add(reference, trace)
    return tally


def plain(recorder: Recorder, requests: Sequence[Request]) -> list[Trace]:
    """Plain decoding of each request alone."""
    traces = []
    for request in requests:
        recorder.forget()
        traces += recorder.run([request])
    return traces


def compare_all(
    recorder: Recorder,
    prompts: Sequence[tuple[int, ...]],
    length: int,
    samplings: Sequence[str],
    report: Report,
) -> None:
    """All trees alone, some in company, under load, and with a prefix found in the cache."""
    for name in samplings:
        sampling = SAMPLINGS[name]
        references = plain(recorder, make_requests(prompts, length, sampling, PLAIN, False))
        for tree, speculation in SPECULATIONS.items():
            requests = make_requests(prompts, length, sampling, speculation, False)
            if speculation is not PLAIN:
                report(f"{name}, {tree}", compare(recorder, requests, references))
            if name in ("greedy", "top-k, top-p"):
                report(f"{name}, {tree}, 8 at once", compare(recorder, requests, references, 8))
        if name == "greedy":
            for tree, speculation in SPECULATIONS.items():
                requests = make_requests(prompts, length, sampling, speculation, True)
                tally = compare_under_load(recorder, requests, references, 8)
                report(f"{name}, {tree}, always 8", tally)
            compare_second_turns(recorder, prompts, references, length, report)


def compare_second_turns(
    recorder: Recorder,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[Trace],
    length: int,
    report: Report,
) -> None:
    """Prompts that begin with an earlier prompt and its answer, found in the cache or not."""
    longer = [
        (*prompt, *answer.tokens, *prompt) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    greedy = SAMPLINGS["greedy"]
    references = plain(recorder, make_requests(longer, length, greedy, PLAIN, False))
    for tree in ("normal", "tree of 4"):
        firsts = make_requests(prompts, length, greedy, SPECULATIONS[tree], True)
        seconds = make_requests(longer, length, greedy, SPECULATIONS[tree], True)
        tally = Tally()
        for first, second, reference in zip(firsts, seconds, references, strict=True):
            recorder.forget()
            recorder.run([first])
            tally.add(reference, recorder.run([second])[0])
        report(f"greedy, {tree}, prefix reused", tally)


Report = Callable[[str, Tally], None]


def load_prompts(
    path: Path, backend: LlamaBackend, count: int, context: int
) -> list[tuple[int, ...]]:
    """The first turns of a jsonl file, each behind others until it is ``context`` tokens long."""
    chat = ChatPrompt(backend.model, backend.model.info.chat_template or VICUNA_TEMPLATE)
    lines = path.read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line)["turns"][0] for line in lines]
    prompts = []
    for i in range(0, len(turns), max(1, len(turns) // count)):
        texts = [turns[i]]
        ids = chat.encode([Message("user", turns[i])])
        while len(ids) < context:
            texts.insert(0, turns[(i + len(texts)) % len(turns)])
            ids = chat.encode([Message("user", "\n".join(texts))])
        prompts.append(tuple(ids))
    return prompts[:count]


def row(name: str, tally: Tally) -> list[str]:
    gaps = f"{min(tally.gaps):.2g} to {max(tally.gaps):.2g}" if tally.gaps else ""
    return [
        name,
        f"{tally.same_texts} of {tally.texts}",
        f"{tally.same_rows / tally.rows:.1%}",
        f"{tally.distance:.2g}",
        gaps,
        str(tally.unexplained),
        str(tally.accepted),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="jsonl with 'turns'")
    parser.add_argument("--count", type=int, default=16, help="prompts")
    parser.add_argument("--length", type=int, default=64, help="new tokens")
    parser.add_argument("--context", type=int, default=0, help="least length of a prompt")
    parser.add_argument("--cache-type", choices=["f16", "q8_0", "q4_0"], default="f16")
    parser.add_argument("--samplings", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-flash-attention", action="store_true")
    args = parser.parse_args()
    settings = EngineSettings(
        cache_type=args.cache_type,
        flash_attention=not args.no_flash_attention,
        threads=args.threads,
    )
    recorder = Recorder(settings)
    prompts = load_prompts(args.prompts, recorder.backend, args.count, args.context)
    columns = ("same text", "same rows", "max distance", "gap", "unexplained", "drafts taken")
    console, table = Console(width=120), Table("", *columns)

    def report(name: str, tally: Tally) -> None:
        table.add_row(*row(name, tally))
        print(*row(name, tally), sep=" | ", flush=True)

    compare_all(recorder, prompts, args.length, args.samplings, report)
    console.print(table)
    status = kernels.load()
    attention = "off" if args.no_flash_attention else "on"
    console.print(
        f"kernels {status.isa if status.active else 'of llama.cpp'}, cache {args.cache_type}, "
        f"flash attention {attention}, {len(prompts)} prompts of {min(map(len, prompts))} to "
        f"{max(map(len, prompts))} tokens, {args.length} new ones, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
