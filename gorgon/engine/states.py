"""What the heads read of every request: the hidden states at its last positions.

They lie in the output of a forward pass until the next one, so that a step notes only where. They
are copied by whoever reads them first: heads that draft by themselves do it on their way.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from gorgon.backend import Backend, Floats, Noted
from gorgon.engine.sequence import Sequence


class States:
    """The states after the final norm of each request, by its main sequence id.

    Args:
        num_ids: sequence ids.
        depth: states of each, the latest first; zeros where they are not known.
        num_embd: width of a state.
    """

    def __init__(self, num_ids: int, depth: int, num_embd: int) -> None:
        self._known = np.zeros((num_ids, depth, num_embd), np.float32)
        self._noted: tuple[Floats, Noted] | None = None

    @classmethod
    def of(cls, backend: Backend) -> States:
        """Those that the heads of ``backend`` read."""
        return cls(backend.max_sequences, 1 + backend.window, backend.num_embd)

    def note(self, hidden: Floats, latest: Iterable[tuple[Sequence, Seq[int]]]) -> None:
        """Note which rows of ``hidden`` are the states of the positions computed last.

        Args:
            hidden: of the last forward pass, valid until the next one.
            latest: of each request at most ``depth`` rows, the latest first.
        """
        ids: list[int] = []
        sizes: list[int] = []
        rows: list[int] = []
        for sequence, own in latest:
            if not sequence.has_states:
                self._known[sequence.id] = 0.0
                sequence.has_states = True
            ids.append(sequence.id)
            sizes.append(len(own))
            rows += own
        self._noted = hidden, Noted(self._known, ids, sizes, rows)

    def take(self) -> Noted:
        """What is noted, to be copied by the caller."""
        noted, self._noted = self._noted, None
        return Noted(self._known, (), (), ()) if noted is None else noted[1]

    def settle(self) -> None:
        """Copy what is noted; the next forward pass overwrites it."""
        if self._noted is None:
            return
        (hidden, noted), first = self._noted, 0
        for sequence_id, size in zip(noted.ids, noted.sizes, strict=True):
            own, end = self._known[sequence_id], first + size
            own[size:] = own[: len(own) - size]
            own[:size] = hidden[noted.rows[first:end]]
            first = end
        self._noted = None

    def read(self, sequences: Seq[Sequence]) -> Floats:
        """A copy of the states of ``sequences``, shape [sequences, depth, num_embd]."""
        self.settle()
        return self._known[[sequence.id for sequence in sequences]]
