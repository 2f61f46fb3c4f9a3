"""The series that there are, by subject, in one registry."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class RequestSeries:
    """Generations and their tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"gorgon_{name}", text, labels, registry=registry)

        outcomes = "Generations by outcome: stop, length, cancelled, error, refused"
        self.requests = counter("requests", outcomes, ["outcome"])
        self.answers = counter("http_responses", "Answers by route and status", ["path", "status"])
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens")
        self.new_tokens = counter("generated_tokens", "New tokens")
        self.prefix_tokens = counter(
            "prefix_hit_tokens", "Prompt tokens whose cells were there already"
        )
        self.prefix_lookups = counter(
            "prefix_lookups", "Generations by whether a prefix was found", ["result"]
        )


class DraftSeries:
    """Drafted and accepted tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(f"gorgon_{name}", text, [label], registry=registry)

        self.drafted = counter("drafted_tokens", "Drafted tokens by depth", "depth")
        self.accepted = counter("accepted_tokens", "Accepted drafts by depth", "depth")
        self.drafted_by_source = counter(
            "drafted_tokens_by_source", "Drafted tokens by source", "source"
        )
        self.accepted_by_source = counter(
            "accepted_tokens_by_source", "Accepted drafts by source", "source"
        )


class TimeSeries:
    """Where the time goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"gorgon_{name}", text, buckets=buckets, registry=registry)

        self.queue = histogram("queue_seconds", "From arrival to admission", _LATENCIES)
        self.first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _LATENCIES
        )
        self.each_token = histogram(
            "time_per_output_token_seconds", "Decoding time over tokens after the first", _STEPS
        )
        self.step = histogram("step_seconds", "One engine step", _STEPS)
        self.batch = histogram("batch_requests", "Requests that a step decoded", _SIZES)
        self.model = Counter("gorgon_model_seconds", "Time in the model", registry=registry)
        self.heads = Counter("gorgon_heads_seconds", "Time in the heads", registry=registry)


class StateGauges:
    """How things stand; the names are those of ``EngineState``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.by_name = {
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
        self.step_seconds = Gauge(
            "gorgon_step_seconds_estimate",
            "What a step of so many tokens takes, at 256 cells",
            ["tokens"],
            registry=registry,
        )
