"""Drafts change no text on llama.cpp: a tiny model in every way, the default model in a few.

Plain decoding alone is the reference; every row of logits is compared, bit by bit where nothing
may differ. docs/exactness.md says why some ways differ by rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.exactness import (
    PLAIN,
    SAMPLINGS,
    SPECULATIONS,
    Recorder,
    Tally,
    Trace,
    compare,
    compare_under_load,
    make_requests,
    plain,
)
from gorgon.config import EngineSettings
from gorgon.llama import kernels
from gorgon.request import Request, SamplingParams, SpeculationParams
from tests.tiny import write_heads, write_model

PROMPTS = [tuple((seed * 37 + i * i) % 259 for i in range(4 + 5 * seed)) for seed in range(6)]
LENGTH = 24
CACHES = ["f16", "q8_0", "q4_0"]
DRAFTING = [name for name in SPECULATIONS if name != "normal"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    model = write_model(folder / "tiny.gguf", change={"context_length": 2048})
    return {"model": model, "heads": write_heads(folder / "tiny.medusa.gguf", model)}


def make_recorder(files: dict[str, Path], **settings: Any) -> Recorder:
    fields: dict[str, Any] = {"num_cells": 1024, "cached_cells": 256, "threads": 1}
    return Recorder(EngineSettings(**(fields | files | settings)))


@pytest.fixture(scope="module", params=CACHES)
def recorder(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Recorder]:
    recorder = make_recorder(files, cache_type=request.param)
    yield recorder
    recorder.backend.close()


def references(recorder: Recorder, sampling: str) -> list[Trace]:
    return plain(recorder, make_requests(PROMPTS, LENGTH, SAMPLINGS[sampling], PLAIN, False))


def expect_same(tally: Tally) -> None:
    assert tally.same_texts == tally.texts
    assert tally.same_rows == tally.rows
    assert tally.accepted > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_tree_gives_every_bit_of_plain_decoding(recorder: Recorder, sampling: str) -> None:
    wanted = references(recorder, sampling)
    for tree in DRAFTING:
        requests = make_requests(PROMPTS, LENGTH, SAMPLINGS[sampling], SPECULATIONS[tree], False)
        expect_same(compare(recorder, requests, wanted))


@pytest.mark.parametrize("sampling", ["greedy", "top-k, top-p", "penalties"])
def test_company_changes_no_bit(recorder: Recorder, sampling: str) -> None:
    """Requests with trees of all kinds, joining and leaving at different steps."""
    wanted = references(recorder, sampling)
    requests = [
        Request(str(i), prompt, LENGTH, SAMPLINGS[sampling], SPECULATIONS[tree], reuse_prefix=False)
        for i, (prompt, tree) in enumerate(zip(PROMPTS, [*SPECULATIONS, *DRAFTING], strict=False))
    ]
    expect_same(compare(recorder, requests, wanted, batch=len(requests)))


def orders_cells(recorder: Recorder) -> bool:
    """Whether attention sums in the order of positions, wherever the tokens lie in the cache."""
    return kernels.load().active and recorder.engine.settings.cache_type != "q4_0"


@pytest.mark.parametrize("tree", ["normal", "chain of 3", "tree of 8", "automatic"])
def test_a_reused_prefix_changes_nothing_but_the_order_of_cells(
    recorder: Recorder, tree: str
) -> None:
    """A tree of several branches leaves holes, which the next request fills; a chain does not."""
    speculation = SPECULATIONS[tree]
    tally = Tally()
    for prompt in PROMPTS:
        recorder.forget()
        sampling = SAMPLINGS["greedy"]
        (first,) = recorder.run(make_requests([prompt], LENGTH, sampling, speculation, True))
        longer = (*prompt, *first.tokens, 7, 8, 9)
        (again,) = recorder.run(make_requests([longer], LENGTH, sampling, speculation, True))
        (alone,) = plain(recorder, make_requests([longer], LENGTH, sampling, PLAIN, False))
        tally.add(alone, again)
    assert tally.unexplained == 0
    if tree in ("normal", "chain of 3") or orders_cells(recorder):
        assert tally.same_rows == tally.rows


@pytest.mark.parametrize("tree", ["normal", "chain of 3", "tree of 8"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_a_cache_that_is_always_in_use(files: dict[str, Path], cache: str, tree: str) -> None:
    """Requests come and go beside each other, so that their tokens fill holes in any order."""
    recorder = make_recorder(files, cache_type=cache, num_cells=320, cached_cells=64, trash_cells=8)
    prompts = [tuple((seed * 31 + i * i) % 259 for i in range(4 + seed)) for seed in range(20)]
    lengths = [LENGTH + 5 * (i % 4) for i in range(20)]
    requests: list[Request] = []
    references: list[Request] = []
    for speculation, found in ((PLAIN, references), (SPECULATIONS[tree], requests)):
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            found.append(Request(str(i), prompt, length, speculation=speculation))
    tally = compare_under_load(recorder, requests, plain(recorder, references), 4)
    recorder.backend.close()
    assert tally.unexplained == 0
    if orders_cells(recorder):
        assert tally.same_rows == tally.rows


def test_without_flash_attention_differences_are_rounding(files: dict[str, Path]) -> None:
    recorder = make_recorder(files, flash_attention=False)
    for sampling in ("greedy", "top-k, top-p"):
        wanted = references(recorder, sampling)
        for tree in DRAFTING:
            requests = make_requests(
                PROMPTS, LENGTH, SAMPLINGS[sampling], SPECULATIONS[tree], False
            )
            tally = compare(recorder, requests, wanted)
            assert tally.unexplained == 0
            assert tally.distance < 0.5
            assert tally.same_texts >= len(PROMPTS) - 2
    recorder.backend.close()


# -- the distribution -----------------------------------------------------------------------------

NUM_TEXTS, TEXT_LENGTH, TOP_K = 600, 3, 3
# The 0.999 quantile of chi-square with 26 degrees of freedom (3**3 texts).
LIMIT = 54.1


def sample(recorder: Recorder, speculation: SpeculationParams) -> Counter[tuple[int, ...]]:
    requests = [
        Request(
            str(seed),
            PROMPTS[2],
            TEXT_LENGTH,
            SamplingParams(temperature=3.0, top_k=TOP_K, seed=seed),
            speculation,
            ignore_eos=True,
        )
        for seed in range(NUM_TEXTS)
    ]
    counts: Counter[tuple[int, ...]] = Counter()
    for start in range(0, NUM_TEXTS, 24):
        traces = recorder.run(requests[start : start + 24])
        counts.update(tuple(trace.tokens) for trace in traces)
    return counts


def truth(recorder: Recorder) -> dict[tuple[int, ...], float]:
    """The probability of every text of three tokens, from the logits of plain decoding."""
    probs: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TEXT_LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for text, p in probs.items():
            request = Request("x", (*PROMPTS[2], *text), 1, speculation=PLAIN)
            logits = recorder.run([request])[0].logits[0] / 3.0
            best = logits.argsort()[-TOP_K:].tolist()
            total = sum(math.exp(float(logits[token])) for token in best)
            for token in best:
                longer[*text, token] = p * math.exp(float(logits[token])) / total
        probs = longer
    return probs


@pytest.mark.parametrize("tree", ["normal", "chain of 3", "tree of 8"])
def test_sampling_through_a_tree_keeps_the_distribution(files: dict[str, Path], tree: str) -> None:
    recorder = make_recorder(files)
    counts, probs = sample(recorder, SPECULATIONS[tree]), truth(recorder)
    recorder.backend.close()
    assert set(counts) <= set(probs)
    square = sum((counts[text] - NUM_TEXTS * p) ** 2 / (NUM_TEXTS * p) for text, p in probs.items())
    assert square < LIMIT
