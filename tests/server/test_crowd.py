"""A small crowd of clients, a fifth of whom hang up; benchmarks/api/crowd.py does it with 200."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.api import crowd


def test_nothing_leaks_and_nobody_is_cut_short() -> None:
    options = argparse.Namespace(clients=30, hang_ups=0.2, tokens=8, rounds=1, seed=1)
    (outcome,) = asyncio.run(crowd.run(options))["rounds"]
    assert outcome["complete"] == 24
    assert outcome["hung up"] == 6
    assert outcome["cells free"] == 8192
