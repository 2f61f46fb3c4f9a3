"""A backend of a few lines that behaves like llama.cpp where the engine could go wrong.

The KV cache is emulated cell by cell: a cell holds a token, a position and a set of sequence ids,
and a row sees a cell iff the cell holds the row's first id and its position is not later. What a
row sees decides its logits, so a mistake in ids, positions, trash or commits changes the text.
Batches that llama.cpp refuses are refused here (``llama_batch_allocr::init``, ``find_slot``), and
what its debug build asserts is asserted here (``llama_kv_cells``).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gorgon.backend import (
    BatchRow,
    Drafts,
    DraftState,
    Floats,
    Guesses,
    Ints,
    Level,
    Noted,
    Output,
    Terms,
)
from gorgon.errors import DecodeError, GorgonError, HeadsError
from gorgon.noise import Noise, gumbel
from gorgon.request import Request, SamplingParams

_MASK = 0xFFFFFFFF
_TABLE_SIZE = 4096
_NUM_EMBD = 3


class ToyModel:
    """A language model whose state after a text is a hash of that text.

    Args:
        num_vocab: tokens that there are.
        eog_ids: tokens that end a generation.
        sharpness: standard deviation of the logits.
    """

    def __init__(
        self, num_vocab: int = 32, eog_ids: frozenset[int] = frozenset(), sharpness: float = 2.0
    ) -> None:
        self.num_vocab, self.eog_ids = num_vocab, eog_ids
        table = np.random.default_rng(1).normal(0.0, sharpness, (_TABLE_SIZE, num_vocab))
        self._table = table.astype(np.float32)
        self._best = [int(token) for token in table.argmax(axis=1)]

    def advance(self, state: int, position: int, token: int) -> int:
        """The state after ``token`` at ``position``."""
        mixed = (state * 0x9E3779B1 + position * 0x85EBCA6B + token * 0xC2B2AE35 + 1) & _MASK
        mixed ^= mixed >> 15
        mixed = mixed * 0x2C1B3C6D & _MASK
        return mixed ^ (mixed >> 12)

    def logits(self, states: Sequence[int]) -> Floats:
        """A fresh array [len(states), num_vocab]."""
        return self._table[[state % _TABLE_SIZE for state in states]]

    def best(self, state: int) -> int:
        """The likeliest next token."""
        return self._best[state % _TABLE_SIZE]

    def generate(self, request: Request) -> list[int]:
        """What ``request`` must give: the model alone, one token after the other, no cache."""
        sampler = FakeSampler(request.sampling, request.prompt_ids)
        state, position = 0, 0
        for token in request.prompt_ids:
            state, position = self.advance(state, position, token), position + 1
        tokens: list[int] = []
        while len(tokens) < request.max_tokens:
            tokens.append(sampler.draw_from(self.logits([state])[0]))
            if tokens[-1] in self.eog_ids and not request.ignore_eos:
                break
            state, position = self.advance(state, position, tokens[-1]), position + 1
        return tokens


class FakeSampler:
    """Frequency penalty, temperature and a draw by noise; greedy at temperature 0."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        seed = random.getrandbits(64) if params.seed is None else params.seed
        self.noise = Noise(seed, 0, params.temperature) if params.temperature else None
        self._seen = Counter(prompt)
        self.closed = False
        self.failure: GorgonError | None = None

    def draw(self, output: Output, row: int) -> int:
        return self.draw_from(output.logits[row])

    def draw_from(self, logits: Floats) -> int:
        assert not self.closed
        assert np.isfinite(logits).all(), "output used after the next forward pass"
        scores = logits.astype(np.float64)
        if self._params.frequency_penalty:
            for token, count in self._seen.items():
                scores[token] -= count * self._params.frequency_penalty
        if self.noise is None:
            token = int(scores.argmax())
        else:
            noise = gumbel(*self.noise.key(), np.arange(len(scores)))
            token = int((scores / self.noise.temperature + noise).argmax())
        self.observe(token)
        return token

    def observe(self, token: int) -> None:
        assert not self.closed
        self._seen[token] += 1
        self.noise = self.noise and self.noise.next()

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


@dataclass(slots=True)
class Cell:
    """One used cell; ``state`` is the model's state when it was computed."""

    token: int
    position: int
    ids: set[int]
    state: int


@dataclass
class Failures:
    """Which calls fail, counted from 0 for each kind; ``leave_cells`` as a failing graph does."""

    decodes: frozenset[int] = frozenset()
    prefills: frozenset[int] = frozenset()
    proposes: frozenset[int] = frozenset()
    deepens: frozenset[int] = frozenset()
    begins: frozenset[int] = frozenset()
    leave_cells: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def strike(self, kind: str) -> bool:
        """Count a call of ``kind``; whether it shall fail."""
        number, self.counts[kind] = self.counts[kind], self.counts[kind] + 1
        return number in getattr(self, kind)


class FakeBackend:
    """Fulfils ``gorgon.backend.Backend`` with a ``ToyModel`` and heads that are right sometimes.

    Args:
        model: what it computes.
        conditioned: whether the heads see the root and the drafts above, or only the last state.
        window: earlier states and tokens that the heads ask for.
        agreement: how often a head's best guess is the model's own greedy token.
        failures: calls that fail.
    """

    def __init__(
        self,
        model: ToyModel | None = None,
        *,
        num_cells: int = 256,
        max_rows: int = 64,
        max_sequences: int = 32,
        max_position: int = 1024,
        num_heads: int = 4,
        max_guesses: int = 4,
        conditioned: bool = False,
        window: int = 0,
        orders_cells: bool = False,
        captures_graphs: bool = False,
        searches: bool = False,
        begins: bool = False,
        agreement: float = 0.6,
        failures: Failures | None = None,
    ) -> None:
        self.model = model or ToyModel()
        self.num_cells, self.max_rows = num_cells, max_rows
        self.max_sequences, self.max_position = max_sequences, max_position
        self.eog_ids, self.num_vocab = self.model.eog_ids, self.model.num_vocab
        self.num_heads, self.max_guesses = num_heads, max_guesses
        self.conditioned, self.window = conditioned, window
        self.num_embd, self.skips_hidden_cells = _NUM_EMBD, True
        self.orders_cells, self.captures_graphs = orders_cells, captures_graphs
        self.searches, self.drafts, self.begins = searches, False, begins
        self.agreement = agreement
        self.failures = failures or Failures()
        self.begun: list[DraftState] = []  # what the heads were started on, and what they were
        self.asked: list[DraftState] = []  # asked about
        self.samplers: list[FakeSampler] = []
        self.row_counts: list[int] = []  # rows of every prefill and decode
        self._cells: dict[int, Cell] = {}
        self._holds: list[set[int]] = [set() for _ in range(max_sequences)]
        self._head = 0
        self._last_output: Output | None = None

    # -- the model --------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[BatchRow]) -> None:
        self._forward(rows, "prefills")

    def decode(self, rows: Sequence[BatchRow]) -> Output:
        states = self._forward(rows, "decodes")
        hidden = [_pack(state, row.position) for state, row in zip(states, rows, strict=True)]
        self._last_output = Output(self.model.logits(states), np.array(hidden, np.float32))
        return self._last_output

    def propose(self, state: DraftState) -> Guesses:
        self.asked.append(state)
        if self.failures.strike("proposes"):
            raise HeadsError("injected")
        assert state.hidden.shape == (*state.tokens.shape, _NUM_EMBD)
        assert state.tokens.shape[1] == 1 + self.window
        for hidden, tokens in zip(state.hidden, state.tokens, strict=True):
            self._check_window(hidden, tokens)
        if self.conditioned:
            return self._advance(state.hidden[:, 0], state.tokens[:, 0])
        guesses = [self._look_ahead(*_unpack(hidden)) for hidden in state.hidden[:, 0]]
        return self._guesses(guesses)

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        assert self.conditioned
        assert 2 <= depth <= self.num_heads
        if self.failures.strike("deepens"):
            raise HeadsError("injected")
        return self._advance(states, tokens)

    def search(self, state: DraftState) -> list[Level]:
        """Two beams: the best two guesses below the root, then the best one below each."""
        assert self.searches
        roots = np.arange(len(state.tokens), dtype=np.int32)
        levels = [Level(self.propose(state), roots, state.tokens[:, 0])]
        for depth in range(2, self.num_heads + 1):
            above = levels[-1].guesses
            assert above.states is not None
            parents = (
                np.repeat(roots, 2) if depth == 2 else np.arange(2 * len(roots), dtype=np.int32)
            )
            ranks = np.tile([0, 1], len(roots)) if depth == 2 else np.zeros_like(parents)
            tokens = above.tokens[parents, 0, ranks]
            levels.append(Level(self.deepen(above.states[parents], tokens, depth), parents, tokens))
        return levels

    def begin(self, state: DraftState) -> None:
        assert self.begins
        if self.failures.strike("begins"):
            raise HeadsError("injected")
        self.begun.append(state)

    def draft(
        self, noted: Noted, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        raise AssertionError("the engine chooses what to draft")

    def check_sampling(self, params: SamplingParams) -> None:
        assert params.grammar is None, "the toy model knows no text"

    def make_sampler(self, params: SamplingParams, prompt: Sequence[int]) -> FakeSampler:
        self.samplers.append(FakeSampler(params, prompt))
        return self.samplers[-1]

    def _check_window(self, hidden: Floats, tokens: Ints) -> None:
        """Each state follows from the one before it by the token between; zeros end them."""
        known = [_unpack(row) for row in hidden if row.any()]
        assert known
        assert not hidden[len(known) :].any()
        for i, (state, position) in enumerate(known):
            if i + 1 < len(tokens) and (i + 1 < len(known) or position == 0):
                before = known[i + 1][0] if i + 1 < len(known) else 0
                assert self.model.advance(before, position, int(tokens[i + 1])) == state

    def _look_ahead(self, state: int, position: int) -> list[list[int]]:
        """Every head's guesses after the row with ``state``: the root is the model's best token."""
        guesses = []
        for _ in range(self.num_heads):
            token, position = self.model.best(state), position + 1
            state = self.model.advance(state, position, token)
            guesses.append(self._rank(self.model.best(state), random.Random(state)))
        return guesses

    def _advance(self, states: Floats, tokens: Ints) -> Guesses:
        """What comes below ``tokens``, which follow ``states``."""
        packed, guesses = [], []
        for row, token in zip(states, tokens, strict=True):
            state, position = _unpack(row)
            state = self.model.advance(state, position + 1, int(token))
            packed.append(_pack(state, position + 1))
            guesses.append([self._rank(self.model.best(state), random.Random(state))])
        return self._guesses(guesses, np.array(packed, np.float32))

    def _guesses(self, tokens: list[list[list[int]]], states: Floats | None = None) -> Guesses:
        ids = np.array(tokens, np.int32)
        probs = np.linspace(0.9, 0.1, self.max_guesses, dtype=np.float32)
        return Guesses(ids, np.broadcast_to(probs, ids.shape), states)

    def _rank(self, truth: int, chance: random.Random) -> list[int]:
        """Distinct guesses, ``truth`` first in ``agreement`` of the cases, else anywhere."""
        others = [token for token in range(self.num_vocab) if token != truth]
        ranked = chance.sample(others, self.max_guesses)
        right = chance.random() < self.agreement
        ranked.insert(0 if right else chance.randint(1, self.max_guesses), truth)
        return ranked[: self.max_guesses]

    def _forward(self, rows: Sequence[BatchRow], kind: str) -> list[int]:
        assert 0 < len(rows) <= self.max_rows
        self.row_counts.append(len(rows))
        self._spoil_last_output()
        self._refuse_inconsistent(rows)
        places = self._find_places(len(rows))
        fails = self.failures.strike(kind)
        if fails and not self.failures.leave_cells:
            raise DecodeError("injected")
        self._head = places[-1] + 1
        for place, row in zip(places, rows, strict=True):
            self._cells[place] = Cell(row.token, row.position, set(row.sequences), 0)
            for sequence in row.sequences:
                self._holds[sequence].add(place)
        states = [0] * len(rows)
        for i in sorted(range(len(rows)), key=lambda i: rows[i].position):
            states[i] = self._state(rows[i], places[i])
            self._cells[places[i]].state = states[i]
        if fails:
            raise DecodeError("injected")
        return states

    def _state(self, row: BatchRow, place: int) -> int:
        """The hash of what ``row`` sees; a cell computed in another context spoils it."""
        seen = [
            (self._cells[i].position, i)
            for i in self._holds[row.sequences[0]]
            if self._cells[i].position <= row.position and i != place
        ]
        state = 0
        for position, i in sorted(seen):
            cell = self._cells[i]
            state = self.model.advance(state, position, cell.token)
            if cell.state != state:
                state = self.model.advance(state, position, -1)
        return self.model.advance(state, row.position, row.token)

    def _spoil_last_output(self) -> None:
        if self._last_output is not None:
            self._last_output.logits.fill(np.nan)
            self._last_output.hidden.fill(np.nan)

    # -- the cache --------------------------------------------------------------------------------

    def share(self, source: int, target: int, start: int, end: int) -> None:
        assert 0 <= source < self.max_sequences
        assert 0 <= target < self.max_sequences
        assert source != target
        for i in list(self._holds[source]):
            if start <= self._cells[i].position < end:
                assert target not in self._cells[i].ids, "llama_kv_cells::seq_add asserts this"
                self._cells[i].ids.add(target)
                self._holds[target].add(i)

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> None:
        assert 0 <= sequence < self.max_sequences
        for i in sorted(self._holds[sequence], reverse=True):
            if start <= self._cells[i].position and (end < 0 or self._cells[i].position < end):
                self._holds[sequence].discard(i)
                self._cells[i].ids.discard(sequence)
                if not self._cells[i].ids:
                    del self._cells[i]
                    self._head = min(self._head, i)

    def last_position(self, sequence: int) -> int:
        return max((self._cells[i].position for i in self._holds[sequence]), default=-1)

    def clear(self) -> None:
        self._cells.clear()
        self._head = 0
        for held in self._holds:
            held.clear()

    @property
    def num_used(self) -> int:
        """Cells that some sequence holds."""
        return len(self._cells)

    @property
    def num_open_samplers(self) -> int:
        """Samplers that were made and not closed."""
        return sum(not sampler.closed for sampler in self.samplers)

    def tokens_of(self, sequence: int) -> list[tuple[int, int]]:
        """Positions and tokens that ``sequence`` holds, sorted."""
        return sorted(
            (self._cells[i].position, self._cells[i].token) for i in self._holds[sequence]
        )

    def num_out_of_order(self, sequence: int) -> int:
        """Cells of ``sequence`` that lie before the cell of the position before them."""
        places = [i for _, i in sorted((self._cells[i].position, i) for i in self._holds[sequence])]
        return sum(b < a for a, b in itertools.pairwise(places))

    def _find_places(self, count: int) -> list[int]:
        """Empty cells from the head on, as ``llama_kv_cache::find_slot`` takes them."""
        if self.num_cells - len(self._cells) < count:
            raise DecodeError("no room")
        head = 0 if self._head > len(self._cells) + 2 * count else self._head
        order = [(head + i) % self.num_cells for i in range(self.num_cells)]
        return [i for i in order if i not in self._cells][:count]

    def _refuse_inconsistent(self, rows: Sequence[BatchRow]) -> None:
        """The consistency checks of ``llama_batch_allocr::init``."""
        positions: dict[int, list[int]] = {}
        for row in rows:
            assert len(set(row.sequences)) == len(row.sequences) > 0
            _refuse_unless(0 <= row.token < self.num_vocab, f"invalid token {row.token}")
            for sequence in row.sequences:
                _refuse_unless(0 <= sequence < self.max_sequences, f"invalid id {sequence}")
                positions.setdefault(sequence, []).append(row.position)
                _refuse_unless(self._span(sequence) == self._span(row.sequences[0]), "diverged")
        for sequence, found in positions.items():
            last = self.last_position(sequence)
            _refuse_unless(last < 0 or min(found) == last + 1, f"gap after {last}: {found}")
            _refuse_unless(max(found) - min(found) < len(set(found)), "not continuous")
            _refuse_unless(found == sorted(found), "decreasing")

    def _span(self, sequence: int) -> tuple[int, int]:
        first = min((self._cells[i].position for i in self._holds[sequence]), default=-1)
        return first, self.last_position(sequence)


def _refuse_unless(ok: bool, why: str) -> None:
    if not ok:
        raise DecodeError(why)


def _pack(state: int, position: int) -> tuple[int, int, int]:
    """A state of the toy model as numbers that a float holds exactly."""
    return state >> 16, state & 0xFFFF, position


def _unpack(hidden: Floats) -> tuple[int, int]:
    high, low, position = (int(value) for value in hidden)
    return high << 16 | low, position
