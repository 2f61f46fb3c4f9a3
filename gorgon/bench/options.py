"""What a benchmark is asked to do; the command line fills it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gorgon.bench.document import Workload
from gorgon.bench.shapes import KINDS, SHAPES
from gorgon.config import EngineSettings
from gorgon.errors import BenchError


@dataclass(frozen=True, slots=True)
class Options:
    """All choices of a run; see ``gorgon bench --help``."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    out: Path = Path("bench-result")
    modes: tuple[str, ...] = ("normal", "medusa")
    clients: tuple[int, ...] = (1,)
    temperatures: tuple[float, ...] = (0.0,)
    prompts: Path | None = None
    count: int = 24
    length: int = 128
    natural: bool = False
    spread: float = 0.0
    repeats: int = 1
    waves: int = 2
    seed: int = 1
    ttft_bound: float = 1.0
    tpot_bound: float = 0.1
    in_process: bool = False
    url: str | None = None
    llama_server: Path | None = None
    spec_types: tuple[str, ...] = ()
    openai: tuple[str, ...] = ()
    loop: bool = False
    curve: bool = False
    charts: bool = True
    shape: str | None = None
    kind: str | None = None
    replay: str | None = None

    def __post_init__(self) -> None:
        _check(bool(self.modes or self.llama_server or self.openai), "modes", "none is given")
        _check(min(self.clients, default=0) >= 1, "clients", "must be 1 or more")
        _check(min(self.temperatures, default=-1.0) >= 0, "temperature", "must be 0 or more")
        for name in ("count", "length", "repeats", "waves"):
            _check(getattr(self, name) >= 1, name, "must be 1 or more")
        _check(0.0 <= self.spread < 1.0, "spread", "must be 0 or more, below 1")
        inside = self.in_process
        _check(not (inside and self.url), "url", "cannot go with --in-process")
        _check(not self.loop or inside, "loop", "needs --in-process")
        _check(not self.curve or inside, "curve", "needs --in-process")
        _check(not self.replay or inside, "replay", "needs --in-process")
        _check(not self.replay or bool(self.shape), "replay", "needs --shape")
        _check(self.shape is None or self.shape in SHAPES, "shape", f"is one of {[*SHAPES]}")
        _check(self.kind is None or bool(self.shape), "type", "needs --shape")
        _check(self.kind is None or self.kind in KINDS, "type", f"is one of {', '.join(KINDS)}")
        _check(not self.spec_types or bool(self.llama_server), "spec-types", "need --llama-server")

    def workload(self, num_prompts: int) -> Workload:
        """What goes into the document."""
        return Workload(
            prompts=self.prompts.name if self.prompts else "the built-in set",
            num_prompts=num_prompts,
            length=self.length,
            natural=self.natural,
            spread=self.spread,
            temperatures=list(self.temperatures),
            clients=sorted(set(self.clients)),
            repeats=self.repeats,
            waves=self.waves,
            seed=self.seed,
            ttft_bound=self.ttft_bound,
            tpot_bound=self.tpot_bound,
        )


def _check(ok: bool, name: str, why: str) -> None:
    if not ok:
        raise BenchError(f"--{name} {why}")
