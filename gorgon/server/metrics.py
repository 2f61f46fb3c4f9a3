"""Prometheus series of one server; docs/api.md lists them.

Counters and histograms are fed by the engine thread, once a step; gauges are read between two
steps when somebody asks for ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gorgon.engine.engine import Engine
from gorgon.engine.worker import StepReport
from gorgon.request import FinishReason, RequestStats, StepResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ESTIMATED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class EngineState:
    """What only the engine thread may read, copied between two steps."""

    running: int
    waiting: int
    cells_used: int
    cells_cached: int
    cells_trash: int
    cells_free: int
    step_seconds: Mapping[int, float]


def read_state(engine: Engine) -> EngineState:
    """For the engine thread."""
    pool = engine.pool
    curve = engine.drafter.cost.seconds(256)
    cached, trash, used = pool.num_cached_cells, pool.num_trash_cells, pool.cells.num_used
    return EngineState(
        running=len(engine.scheduler.running),
        waiting=len(engine.scheduler.waiting),
        cells_used=used,
        cells_cached=cached,
        cells_trash=trash,
        cells_free=pool.cells.num_free,
        step_seconds={n: float(curve[n]) for n in _ESTIMATED if n < len(curve)},
    )


class Metrics:
    """The series, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.answers = Counter(
            "gorgon_http_responses",
            "Answers by route and status",
            ["path", "status"],
            registry=registry,
        )
        self._requests = Counter(
            "gorgon_requests",
            "Generations by outcome: stop, length, cancelled, error, refused",
            ["outcome"],
            registry=registry,
        )
        self._prompt = Counter("gorgon_prompt_tokens", "Prompt tokens", registry=registry)
        self._cached = Counter(
            "gorgon_prefix_hit_tokens",
            "Prompt tokens found in the prefix cache",
            registry=registry,
        )
        self._hits = Counter(
            "gorgon_prefix_lookups",
            "Generations by whether a prefix was found",
            ["result"],
            registry=registry,
        )
        self._new = Counter("gorgon_generated_tokens", "New tokens", registry=registry)
        self._drafted = Counter(
            "gorgon_drafted_tokens", "Drafted tokens by depth", ["depth"], registry=registry
        )
        self._accepted = Counter(
            "gorgon_accepted_tokens", "Accepted drafts by depth", ["depth"], registry=registry
        )
        self._drafted_by = Counter(
            "gorgon_drafted_tokens_by_source",
            "Drafted tokens by source",
            ["source"],
            registry=registry,
        )
        self._accepted_by = Counter(
            "gorgon_accepted_tokens_by_source",
            "Accepted drafts by source",
            ["source"],
            registry=registry,
        )
        self._queue_time = Histogram(
            "gorgon_queue_seconds",
            "From arrival to admission",
            buckets=_LATENCIES,
            registry=registry,
        )
        self._first = Histogram(
            "gorgon_time_to_first_token_seconds",
            "From arrival to the first token",
            buckets=_LATENCIES,
            registry=registry,
        )
        self._each = Histogram(
            "gorgon_time_per_output_token_seconds",
            "Decoding time over tokens after the first",
            buckets=_STEPS,
            registry=registry,
        )
        self._step = Histogram(
            "gorgon_step_seconds", "One engine step", buckets=_STEPS, registry=registry
        )
        self._model = Counter("gorgon_model_seconds", "Time in the model", registry=registry)
        self._heads = Counter("gorgon_heads_seconds", "Time in the heads", registry=registry)
        self._batch = Histogram(
            "gorgon_batch_requests",
            "Requests that a step decoded",
            buckets=_SIZES,
            registry=registry,
        )
        self._gauges = {
            name: Gauge(f"gorgon_{name}", text, registry=registry)
            for name, text in (
                ("running", "Requests being served"),
                ("waiting", "Requests in the queue"),
                ("cells_used", "KV cells in use, cached and trash included"),
                ("cells_cached", "KV cells of cached prefixes"),
                ("cells_trash", "KV cells of rejected drafts that are kept in place"),
                ("cells_free", "KV cells free"),
            )
        }
        self._estimate = Gauge(
            "gorgon_step_seconds_estimate",
            "What a step of so many tokens takes, at 256 cells",
            ["tokens"],
            registry=registry,
        )

    # -- on the engine thread ---------------------------------------------------------------------

    def observe(self, report: StepReport, results: Iterable[StepResult]) -> None:
        """Take note of one step and of who ended in it."""
        self._step.observe(report.seconds)
        self._model.inc(report.model_seconds)
        self._heads.inc(report.heads_seconds)
        num_tokens = [len(result.tokens) for result in results]
        if any(num_tokens):
            self._batch.observe(sum(count > 0 for count in num_tokens))
            self._new.inc(sum(num_tokens))

    def observe_end(self, result: StepResult) -> None:
        """Take note of a request that is over."""
        stats = result.stats
        is_refused = result.finish is FinishReason.ERROR and stats is None
        self._requests.labels("refused" if is_refused else str(result.finish)).inc()
        if stats is not None and stats.steps:
            self._observe_stats(stats)

    def _observe_stats(self, stats: RequestStats) -> None:
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.cached_tokens)
        self._hits.labels("hit" if stats.cached_tokens else "miss").inc()
        self._queue_time.observe(stats.queue_time)
        self._first.observe(stats.queue_time + stats.prefill_time)
        if stats.num_generated > 1:
            self._each.observe(stats.decode_time / (stats.num_generated - 1))
        for depth, count in enumerate(stats.drafted_by_depth, 1):
            self._drafted.labels(str(depth)).inc(count)
        for depth, count in enumerate(stats.accepted_by_depth, 1):
            self._accepted.labels(str(depth)).inc(count)
        for source, count in stats.drafted_by_source.items():
            self._drafted_by.labels(source).inc(count)
        for source, count in stats.accepted_by_source.items():
            self._accepted_by.labels(source).inc(count)

    # -- on the event loop ------------------------------------------------------------------------

    def observe_answer(self, path: str, status: int) -> None:
        """Take note of one HTTP answer."""
        self.answers.labels(path, str(status)).inc()

    def render(self, state: EngineState | None) -> bytes:
        """All series as text; ``state`` is None while there is no engine."""
        if state is not None:
            for name, gauge in self._gauges.items():
                gauge.set(getattr(state, name))
            for n, seconds in state.step_seconds.items():
                self._estimate.labels(str(n)).set(seconds)
        return generate_latest(self._registry)
