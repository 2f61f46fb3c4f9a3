"""Whether it pays to look for drafts at all, judged by what looking brought lately.

Guesses cost time before anybody knows how good they are. Where they rarely help (many requests
on a machine whose steps grow with every token, a text that cannot be guessed) they are left out,
and tried again at growing intervals. There is one gate for the heads and one for all sources.
"""

from __future__ import annotations

from dataclasses import dataclass

_RATE = 0.1
_FIRST_GAIN = 0.05  # where nothing is known: some tens of looks that bring nothing close it
_PROBE_RATE = 0.3  # while closed, when samples are rare
_FIRST_INTERVAL, _MAX_INTERVAL = 4, 64


@dataclass(slots=True)
class _Record:
    """``gain`` is the mean log ratio of tokens/s with and without looking."""

    gain: float = _FIRST_GAIN
    interval: int = _FIRST_INTERVAL
    wait: int = 0


class Gate:
    """One record for each size of the batch, in powers of two."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    def is_open(self, num_requests: int) -> bool:
        """Whether to look in this step; a closed gate opens for one when its interval is over."""
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
        """Whether to look in one of the next ``steps`` steps."""
        record = self._record(num_requests)
        return record.gain > 0.0 or record.wait <= steps

    def is_shut(self, num_requests: int) -> bool:
        """Whether looking has not paid lately, even if it is time to look again."""
        return self._record(num_requests).gain <= 0.0

    def wake(self, num_requests: int) -> None:
        """Open for now: something says that looking may pay."""
        record = self._record(num_requests)
        record.gain = max(record.gain, _FIRST_GAIN)
        record.interval = record.wait = _FIRST_INTERVAL

    def hurry(self) -> None:
        """Look soon: a new request may be easier to guess, and counts the more the fewer there are.

        ``2 ** size - 1`` requests are the most of a record.
        """
        for size, record in self._records.items():
            record.wait = min(record.wait, _FIRST_INTERVAL << (size - 1))

    def gain(self, num_requests: int) -> float:
        """Log ratio of tokens/s that looking brought lately."""
        return self._record(num_requests).gain

    def learn(self, num_requests: int, gain: float) -> None:
        """Note the log ratio of tokens/s that looking brought, its own time included."""
        record = self._record(num_requests)
        was_open = record.gain > 0.0
        record.gain += (_RATE if was_open else _PROBE_RATE) * (gain - record.gain)
        if was_open or gain > 0.0:
            record.interval = record.wait = _FIRST_INTERVAL

    def _record(self, num_requests: int) -> _Record:
        return self._records.setdefault(num_requests.bit_length(), _Record())
