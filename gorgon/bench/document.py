"""The result of a benchmark as one JSON document; its JSON schema is docs/bench.schema.json.

Raw measurements only: everything in a report is computed from them again (``summary``).
Times are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gorgon.errors import BenchError

Percentiles = dict[str, float]  # p50, p90, p99; empty where nothing was measured


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Record):
    """Where it ran."""

    cpu: str
    num_cores: int
    memory_gb: float
    accelerator: str | None = None
    system: str
    python: str


class PartyInfo(_Record):
    """Something that answers prompts, with all that one needs to set it up again."""

    name: str
    kind: Literal["gorgon", "engine", "llama-server", "openai", "llama.cpp"]
    version: str
    settings: dict[str, Any] = Field(description="command line, request fields, engine settings")
    tree_size: int | None = Field(
        default=None, description="nodes of its fixed tree, root included"
    )
    replayed: bool = Field(default=False, description="acceptance was replayed, not earned")
    resident_mb: float | None = None


class Workload(_Record):
    """What everybody was asked."""

    prompts: str
    num_prompts: int
    length: int = Field(description="new tokens, at most")
    natural: bool = Field(description="answers end where the model ends them")
    spread: float = Field(default=0.0, description="how much longer or shorter, relative")
    temperatures: list[float]
    clients: list[int]
    repeats: int
    waves: int = Field(description="requests of each client in a block")
    seed: int
    ttft_bound: float = Field(description="of goodput: time to the first token, at most")
    tpot_bound: float = Field(description="of goodput: time per further token, at most")

    @property
    def answers(self) -> str:
        """How long they are, in words."""
        low, high = (round(self.length * (1.0 + sign * self.spread)) for sign in (-1, 1))
        if self.natural:
            return f"at most {high} new tokens"
        return f"exactly {low} new tokens" if low == high else f"{low} to {high} new tokens"


class Sample(_Record):
    """One answer."""

    prompt: str
    category: str
    prompt_tokens: int
    tokens: int
    ttft: float = Field(description="from sending to the first text")
    duration: float = Field(description="from sending to the last text")
    tpot: float | None = Field(description="(duration - ttft) / (tokens - 1); null for one token")
    digest: str = Field(description="of the text, to see whether two are identical")
    steps: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    drafted_by_depth: list[int] = []
    accepted_by_depth: list[int] = []
    drafted_by_source: dict[str, int] = {}
    accepted_by_source: dict[str, int] = {}


class StepShare(_Record):
    """Where the time of the engine's steps went, known only for engines driven in process."""

    num_steps: int
    total: Percentiles
    model: Percentiles
    heads: Percentiles
    outside: Percentiles = Field(description="of each step, the time outside model and heads")


class Block(_Record):
    """One party's answers to one group of prompts; blocks of the same ``key`` are pairs."""

    party: str
    clients: int
    temperature: float
    key: str = Field(description="which prompts, and in which repeat")
    group: str = Field(description="which prompts, repeats alike")
    seconds: float = Field(description="from the first request to the last text")
    samples: list[Sample]
    gaps: Percentiles = Field(description="between two arrivals of text in a stream")
    energy_joules: float | None = None
    step_share: StepShare | None = None

    @property
    def tokens(self) -> int:
        """New tokens of all answers."""
        return sum(sample.tokens for sample in self.samples)


class StepPoint(_Record):
    """t(n): one forward pass of n tokens, measured here and as the cost model has it."""

    tokens: int
    measured: float
    modelled: float | None = None


class StepCurve(_Record):
    """t(n) of one engine at one context length."""

    party: str
    context: int
    points: list[StepPoint]


class Document(_Record):
    """A whole run; the first party is the baseline of speed-ups."""

    schema_version: Literal[1] = 1
    created: str
    command: list[str]
    machine: Machine
    parties: list[PartyInfo]
    workload: Workload
    blocks: list[Block]
    step_curves: list[StepCurve] = []
    client_core_share: float = Field(
        description="cores that the benchmark client itself used while it measured"
    )

    @property
    def replayed(self) -> bool:
        """Whether any party's acceptance was replayed."""
        return any(party.replayed for party in self.parties)

    def blocks_of(self, party: str, clients: int, temperature: float) -> list[Block]:
        """The blocks of one cell of the results, in the order in which they ran."""
        where = (party, clients, temperature)
        return [b for b in self.blocks if (b.party, b.clients, b.temperature) == where]


def read_document(path: Path) -> Document:
    """A document from its file.

    Raises:
        BenchError: when it is missing or no document of this version.
    """
    try:
        return Document.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BenchError(
            f"{path} is no result of gorgon bench, schema 1: {place}: {first['msg']}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
