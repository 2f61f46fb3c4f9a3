"""Speed against size and against quality, a point a type."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gorgon.compile.quality import Quality

# Of the axis of KL divergences, which is logarithmic but for its beginning.
_LINEAR_BELOW, _LEFT_OF_ZERO = 1e-4, 3e-5


@dataclass(frozen=True, slots=True)
class Point:
    """A type: bytes of its file, tokens/s of plain decoding, quality if measured."""

    name: str
    size: int
    tokens_per_second: float
    quality: Quality | None


def draw(points: Sequence[Point], target: Path) -> None:
    """Write a PNG; the unquantised model is at distance 0 from itself."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    scored = [point.quality for point in points if point.quality is not None]
    has_quality = len(scored) == len(points) and any(q.kl_divergence is not None for q in scored)
    with mpl.rc_context({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11 if has_quality else 6, 4.5), layout="constrained")
        panes = figure.subplots(1, 2 if has_quality else 1, squeeze=False)[0]
        sizes = [point.size / 1e6 for point in points]
        _scatter(panes[0], points, sizes, "size of the file (MB)")
        if has_quality:
            distances = [_distance(point) for point in points]
            _scatter(panes[1], points, distances, "KL divergence (nats)")
            panes[1].set_xscale("symlog", linthresh=_LINEAR_BELOW)
            panes[1].set_xlim(-_LEFT_OF_ZERO, 5 * max(*distances, _LINEAR_BELOW))
        figure.suptitle("One token a step, on this machine: up and to the left is better")
        figure.savefig(target, dpi=120)


def _distance(point: Point) -> float:
    assert point.quality is not None
    return point.quality.kl_divergence or 0.0


def _scatter(pane: Axes, points: Sequence[Point], xs: Sequence[float], label: str) -> None:
    for point, x in zip(points, xs, strict=True):
        (dot,) = pane.plot(x, point.tokens_per_second, "o", markersize=8)
        pane.annotate(
            point.name,
            (x, point.tokens_per_second),
            textcoords="offset points",
            xytext=(7, 5),
            color=dot.get_color(),
        )
    pane.set_xlabel(label)
    pane.set_ylabel("tokens/s")
    pane.margins(x=0.15)
    pane.set_ylim(0, 1.15 * max(point.tokens_per_second for point in points))
