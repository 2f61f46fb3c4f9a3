"""Heads as PyTorch modules; docs/heads.md has the formulas, gorgon.llama runs them.

Positions carry three things: ``hidden`` [n, 1 + window, num_embd], the state at position t and
before it; ``tokens`` [n, window + depths], ids x[t + 1 - window] to x[t + depths]; and the base's
embedding table, which heads look tokens up in and never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Variant = Literal["medusa", "conditioned"]
WINDOW_WIDTH = 512
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """What to train."""

    variant: Variant = "conditioned"
    num_heads: int = 4
    num_hidden: int = 1024
    window: int = 2
    num_outputs: int = 8192
    """rows of the output matrix; the most frequent tokens"""

    @property
    def num_before(self) -> int:
        """Tokens and states wanted before the current ones."""
        return self.window if self.variant == "conditioned" else 0


def normalise(rows: Tensor) -> Tensor:
    """RMS norm without weights over the last dimension."""
    return functional.rms_norm(rows, rows.shape[-1:], None, _EPSILON)


class MedusaHeads(nn.Module):
    """One residual block a depth (Medusa, Cai et al., 2024, section 2.1), one output matrix."""

    def __init__(self, config: HeadsConfig, output: Tensor) -> None:
        super().__init__()
        num_embd = output.shape[1]
        self.config = config
        self.blocks = nn.ModuleList(nn.Linear(num_embd, num_embd) for _ in range(config.num_heads))
        for block in self.blocks:
            assert isinstance(block, nn.Linear)
            nn.init.zeros_(block.weight)
            nn.init.zeros_(block.bias)
        self.output = _linear_from(output)

    def states(self, hidden: Tensor, tokens: Tensor, embedding: Tensor) -> Tensor:
        """States of all depths on the true path: [depths, n, num_embd]."""
        now = hidden[:, 0]
        return torch.stack([now + functional.silu(block(now)) for block in self.blocks])

    def start(self, hidden: Tensor, tokens: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The state of depth 0 and what later depths need of the position."""
        return hidden[:, 0], hidden[:, 0]

    def deepen(
        self, state: Tensor, carried: Tensor | None, tokens: Tensor, embedding: Tensor, depth: int
    ) -> Tensor:
        """The state of ``depth``; ``tokens`` play no part in it."""
        assert carried is not None
        return carried + functional.silu(self.blocks[depth](carried))


class ConditionedHeads(nn.Module):
    """One recurrent block that reads the tokens drafted so far too (Hydra, Ankner et al., 2024)."""

    def __init__(self, config: HeadsConfig, output: Tensor) -> None:
        super().__init__()
        num_embd, width = output.shape[1], config.num_hidden
        self.config = config
        if config.window:
            inputs = 2 * config.window * num_embd
            self.window_in = nn.Linear(inputs, WINDOW_WIDTH, bias=False)
            self.window_state = nn.Linear(WINDOW_WIDTH, num_embd, bias=False)
            self.window_gate = nn.Linear(WINDOW_WIDTH, width, bias=False)
            nn.init.zeros_(self.window_state.weight)
            nn.init.zeros_(self.window_gate.weight)
        self.gate = nn.Linear(2 * num_embd, width, bias=False)
        self.up = nn.Linear(2 * num_embd, width, bias=False)
        self.down = nn.Linear(width, num_embd, bias=False)
        nn.init.zeros_(self.down.weight)
        self.output = _linear_from(output)

    def states(self, hidden: Tensor, tokens: Tensor, embedding: Tensor) -> Tensor:
        """States of all depths on the true path: [depths, n, num_embd]."""
        before = self.config.window
        state, carried = self.start(hidden, tokens[:, :before], embedding)
        states = []
        for depth in range(self.config.num_heads):
            state = self.deepen(state, carried, tokens[:, before + depth], embedding, depth)
            states.append(state)
        return torch.stack(states)

    def start(
        self, hidden: Tensor, tokens: Tensor, embedding: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """s[0] and b of the formula; ``tokens`` [n, window] are x[t + 1 - window] to x[t]."""
        if not self.config.window:
            return hidden[:, 0], None
        parts = []
        for i in range(1, self.config.window + 1):
            parts += [normalise(hidden[:, i]), normalise(embedding[tokens[:, -i]])]
        context = functional.silu(self.window_in(torch.cat(parts, -1).to(hidden.dtype)))
        return hidden[:, 0] + self.window_state(context), self.window_gate(context)

    def deepen(
        self, state: Tensor, carried: Tensor | None, tokens: Tensor, embedding: Tensor, depth: int
    ) -> Tensor:
        """s[k + 1] of the formula for nodes with their ``tokens`` [n]."""
        joined = torch.cat([normalise(state), normalise(embedding[tokens])], -1).to(state.dtype)
        gate = self.gate(joined)
        if carried is not None:
            gate = gate + carried
        return state + self.down(functional.silu(gate) * self.up(joined))


Heads = MedusaHeads | ConditionedHeads


def make_heads(config: HeadsConfig, output: Tensor) -> Heads:
    """New heads; ``output`` [num_outputs, num_embd], rows of the base's matrix, is their start."""
    kind = MedusaHeads if config.variant == "medusa" else ConditionedHeads
    return kind(config, output)


def _linear_from(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear
