r"""Whether the heads' stated survival comes true, and a new calibration where it does not.

    python -m benchmarks.heads_calibration --fit humaneval.jsonl gorgon/bench/prompts.jsonl \
        --check mt_bench.jsonl --work FOLDER

The model answers the prompts (kept in --work, so that a stopped run goes on); the heads in their
file, quantised, are walked over its answers as the engine would (gorgon/training/served.py). A
calibration is fitted on every second answer to the prompts of --fit and printed beside the one in
the file: per depth and tenth what was stated, what was measured, and how many drafts. With
--write the file gets the new one, fitted on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gorgon.bench.prompts import load_prompts
from gorgon.cli.bench import make_encoder
from gorgon.compile.sidecar import Calibration as Map
from gorgon.compile.sidecar import write_calibrated
from gorgon.config import EngineSettings
from gorgon.llama.backend import DEFAULT_HEADS, default_model
from gorgon.llama.heads import Heads, load_heads
from gorgon.llama.heads_file import open_heads, read_info
from gorgon.llama.model import Model
from gorgon.training.answers import Answerer
from gorgon.training.calibration import gaps
from gorgon.training.corpus import Corpus, CorpusWriter, open_corpus
from gorgon.training.prompts import Job, empty_turn, invention_jobs
from gorgon.training.served import Tested, walk

SLOTS, CELLS, MAX_PROMPT = 8, 768, 512
MIN_SAMPLES = 300
SEED = 1000  # gorgon train begins at 0: other prompts are invented here


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--fit", type=Path, nargs="*", default=[], help="prompts that the heads were not trained on"
    )
    parser.add_argument("--invent", type=int, default=0, help="prompts that the model makes up")
    parser.add_argument("--check", type=Path, nargs="*", default=[], help="further prompts")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--length", type=int, default=256, help="new tokens, at most")
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--heads", type=Path, default=DEFAULT_HEADS)
    parser.add_argument("--threads", type=int, default=EngineSettings().threads)
    parser.add_argument("--work", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--write", action="store_true", help="put the new calibration in the file")
    arguments = parser.parse_args()
    settings = EngineSettings(model=arguments.model, threads=arguments.threads)
    model = Model(settings, arguments.model)
    author = Author(model, settings, arguments.work, arguments.temperature, arguments.length)
    prompts = [prompt for path in arguments.fit for prompt in author.read(path)]
    prompts += author.invent(arguments.invent) if arguments.invent else []
    corpus = author.answer("fit", prompts)
    checks = {path.stem: author.answer(path.stem, author.read(path)) for path in arguments.check}
    with open_heads(arguments.heads) as file:
        stated = read_info(file, model.info).calibration
    with raw_heads(arguments.heads, model, settings) as heads:
        found = walk(heads, corpus, np.arange(corpus.num_texts))
        others = {name: walk(heads, c, np.arange(c.num_texts)) for name, c in checks.items()}
    print(f"{corpus.num_texts} held-out texts, {corpus.num_answer_tokens} tokens")
    halves = [[depth.of(range(i, corpus.num_texts, 2)) for depth in found] for i in range(2)]
    fitted = [depth.fit() for depth in halves[0]]
    for name, tested in {"held-out prompts, other half": halves[1], **others}.items():
        print_table(f"{name}, calibration in the file", tested, stated)
        print_table(f"{name}, fitted on half of the held-out prompts", tested, fitted)
    if arguments.write:
        everywhere = corpus.positions(np.arange(corpus.num_texts))
        provenance = {"calibration_positions": len(everywhere)}
        maps = [depth.fit() for depth in found]
        write_calibrated(arguments.heads, arguments.heads, maps, provenance)
    model.close()


class Author:
    """The model, its answers and its own prompts kept in ``work``."""

    def __init__(
        self, model: Model, settings: EngineSettings, work: Path, temperature: float, length: int
    ) -> None:
        self._model, self._settings, self._work = model, settings, work
        self._temperature, self._length = temperature, length
        self._encode = make_encoder(None)(model)
        work.mkdir(parents=True, exist_ok=True)

    def read(self, path: Path) -> list[list[int]]:
        """The prompts of a file as tokens."""
        return [list(self._encode(prompt.text)) for prompt in load_prompts(path)]

    def invent(self, count: int) -> list[list[int]]:
        """Prompts from an empty user turn of the chat template; those that the model ended."""
        path = self._work / f"invented-{count}.json"
        if not path.exists():
            before, behind = empty_turn(lambda text: list(self._encode(text)))
            with self._answerer() as answerer:
                answers = answerer.run(invention_jobs(before, count, SEED))
                ended = sorted((a.job.index, a.tokens) for a in answers if a.ended)
            path.write_text(json.dumps([[*tokens, *behind] for _, tokens in ended]))
        found: list[list[int]] = json.loads(path.read_text())
        return found

    def answer(self, name: str, prompts: Sequence[list[int]]) -> Corpus:
        """Answers to ``prompts``; those that a stopped run left are taken up."""
        folder, width = self._work / f"{name}-{self._temperature}", self._model.info.num_embd
        fitting = [tokens for tokens in prompts if len(tokens) <= MAX_PROMPT]
        jobs = [Job(i, t, self._temperature, self._length) for i, t in enumerate(fitting)]
        with contextlib.closing(CorpusWriter(folder, width)) as writer, self._answerer() as answers:
            for answer in answers.run([job for job in jobs if job.index not in writer.done]):
                writer.append(answer.tokens, answer.best, answer.states, answer.job)
        return open_corpus(folder, width)

    def _answerer(self) -> contextlib.closing[Answerer]:
        return contextlib.closing(Answerer(self._model, self._settings, SLOTS, CELLS, SEED))


@contextlib.contextmanager
def raw_heads(path: Path, model: Model, settings: EngineSettings) -> Iterator[Heads]:
    """The heads in ``path`` without their calibration."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / path.name
        write_calibrated(raw, path, (), {})
        with contextlib.closing(load_heads(raw, model.info, settings)) as heads:
            yield heads


def print_table(title: str, tested: Sequence[Tested], maps: Sequence[Map]) -> None:
    """Stated, measured and number of drafts in each tenth, a row a depth."""
    print(f"\n{title}\n| depth | stated > measured (drafts), tenths with {MIN_SAMPLES} or more |")
    print("|---|---|")
    for depth, (drafts, knots) in enumerate(zip(tested, maps, strict=True), 1):
        survival = np.interp(drafts.stated.ravel(), knots.x, knots.y)
        tenths = gaps(survival, drafts.came.ravel(), MIN_SAMPLES)
        cells = [f"{said:.2f} > {true:.2f} ({count})" for said, true, count in tenths]
        print(f"| {depth} | {', '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
