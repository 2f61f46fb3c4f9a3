"""What a step spends outside the model: the engine's own work, with drafts and without.

    python -m benchmarks.steps --prompts mt_bench.jsonl [--clients 1 8] [--temperature 0]

t(n) is given, not measured: t(1) = 3.4 ms and 6 % more for each further token, so that a few
drafts pay in every run, whatever the machine does meanwhile. Left out are steps with prompt chunks
and, in mode medusa, those that do not ask the heads. Medians over the steps, ms; "outside" is all
but llama_decode and the heads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gorgon.bench.prompts import load_prompts
from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.llama.backend import LlamaBackend
from gorgon.llama.library import llama
from gorgon.request import Mode, Request, SamplingParams, SpeculationParams
from gorgon.speculation.cost import StepCost, StepTimes

SIZES = (1, 256)
FIRST, SLOPE = 3.4e-3, 0.06


class GivenCost(StepCost):
    """A t(n) that no step changes."""

    def observe(
        self, num_tokens: int, context: float, seconds: float, num_requests: int = 1
    ) -> None:
        pass


class Clock:
    """Seconds inside ``llama_decode``."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._decode = llama.llama_decode
        llama.llama_decode = self._timed

    def _timed(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        code = self._decode(*arguments)
        self.seconds += time.perf_counter() - began
        return code


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step and what it gave."""

    total: float
    decode: float
    heads: float
    num_tokens: int

    @property
    def outside(self) -> float:
        return self.total - self.decode - self.heads


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    settings, clock = EngineSettings(), Clock()
    backend = LlamaBackend(settings)
    seconds = np.array([[FIRST * (1 + SLOPE * (n - 1)) for n in SIZES]])
    engine = Engine(backend, settings, GivenCost(StepTimes((32,), SIZES, seconds), 256))
    texts = [prompt.text for prompt in load_prompts(arguments.prompts)]
    prompts = [backend.model.tokenize(t, add_special=True, parse_special=False) for t in texts]
    table = Table("clients", "mode", "steps", "tokens", "step", "llama_decode", "heads", "outside")
    for clients in arguments.clients:
        for mode in ("normal", "medusa"):
            params = SamplingParams(temperature=arguments.temperature, seed=1)
            steps = run(engine, clock, prompts, clients, mode, arguments.length, params)
            table.add_row(str(clients), mode, str(len(steps)), *_columns(steps))
    Console().print(table)


def run(
    engine: Engine,
    clock: Clock,
    prompts: Sequence[list[int]],
    clients: int,
    mode: Mode,
    length: int,
    params: SamplingParams,
) -> list[Step]:
    """Steps in which ``clients`` requests decode and nothing else happens."""
    waiting = deque(prompts[: max(8, 2 * clients)])
    steps: list[Step] = []
    while waiting or engine.has_work:
        while waiting and len(engine.scheduler.running) + len(engine.scheduler.waiting) < clients:
            engine.submit(_request(len(waiting), waiting.popleft(), length, mode, params))
        clock.seconds = 0.0
        results, times = engine.step(), engine.times
        asked = times.heads > 0.0 or mode == "normal"
        if asked and times.prefill == 0.0 and len(engine.scheduler.running) == clients:
            num_tokens = sum(len(result.tokens) for result in results)
            steps.append(Step(times.total, clock.seconds, times.heads, num_tokens))
    return steps


def _request(
    number: int, prompt: list[int], length: int, mode: Mode, params: SamplingParams
) -> Request:
    speculation = SpeculationParams(mode=mode)
    return Request(
        f"{number}", tuple(prompt), length, params, speculation, True, reuse_prefix=False
    )


def _columns(steps: Sequence[Step]) -> list[str]:
    tokens = statistics.fmean(step.num_tokens for step in steps)
    parts = [(step.total, step.decode, step.heads, step.outside) for step in steps]
    return [
        f"{tokens:.2f}",
        *(f"{1e3 * statistics.median(p):.3f}" for p in zip(*parts, strict=True)),
    ]


if __name__ == "__main__":
    main()
