"""What new heads are worth, as a text and a picture beside their file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gorgon.training.batches import Batches
from gorgon.training.calibration import gaps
from gorgon.training.corpus import Corpus, Longs
from gorgon.training.evaluation import (
    NUM_RANKS,
    Floats,
    Subject,
    Survey,
    accepted_by_trees,
    tokens_per_step,
)
from gorgon.training.served import Tested, calibrate
from gorgon.training.whole_file import write_whole

_TREE_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
_MAX_TREE_TEXTS = 24  # growing trees costs 16 times a survey

Gaps = list[tuple[float, float, int]]


def make_report(
    heads: Path,
    subject: Subject,
    corpus: Corpus,
    texts: Longs,
    batches: Batches,
    found: Survey,
    tested: Sequence[Tested],
) -> None:
    """Write ``*.txt`` and ``*.png`` beside the file ``heads``.

    Args:
        heads: the heads file that is reported on.
        subject: its heads.
        corpus: answers; ``texts`` of them, greedy, were not trained on.
        batches: of the corpus.
        found: the heads' guesses on those texts.
        tested: what the served heads stated about them, uncalibrated.

    Raises:
        TrainingError: when a file cannot be written.
    """
    some = texts[:_MAX_TREE_TEXTS]
    calibration = calibrate(tested)
    accepted = accepted_by_trees(subject, batches, corpus.positions(some), calibration, _TREE_SIZES)
    trees = {size: tokens_per_step(corpus, some, counts) for size, counts in accepted.items()}
    chains = {
        length: tokens_per_step(corpus, texts, found.accepted(length))
        for length in range(1, len(calibration) + 1)
    }
    stated = _checked(tested, texts)
    text = "\n".join(_lines(heads, found.accuracy(), chains, trees, stated)) + "\n"
    write_whole(heads.with_suffix(".txt"), lambda part: part.write_text(text, encoding="utf-8"))
    write_whole(
        heads.with_suffix(".png"), lambda part: _draw(part, found.accuracy(), trees, stated)
    )


def _checked(tested: Sequence[Tested], texts: Longs) -> list[Gaps]:
    """Stated and measured survival in every second text, the maps fitted on the others."""
    fitted = calibrate([depth.of(texts[::2]) for depth in tested])
    others = [depth.of(texts[1::2]) for depth in tested]
    return [
        gaps(knots(depth.stated.ravel()), depth.came.ravel())
        for knots, depth in zip(fitted, others, strict=True)
    ]


def _lines(
    heads: Path,
    accuracy: Floats,
    chains: dict[int, float],
    trees: dict[int, float],
    stated: Sequence[Gaps],
) -> list[str]:
    ranks = "".join(f"{rank:7d}" for rank in range(1, NUM_RANKS + 1))
    lines = [f"{heads.name}: on the model's greedy answers to held-out prompts", ""]
    lines += ["right among the first 1 to 10 guesses", f"depth  {ranks}"]
    lines += [
        f"{depth:5d}  " + "".join(f"{share:7.3f}" for share in row)
        for depth, row in enumerate(accuracy)
    ]
    lines += ["", "tokens per step, 1 without heads"]
    lines += [f"  chain of {length}: {value:.2f}" for length, value in chains.items()]
    lines += [f"  tree of {size} with the root: {value:.2f}" for size, value in trees.items()]
    lines += ["", "survival stated and measured (map fitted on the other half), samples"]
    for depth, tenths in enumerate(stated):
        lines += [f"  depth {depth}: {said:.3f} {true:.3f} {n:,}" for said, true, n in tenths]
    return lines


def _draw(path: Path, accuracy: Floats, trees: dict[int, float], stated: Sequence[Gaps]) -> None:
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ranks_axes, trees_axes, survival_axes = figure.subplots(1, 3)
    ranks = np.arange(1, NUM_RANKS + 1)
    for depth, row in enumerate(accuracy):
        ranks_axes.plot(ranks, row, marker="o", label=f"depth {depth}")
        points = np.array([(said, true) for said, true, _ in stated[depth]]).reshape(-1, 2)
        survival_axes.plot(points[:, 0], points[:, 1], marker="o", label=f"depth {depth}")
    _label(ranks_axes, "guesses", "share with the right one", "Accuracy")
    ranks_axes.set_ylim(0, 1)
    trees_axes.plot(list(trees), list(trees.values()), marker="o")
    trees_axes.set_ylim(bottom=1)
    _label(trees_axes, "tokens in the tree, root included", "tokens per step", "Yield")
    survival_axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    _label(survival_axes, "survival stated", "survival measured", "Calibration")
    ranks_axes.legend()
    survival_axes.legend()
    figure.savefig(path, dpi=110, format="png")


def _label(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
