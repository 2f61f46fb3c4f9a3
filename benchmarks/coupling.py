"""How much drafts gain by knowing the noise of the draw, and how far the heads' logits err.

    python -m benchmarks.coupling --prompts mt_bench.jsonl [--temperature 0.7] [--count 40]

The model answers each prompt at the temperature; at every place of the answers conditioned heads
guess from the model's own states and the true tokens. Then tokens are drawn again from the model's
probabilities, a few times each, with noise, and the guesses ranked without it and with it
(gorgon/speculation/coupling.py) for several errors s of the heads' logits: how often the first one,
two and three are right, how likely the first is said to be, and the mean log-loss of what comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.backend import BatchRow, DraftState, Floats, Guesses
from gorgon.bench.prompts import load_prompts
from gorgon.cli.bench import make_encoder
from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.engine.load import load
from gorgon.noise import Noise, gumbel
from gorgon.request import Request, SamplingParams, SpeculationParams
from gorgon.speculation import coupling

ERRORS = (1.0, 1.25, 1.5, 2.0)
REPEATS = 4  # draws at each place
PIECE = 16  # rows asked about at once


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--temperature", type=float, default=0.7, help="above 0")
    parser.add_argument("--count", type=int, default=40, help="prompts")
    parser.add_argument("--length", type=int, default=128, help="new tokens")
    arguments = parser.parse_args()
    temperature: float = arguments.temperature
    loaded = load(EngineSettings(num_cells=8192))
    encode = make_encoder(None)(loaded.model)
    stated: dict[int, list[Guesses]] = {}
    probs: dict[int, list[Floats]] = {}
    for prompt in load_prompts(arguments.prompts)[: arguments.count]:
        text = answer(loaded.engine, encode(prompt.text), temperature, arguments.length)
        for depth, guesses, model in guessed(loaded.engine, *text, temperature):
            stated.setdefault(depth, []).append(guesses)
            probs.setdefault(depth, []).append(model)
    print(f"temperature {temperature}; first 1, 2, 3 right; first stated; log-loss")
    for depth, pieces in stated.items():
        guesses = merged(pieces)
        model = np.concatenate(probs[depth])
        print(f"depth {depth}, {len(model)} places: no noise  {scores(guesses, model, None, 1.0)}")
        for error in ERRORS:
            print(f"  s {error:4.2f}  {scores(guesses, model, temperature, error)}")


def answer(
    engine: Engine, prompt: Sequence[int], temperature: float, length: int
) -> tuple[list[int], int]:
    """The tokens of a prompt and its answer, and how many are the prompt's."""
    sampling, plain = SamplingParams(temperature=temperature, seed=1), SpeculationParams("normal")
    request = Request("r", tuple(prompt), length, sampling, plain, reuse_prefix=False)
    engine.submit(request)
    tokens = list(prompt)
    while engine.has_work:
        for result in engine.step():
            tokens += result.tokens
    engine.pool.forget_prefixes()
    return tokens, len(prompt)


def guessed(
    engine: Engine, tokens: Sequence[int], num_prompt: int, temperature: float
) -> Iterator[tuple[int, Guesses, Floats]]:
    """By depth: what the heads say at places of the answer, and the model's probability of it."""
    backend = engine.backend
    output = backend.decode([BatchRow(token, i, (1,)) for i, token in enumerate(tokens)])
    scaled = output.logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    hidden = output.hidden.copy()
    backend.remove(1)
    depth_of, window = backend.num_heads, backend.window
    places = np.arange(num_prompt - 1 + window, len(tokens) - 1 - depth_of)
    known = np.array(tokens, np.int32)
    for first in range(0, len(places), PIECE):
        at = places[first : first + PIECE]
        before = at[:, None] - np.arange(1 + window)
        state = DraftState(np.ascontiguousarray(hidden[before]), known[before + 1])
        guesses = backend.propose(state)
        for depth in range(1, depth_of + 1):
            # the token after place + depth, which the row of place + depth has the logits of
            named = np.take_along_axis(probs[at + depth], guesses.tokens[:, 0].astype(np.intp), 1)
            yield depth, guesses, named.astype(np.float32)
            if depth < depth_of:
                assert guesses.states is not None, "heads that see the tokens before them"
                guesses = backend.deepen(guesses.states, known[at + 1 + depth], depth + 1)


def merged(guesses: Sequence[Guesses]) -> Guesses:
    """All rows."""
    return Guesses(
        np.concatenate([some.tokens for some in guesses]),
        np.concatenate([some.probs for some in guesses]),
    )


def scores(guesses: Guesses, model: Floats, temperature: float | None, error: float) -> str:
    """What becomes of the guesses; without a temperature they are ranked as the heads state."""
    rng, rows = np.random.default_rng(0), range(len(model))
    right, firsts, losses = np.zeros(3), 0.0, 0.0
    for repeat in range(REPEATS):
        noises = [Noise(i, repeat, temperature or 1.0) for i in rows]
        found = guesses
        if temperature:
            coupling._ERROR = error
            found = coupling.couple(guesses, noises)
        won = winners(guesses, model, noises, rng)
        hits = found.tokens[:, 0] == won[:, None]
        right += hits.mean(0).cumsum()[:3]
        firsts += float(found.probs[:, 0, 0].mean())
        said = (found.probs[:, 0] * hits).sum(1)
        others = np.maximum(1.0 - found.probs[:, 0].sum(1), 1e-3)
        losses -= float(np.log(np.where(hits.any(1), np.maximum(said, 1e-9), others)).mean())
    shown = " ".join(f"{share / REPEATS:.3f}" for share in right)
    return f"{shown}   {firsts / REPEATS:.3f}   {losses / REPEATS:.3f}"


def winners(
    guesses: Guesses, model: Floats, noises: Sequence[Noise], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The token that is drawn in each row; -1 for one that the heads do not name."""
    first, second = (
        np.array(words, np.uint32)[:, None]
        for words in zip(*(noise.key() for noise in noises), strict=True)
    )
    with np.errstate(divide="ignore"):
        named = np.log(model) + gumbel(first, second, guesses.tokens[:, 0])
        rest = np.log(np.maximum(1.0 - model.sum(1), 1e-9)) + rng.gumbel(size=len(model))
    best = guesses.tokens[np.arange(len(model)), 0, named.argmax(1)]
    return np.where(named.max(1) > rest, best, -1).astype(np.int64)


if __name__ == "__main__":
    main()
