"""What a body needs before the engine sees it: text to tokens, schemas to grammars.

Small bodies are prepared where they arrive. A large one can take seconds, in which the event loop
must go on: it goes to a thread of its own, and large ones wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SMALL = 16_384  # bytes or characters: a few milliseconds
_thread = ThreadPoolExecutor(1, "gorgon-preparation")


async def prepared(size: int, work: Callable[[], T]) -> T:
    """What ``work`` gives, which has to do with ``size`` bytes or characters."""
    if size <= SMALL:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
