"""Who takes part: anything that answers a group of prompts under a load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gorgon.bench.answer import Answer, Load
from gorgon.bench.document import PartyInfo, StepShare
from gorgon.bench.prompts import Prompt
from gorgon.bench.trees import tree_paths
from gorgon.errors import BenchError
from gorgon.request import SpeculationParams, TreePaths

MODES = ("normal", "medusa", "lookup")


class Party(Protocol):
    """A row of the results."""

    info: PartyInfo

    def run(self, prompts: Sequence[Prompt], load: Load) -> list[Answer]:
        """Answers in the order of the prompts; ``load.clients`` are asked at any time.

        Raises:
            BenchError: when an answer does not come.
        """

    def take_step_share(self) -> StepShare | None:
        """Where the steps since the last call spent their time, if the party knows."""

    def resident_mb(self) -> float | None:
        """Resident memory now, mapped files included, if the party runs on this machine."""


@dataclass(frozen=True, slots=True)
class ModeSpec:
    """A mode as it is written on the command line."""

    name: str
    tree: TreePaths | None = None

    @property
    def tree_size(self) -> int | None:
        """Nodes of a fixed tree, root included; plain decoding is the tree of one."""
        if self.name == "normal":
            return 1
        return None if self.tree is None else len(self.tree) + 1

    def speculation(self) -> SpeculationParams:
        """For an engine."""
        if self.tree is not None:
            return SpeculationParams(mode="medusa", tree=self.tree)
        # mypy knows the modes of the engine; what it does not know it refuses when it runs.
        return SpeculationParams(mode=self.name)  # type: ignore[arg-type]


def parse_mode(text: str) -> ModeSpec:
    """``normal``, ``medusa``, ``lookup``, ``chain:3``, ``tree:8`` or ``paths:0;0,0;1``.

    The numbers count nodes with the root.

    Raises:
        BenchError: when it is none of these.
    """
    kind, _, rest = text.partition(":")
    if kind in MODES and not rest:
        return ModeSpec(kind)
    try:
        if kind == "chain" and 2 <= int(rest) <= 17:
            return ModeSpec(text, tuple((0,) * depth for depth in range(1, int(rest))))
        if kind == "tree" and 2 <= int(rest) <= 64:
            return ModeSpec(text, tree_paths(int(rest)))
        if kind == "paths" and rest:
            paths = (path.split(",") for path in rest.split(";"))
            return ModeSpec(text, tuple(tuple(int(rank) for rank in path) for path in paths))
    except ValueError:
        pass
    raise BenchError(
        f"mode '{text}' is none of {', '.join(MODES)}, chain:N (2 to 17), tree:N (2 to 64), "
        "paths:0;0,0;1"
    )
