"""Grammar rules for numbers within bounds: which digit may stand where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

LARGEST = Decimal(10**15)  # beyond it a double has no room for a fraction
MAX_DECIMALS = 4

Digits = list[tuple[str, str]]


def integers(low: Decimal, high: Decimal) -> str:
    """GBNF alternatives for the integers in [low, high]; empty if there are none."""
    return " | ".join(_signed(math.ceil(low), math.floor(high), 0))


def decimals(low: Decimal, high: Decimal, *, open_low: bool, open_high: bool) -> str:
    """GBNF alternatives for numbers between bounds: integers, and fractions of fixed lengths.

    As many decimals as the bounds have and one more, at most ``MAX_DECIMALS`` unless the bounds
    have more. ``open_low`` and ``open_high`` leave the bound itself out.
    """
    finest = max(_num_decimals(low), _num_decimals(high))
    alternatives: list[str] = []
    for count in range(max(finest, min(finest + 1, MAX_DECIMALS)) + 1):
        first, last = low.scaleb(count), high.scaleb(count)
        start = int(first.to_integral_value(ROUND_CEILING))
        end = int(last.to_integral_value(ROUND_FLOOR))
        start += open_low and start == first
        end -= open_high and end == last
        alternatives += _signed(start, end, count)
    return " | ".join(alternatives)


def _num_decimals(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _signed(low: int, high: int, num_decimals: int) -> Iterator[str]:
    """Numbers in [low, high], in units of the last decimal; never "-0"."""
    if low < 0:
        for digits in _unsigned(max(1, -high), -low, num_decimals + 1):
            yield '"-" ' + _rule(digits, num_decimals)
    for digits in _unsigned(max(0, low), high, num_decimals + 1):
        yield _rule(digits, num_decimals)


def _unsigned(low: int, high: int, min_digits: int) -> Iterator[Digits]:
    """Digit patterns that cover [low, high], padded with zeros to ``min_digits``."""
    if high < 0:
        return
    for length in range(min_digits, max(min_digits, len(str(high))) + 1):
        smallest = 0 if length == min_digits else 10 ** (length - 1)
        first, last = max(low, smallest), min(high, 10**length - 1)
        if first <= last:
            yield from _same_length(str(first).zfill(length), str(last).zfill(length))


def _same_length(low: str, high: str) -> Iterator[Digits]:
    if set(low) <= {"0"} and set(high) <= {"9"}:
        yield [("0", "9")] * len(low)
        return
    if low[0] == high[0]:
        for rest in _same_length(low[1:], high[1:]):
            yield [(low[0], low[0]), *rest]
        return
    width = len(low) - 1
    start, end = int(low[0]), int(high[0])
    if set(low[1:]) - {"0"}:
        for rest in _same_length(low[1:], "9" * width):
            yield [(low[0], low[0]), *rest]
        start += 1
    if set(high[1:]) - {"9"}:
        end -= 1
    if start <= end:
        yield [(str(start), str(end)), *[("0", "9")] * width]
    if end < int(high[0]):
        for rest in _same_length("0" * width, high[1:]):
            yield [(high[0], high[0]), *rest]


def _rule(digits: Digits, num_decimals: int) -> str:
    point = len(digits) - num_decimals
    whole = "".join(f"[{a}-{b}]" if a != b else f"[{a}]" for a, b in digits[:point])
    if not num_decimals:
        return whole
    return whole + '"."' + "".join(f"[{a}-{b}]" if a != b else f"[{a}]" for a, b in digits[point:])
