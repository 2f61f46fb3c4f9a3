"""What the heads guess and yield in the engine that serves: quantised, on the model's own states.

    python -m benchmarks.heads_accuracy --prompts mt_bench.jsonl [--count 40] [--length 256]

First one token a step (drafts are made wrong on purpose), so that head 0 is asked at every place of
the greedy answers: how often the next token is among its first k guesses. Then fixed trees and the
automatic choice: tokens a step, and how often a draft was accepted where the one before it was.
Answers end where the model ends them. Figures depend on the machine only through near-ties and,
for the automatic choice, through what a step costs there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from gorgon.backend import Backend, DraftState, Guesses
from gorgon.bench.answer import Answer, Load, make_block
from gorgon.bench.document import PartyInfo
from gorgon.bench.inprocess import EngineParty
from gorgon.bench.party import parse_mode
from gorgon.bench.prompts import Prompt, load_prompts
from gorgon.bench.summary import accepted_by_depth
from gorgon.cli.bench import make_encoder
from gorgon.config import EngineSettings
from gorgon.engine.load import Loaded, load

RANKS = (1, 2, 3, 5, 10)
TREES = ("chain:2", "chain:3", "chain:4", "tree:4", "tree:8", "tree:16", "medusa")
WRONG = 3  # a control token of the embedded model that no answer holds


class Recorder:
    """A backend whose heads can be overheard, and made to guess wrong."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.listening = False
        self.asked: list[tuple[int, tuple[int, ...]]] = []  # the root, the guesses after it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def propose(self, state: DraftState) -> Guesses:
        """What the heads say; while listening, with every token replaced by one that is wrong."""
        guesses = self._inner.propose(state)
        if not self.listening:
            return guesses
        first = tuple(int(token) for token in guesses.tokens[0, 0])
        self.asked.append((int(state.tokens[0, 0]), first))
        return Guesses(np.full_like(guesses.tokens, WRONG), guesses.probs, guesses.states)


def head_0(party: EngineParty, recorder: Recorder, prompts: Sequence[Prompt], load: Load) -> str:
    """How often the next token is among the first k guesses, over all places of all answers."""
    found = np.zeros(max(RANKS))
    asked = 0
    recorder.listening = True
    for prompt in prompts:
        recorder.asked.clear()
        party.run([prompt], load)
        for (_, guesses), (token, _) in zip(recorder.asked, recorder.asked[1:], strict=False):
            asked += 1
            if token in guesses[: max(RANKS)]:
                found[guesses.index(token)] += 1
    recorder.listening = False
    shares = np.cumsum(found) / asked
    known = [k for k in RANKS if k <= len(recorder.asked[0][1])]
    return f"head 0 at {asked} places: " + ", ".join(f"top-{k} {shares[k - 1]:.3f}" for k in known)


def tree_row(name: str, answers: Sequence[Answer], load: Load) -> str:
    """Tokens a step of one mode, and acceptance by depth given the depth before."""
    block = make_block(name, load, "", "", answers, None)
    steps = sum(sample.steps or 0 for sample in block.samples)
    depths = accepted_by_depth([block])
    reached = [drafted for drafted, _ in depths[:1]] + [accepted for _, accepted in depths[:-1]]
    shares = [a / r if r else 0.0 for (_, a), r in zip(depths, reached, strict=True)]
    # Below a tree's first depth several nodes share a place; the root of a step counts once.
    if depths:
        shares[0] = depths[0][1] / steps
    by_depth = " ".join(f"{share:.3f}" for share in shares)
    return f"| {name} | {steps} | {block.tokens / steps:.2f} | {by_depth} |"


def make_party(name: str, loaded: Loaded, encode: Any) -> EngineParty:
    mode = parse_mode(name)
    info = PartyInfo(name=name, kind="engine", version="", settings={})
    return EngineParty(info, loaded.engine, loaded.model, encode, mode.speculation())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--count", type=int, default=40, help="prompts, spread over the file")
    parser.add_argument("--length", type=int, default=256, help="new tokens, at most")
    parser.add_argument("--clients", type=int, default=4, help="answers at a time, for the trees")
    parser.add_argument("--trees", nargs="*", default=TREES)
    parser.add_argument("--threads", type=int, default=EngineSettings().threads)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--heads", type=Path)
    arguments = parser.parse_args()
    recorders: list[Recorder] = []

    def wrap(backend: Backend) -> Backend:
        recorders.append(Recorder(backend))
        return cast(Backend, recorders[0])

    settings = EngineSettings(
        model=arguments.model, heads=arguments.heads, threads=arguments.threads
    )
    loaded = load(settings, wrap)
    encode = make_encoder(None)(loaded.model)
    prompts = load_prompts(arguments.prompts, arguments.count)
    one = Load(1, arguments.length, natural=True, temperature=0.0, seed=0)
    print(head_0(make_party("chain:2", loaded, encode), recorders[0], prompts, one), flush=True)
    print("| drafts | steps | tokens/step | accepted at depth 1, 2 ... if reached |")
    print("|---|---|---|---|")
    many = Load(arguments.clients, arguments.length, natural=True, temperature=0.0, seed=0)
    for name in arguments.trees:
        print(tree_row(name, make_party(name, loaded, encode).run(prompts, many), many), flush=True)
    loaded.backend.close()


if __name__ == "__main__":
    main()
