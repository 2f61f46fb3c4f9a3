"""Whether it pays to run the heads at all, judged by what running them brought lately.

Guesses cost time before anybody knows how good they are. Where they rarely help (many requests
on a machine whose steps grow with every token, a text that the heads do not follow) they are left
out, and tried again at growing intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

_RATE = 0.1
_PROBE_RATE = 0.3  # while closed, when samples are rare
_FIRST_INTERVAL, _MAX_INTERVAL = 4, 64


@dataclass(slots=True)
class _Record:
    """``gain`` is the mean log ratio of tokens/s with and without the heads."""

    gain: float = 0.05
    interval: int = _FIRST_INTERVAL
    wait: int = 0


class Gate:
    """One record for each size of the batch, in powers of two."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    def is_open(self, num_requests: int) -> bool:
        """Whether to run the heads in this step."""
        record = self._record(num_requests)
        if record.gain > 0.0:
            return True
        record.wait -= 1
        if record.wait > 0:
            return False
        record.interval = min(2 * record.interval, _MAX_INTERVAL)
        record.wait = record.interval
        return True

    def is_open_within(self, num_requests: int, steps: int) -> bool:
        """Whether one of the next ``steps`` steps may run the heads."""
        record = self._record(num_requests)
        return record.gain > 0.0 or record.wait <= steps

    def learn(self, num_requests: int, gain: float) -> None:
        """Note the log ratio of tokens/s that the heads brought, their own time included."""
        record = self._record(num_requests)
        was_open = record.gain > 0.0
        record.gain += (_RATE if was_open else _PROBE_RATE) * (gain - record.gain)
        if was_open or gain > 0.0:
            record.interval = record.wait = _FIRST_INTERVAL

    def _record(self, num_requests: int) -> _Record:
        return self._records.setdefault(num_requests.bit_length(), _Record())
