"""Takes note of steps, requests and answers.

Counters and histograms are fed by the engine thread, once a step; gauges are read between two
steps when somebody asks for ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest

from gorgon.engine.worker import StepReport
from gorgon.request import FinishReason, RequestStats, StepResult
from gorgon.server.metrics.series import DraftSeries, RequestSeries, StateGauges, TimeSeries
from gorgon.server.metrics.state import EngineState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Recorder:
    """All series of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = RequestSeries(self._registry)
        self._drafts = DraftSeries(self._registry)
        self._times = TimeSeries(self._registry)
        self._state = StateGauges(self._registry)

    # -- on the engine thread ---------------------------------------------------------------------

    def observe(self, report: StepReport, results: Iterable[StepResult]) -> None:
        """Take note of one step and of who ended in it."""
        self._times.step.observe(report.seconds)
        self._times.model.inc(report.model_seconds)
        self._times.heads.inc(report.heads_seconds)
        num_tokens = [len(result.tokens) for result in results]
        if any(num_tokens):
            self._times.batch.observe(sum(count > 0 for count in num_tokens))
            self._requests.new_tokens.inc(sum(num_tokens))

    def observe_end(self, result: StepResult) -> None:
        """Take note of a request that is over."""
        stats = result.stats
        is_refused = result.finish is FinishReason.ERROR and stats is None
        self._requests.requests.labels("refused" if is_refused else str(result.finish)).inc()
        if stats is not None and stats.steps:
            self._count_prompt(stats)
            self._count_drafts(stats)
            self._observe_times(stats)

    def _count_prompt(self, stats: RequestStats) -> None:
        self._requests.prompt_tokens.inc(stats.prompt_tokens)
        self._requests.prefix_tokens.inc(stats.cached_tokens)
        self._requests.prefix_lookups.labels("hit" if stats.cached_tokens else "miss").inc()

    def _count_drafts(self, stats: RequestStats) -> None:
        drafts = self._drafts
        for depth, count in enumerate(stats.drafted_by_depth, 1):
            drafts.drafted.labels(str(depth)).inc(count)
        for depth, count in enumerate(stats.accepted_by_depth, 1):
            drafts.accepted.labels(str(depth)).inc(count)
        for source, count in stats.drafted_by_source.items():
            drafts.drafted_by_source.labels(source).inc(count)
        for source, count in stats.accepted_by_source.items():
            drafts.accepted_by_source.labels(source).inc(count)

    def _observe_times(self, stats: RequestStats) -> None:
        self._times.queue.observe(stats.queue_time)
        self._times.first_token.observe(stats.queue_time + stats.prefill_time)
        if stats.num_generated > 1:
            self._times.each_token.observe(stats.decode_time / (stats.num_generated - 1))

    # -- on the event loop ------------------------------------------------------------------------

    def observe_answer(self, path: str, status: int) -> None:
        """Take note of one HTTP answer."""
        self._requests.answers.labels(path, str(status)).inc()

    def render(self, state: EngineState | None) -> bytes:
        """All series as text; ``state`` is None while there is no engine."""
        if state is not None:
            for name, gauge in self._state.by_name.items():
                gauge.set(getattr(state, name))
            for n, seconds in state.step_seconds.items():
                self._state.step_seconds.labels(str(n)).set(seconds)
        return generate_latest(self._registry)
