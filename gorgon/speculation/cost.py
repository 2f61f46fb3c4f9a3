"""What a step costs by its number of tokens: t(n), measured, and corrected by the steps that run.

Knows numbers only; who measures and where the numbers are kept is elsewhere.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gorgon.speculation.speed import Speeds

Floats = npt.NDArray[np.float64]

_CHANGE_PART = 0.6  # of a change, held against one step; best of 0 to 1 in a simulation
_SHAPE_RATE = 0.03  # of what one step deviates, into its own n, for each step since its last one,
_REQUEST_RATE = 0.06  # or, where each request has one token, into what their number costs
_MOST_MISSED = 5  # steps, for these two rates
_FEW_VISITS = 5  # of a size, before it is known for itself
_STALE = 300  # steps without a size, after which it is no longer
_FIRST_SHAPE_RATE = 0.1  # more of the first few: a measurement knows no drafting and few contexts
_LEAST_PART = 0.5  # of what tokens of one request take, that those of several take
_MOST_DIP = 1.3  # t(n) over the least t of any larger n, as far as kernels are known to differ
_SAME_CONTEXT = 16.0  # cells within which t(n) is taken to be the same
_NOISE = 0.12**2  # variance of what a step takes, relative,
_CHANGE_NOISE = 0.5  # and standard deviation of what a change costs
_LEAK = 0.005  # of a size's deviation, each time it is seen: what all share is the machine's speed
_MAX_ERROR = 0.7  # relative: a step that was interrupted says no more than this


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Measured seconds of a step: ``seconds[c, i]`` at ``contexts[c]`` cells, ``sizes[i]`` tokens.

    Both axes rise; every n up to some limit is there, larger ones with gaps.
    """

    contexts: tuple[int, ...]
    sizes: tuple[int, ...]
    seconds: Floats

    def __post_init__(self) -> None:
        assert self.seconds.shape == (len(self.contexts), len(self.sizes))
        assert list(self.contexts) == sorted(set(self.contexts))
        assert list(self.sizes) == sorted(set(self.sizes))
        assert self.sizes[0] == 1
        assert np.all(self.seconds > 0)


class StepCost:
    """t(n) at any context, kept true by what steps really take.

    The estimate is the measured curve times how fast the machine is now, in plain steps (one token
    a request) and in drafted ones, and a deviation of each n. Where attention reads for each token
    the cells of its own request, tokens of several requests take longer than as many of one; how
    much is learnt from plain steps. Contexts between measured ones are interpolated, sizes beyond
    the largest extrapolated by the curve's last slope.

    Args:
        times: the measurement.
        max_tokens: the largest n asked for.
        change: seconds that a step costs on top when its n is not that of the step before.
    """

    def __init__(
        self,
        times: StepTimes,
        max_tokens: int,
        change: float = 0.0,
    ) -> None:
        self.times, self.max_tokens = times, max_tokens
        self.change, self._last = change, 1
        n = np.arange(1, max_tokens + 1)
        self._contexts = times.contexts
        self._table = np.stack([_extend(np.array(times.sizes), row, n) for row in times.seconds])
        self._speeds = Speeds()
        self._more = {1: 0.0}  # seconds of a step by its requests, beyond that of one request
        self._deviation = [0.0] * max_tokens
        self._visits = [0] * max_tokens
        self._steps, self._seen = 0, [0] * (max_tokens + 1)  # observed, and when each size was last
        # t(n) there, measured and with the deviations, without the speeds.
        self._context, self._measured, self._shape = math.nan, [0.0], [0.0]

    @property
    def last_size(self) -> int:
        """Tokens of the last step observed."""
        return self._last

    def seconds(self, context: float) -> Floats:
        """t(n) of one request in seconds, shape [max_tokens + 1]; t(0) is 0.

        Unlike ``curve`` for any thread: it keeps nothing.
        """
        measured, curve = self._at(context), np.zeros(self.max_tokens + 1)
        curve[1:] = measured * np.exp(np.add(self._deviation, self._speeds.drafted))
        curve[1] = measured[0] * math.exp(self._speeds.plain)
        return curve

    def doubt(self) -> float:
        """Standard deviation of the log ratio between what plain and drafted steps take."""
        return self._speeds.doubt

    def curve(self, context: float, most: int, num_requests: int = 1) -> list[float]:
        """t(0) to t(``most``) in seconds, or as far as known; much faster than ``seconds``.

        Args:
            context: cells that a token's attention reads.
            most: the largest n.
            num_requests: whose tokens the step has.
        """
        return self._curve(context, most, num_requests, 0.0)

    def next_curve(self, context: float, most: int, num_requests: int = 1) -> list[float]:
        """``curve`` for the step after the last one observed, a change of n counted in.

        Not all of it: steps to come keep the size, too.
        """
        change = _CHANGE_PART * self.change
        curve = self._curve(context, most, num_requests, change)
        if 0 < self._last < len(curve):
            curve[self._last] -= change
        return curve

    def _curve(self, context: float, most: int, num_requests: int, change: float) -> list[float]:
        """``curve`` with ``change`` seconds more for every n."""
        shape = self._shape_at(context)[: most + 1]
        factor, more = math.exp(self._speeds.drafted), self._more_for(num_requests)
        if more < 0.0:
            curve = [factor * max(time + more, _LEAST_PART * time) + change for time in shape]
        else:
            curve = [factor * time + (factor * more + change) for time in shape]
        curve[0] = 0.0
        if num_requests < len(curve):
            plain = math.exp(self._speeds.plain) * self._plain(num_requests)
            curve[num_requests] = plain + change
        return curve

    def _plain(self, num_requests: int) -> float:
        """Seconds of a step with one token a request at the last context, without the speed."""
        time = self._measured[num_requests]
        return max(time + self._more_for(num_requests), _LEAST_PART * time)

    def interrupt(self) -> None:
        """Note that something else was computed: the next step costs a change in any case."""
        self._last = 0

    def observe(
        self, num_tokens: int, context: float, seconds: float, num_requests: int = 1
    ) -> None:
        """Learn from a step of ``num_tokens`` that took ``seconds``."""
        if not 1 <= num_tokens <= self.max_tokens or seconds <= 0:
            return
        drafted, speeds = num_tokens > num_requests, self._speeds
        time, more = self._shape_at(context)[num_tokens], self._more_for(num_requests)
        # The mean, not the median, of what steps take decides how many tokens come in a second.
        if drafted:
            expected = math.exp(speeds.drafted) * max(time + more, _LEAST_PART * time)
        else:
            expected = math.exp(speeds.plain) * self._plain(num_requests)
        change = 0.0 if num_tokens == self._last else self.change
        noise = _NOISE + (_CHANGE_NOISE * change / expected) ** 2
        self._last = num_tokens
        error = min((seconds - change) / expected - 1.0, _MAX_ERROR)
        speeds.observe(error, noise, drafted=drafted)
        self._steps += 1
        missed = min(self._steps - self._seen[num_tokens], _MOST_MISSED) * _NOISE / noise
        self._seen[num_tokens] = self._steps
        if drafted:
            self._reshape(num_tokens, missed * _SHAPE_RATE, error)
        elif num_requests > 1:
            more += missed * _REQUEST_RATE * error * self._plain(num_requests)
            self._more[num_requests] = max(more, -_LEAST_PART * self._measured[num_requests])

    def _more_for(self, num_requests: int) -> float:
        """What is known of the next smaller number of requests that is known."""
        while num_requests not in self._more:
            num_requests -= 1
        return self._more[num_requests]

    def _reshape(self, num_tokens: int, rate: float, error: float) -> None:
        """Take ``error``, relative, into the deviation of ``num_tokens``.

        Sizes that are as good as unknown follow their neighbours: else the choice would always
        fall on those whose cost was never found out.
        """
        i, reach, shape = num_tokens - 1, num_tokens // 3, self._shape
        self._visits[i] += 1
        learnt = max(rate, _FIRST_SHAPE_RATE / self._visits[i]) * error
        learnt -= _LEAK * self._deviation[i]
        for j in range(max(0, i - reach), min(self.max_tokens, i + reach + 1)):
            unknown = self._visits[j] < _FEW_VISITS or self._steps - self._seen[j + 1] > _STALE
            if j == i or unknown:
                part = learnt * (1.0 - abs(j - i) / (reach + 1))
                self._deviation[j] += part
                if j + 1 < len(shape):
                    shape[j + 1] *= math.exp(part)

    def _shape_at(self, context: float) -> list[float]:
        """t(n) without the drift, kept from step to step until the context has moved."""
        if not abs(context - self._context) <= _SAME_CONTEXT:
            measured = self._at(context)
            self._context, self._measured = context, [0.0, *measured.tolist()]
            self._shape = [0.0, *(measured * np.exp(self._deviation)).tolist()]
        return self._shape

    def _at(self, context: float) -> Floats:
        """The measured curve at ``context``, without what was learnt since."""
        above, part = self._place(context)
        below = self._table[above - 1]
        line: Floats = np.maximum(below + part * (self._table[above] - below), 0.5 * below)
        return line

    def _place(self, context: float) -> tuple[int, float]:
        """The measured context above ``context``, and where between it and the one below."""
        contexts = self._contexts
        if len(contexts) == 1:
            return 0, 0.0
        above = min(max(bisect.bisect_left(contexts, context), 1), len(contexts) - 1)
        low, high = contexts[above - 1], contexts[above]
        return above, (max(context, contexts[0]) - low) / (high - low)


@dataclass(slots=True)
class CallCost:
    """Seconds of a call by its rows, ``base + per_row * rows``, following what calls take."""

    base: float
    per_row: float
    rate: float = 0.05  # of one call in what is known

    def at(self, rows: int) -> float:
        """Seconds for ``rows``."""
        return self.base + self.per_row * rows

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one call; one that took long for another reason says little."""
        expected = self.at(rows)
        factor = 1.0 + self.rate * (min(seconds / expected, 2.0) - 1.0)
        self.base *= factor
        self.per_row *= factor


class OutsideCost:
    """Seconds of a step outside the model and the heads: trees, batches, acceptance, bookkeeping.

    Once measured on a GPU's host and since then taken to be so many times as much, whatever the
    step: so the first steps with many requests know what those with few have cost.
    """

    _STEP, _REQUEST = 50e-6, 25e-6
    _DRAFTING, _DRAFTED_REQUEST, _DRAFT = 100e-6, 50e-6, 15e-6
    _RATE, _MOST = 0.03, 3.0  # of one step in what is known, and what it can be over that

    def __init__(self) -> None:
        self._factor = 1.0

    def drafting(self, num_drafts: int, num_requests: int) -> float:
        """Seconds that drafts add to a step."""
        if num_drafts <= 0:
            return 0.0
        drafted = min(num_drafts, num_requests) * self._DRAFTED_REQUEST
        return self._factor * (self._DRAFTING + drafted + self._DRAFT * num_drafts)

    def observe(self, num_drafts: int, num_requests: int, seconds: float) -> None:
        """Learn from what a step took outside the model and the heads."""
        plain = self._factor * (self._STEP + self._REQUEST * num_requests)
        expected = plain + self.drafting(num_drafts, num_requests)
        self._factor *= 1.0 + self._RATE * (min(seconds / expected, self._MOST) - 1.0)


def smooth(samples: Sequence[Sequence[float]]) -> Floats:
    """Lower quartiles of repeated times by rising n, falls within their noise taken out.

    The quartile, since whatever else a machine does only ever adds to a time. A fall from n to
    n + 1 is kept where it exceeds the noise of both (kernels that work in fours are faster at 4
    than at 3); else both get their mean (pooling adjacent violators). No n costs much more than a
    larger one, up to which its batch could be filled: what seems to was interrupted each time.

    Args:
        samples: for each n the seconds of its repeats, at least one.
    """
    levels = np.array([np.percentile(times, 25) for times in samples])
    noise = np.array([_standard_error(times) for times in samples])
    levels = np.minimum(levels, _MOST_DIP * np.minimum.accumulate(levels[::-1])[::-1])
    pools: list[tuple[float, float, int]] = []
    for value, spread in zip(levels, noise, strict=True):
        pool = (float(value), float(spread), 1)
        while pools and 0 < pools[-1][0] - pool[0] <= 2.0 * math.hypot(pools[-1][1], pool[1]):
            left = pools.pop()
            count = left[2] + pool[2]
            mean = (left[0] * left[2] + pool[0] * pool[2]) / count
            pool = (mean, max(left[1], pool[1]), count)
        pools.append(pool)
    return np.concatenate([np.full(count, value) for value, _, count in pools])


def _standard_error(times: Sequence[float]) -> float:
    """Of the median, from the median absolute deviation; 2 % where there are too few repeats."""
    middle = float(np.median(times))
    if len(times) < 3:
        return 0.02 * middle
    spread = 1.4826 * float(np.median(np.abs(np.asarray(times) - middle)))
    return 1.2533 * spread / math.sqrt(len(times))


def _extend(sizes: npt.NDArray[np.int_], seconds: Floats, n: npt.NDArray[np.int_]) -> Floats:
    """``seconds`` at every ``n``: between sizes on a line, beyond the last on its slope."""
    curve: Floats = np.interp(n, sizes, seconds)
    if len(sizes) > 1:
        first = len(sizes) // 2 if len(sizes) > 2 else 0
        slope = (seconds[-1] - seconds[first]) / (sizes[-1] - sizes[first])
        beyond = n > sizes[-1]
        curve[beyond] = seconds[-1] + max(slope, 0.0) * (n[beyond] - sizes[-1])
    return curve
