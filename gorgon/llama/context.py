"""One llama.cpp context: batches in, logits and hidden states out, sequence bookkeeping.

Knows sequences as numbers and cells as "what ids see at a position". A token sees a cell iff the
cell holds the token's first sequence id and its position is not later: this is what makes a token
tree one batch (``kv_unified``, one sequence id per branch).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gorgon.backend import BatchRow, Floats, Output
from gorgon.config import CacheType, EngineSettings
from gorgon.errors import DecodeError, ModelError
from gorgon.llama.candidates import Candidates
from gorgon.llama.library import address_function, collect_errors, llama
from gorgon.llama.model import Model

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ of this build of llama.cpp
_GGML_TYPES: dict[CacheType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}
_FLASH_ATTENTION = {False: 0, True: 1}
_ID_BYTES = 4
_get_logits = address_function("llama_get_logits")
_get_embeddings = address_function("llama_get_embeddings")


class Context:
    """A KV cache of ``settings.num_cells`` cells over a model.

    Raises:
        ModelError: when llama.cpp cannot make the context (too little memory, cache type).
    """

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        self.model = model
        self.num_cells = settings.num_cells
        self.max_rows = max(settings.prefill_batch, settings.prefill_chunk, 256)
        with collect_errors() as errors:
            self.handle = llama.llama_init_from_model(model.handle, self._params(settings))
        if not self.handle:
            raise ModelError(
                f"cannot make a context of {settings.num_cells} cells ({settings.cache_type}): "
                f"{'; '.join(errors[-2:])}; use fewer cells"
            )
        self._memory = llama.llama_get_memory(self.handle)
        self.candidates = Candidates(model.info.num_vocab)  # for one draw at a time
        self._rows = _Rows(self.max_rows)
        self._logits = _Outputs(model.info.num_vocab)
        self._hidden = _Outputs(model.info.num_embd)
        self._embeddings = True

    def _params(self, settings: EngineSettings) -> Any:
        params = llama.llama_context_default_params()
        # With fewer cells than sequences llama.cpp aborts the process; the surplus stays unused.
        params.n_ctx = max(settings.num_cells, MAX_SEQUENCES)
        params.n_batch = params.n_ubatch = self.max_rows
        params.n_seq_max = MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = _GGML_TYPES[settings.cache_type]
        params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
        params.kv_unified = True
        params.embeddings = True
        params.no_perf = True
        return params

    def close(self) -> None:
        """Free the cache and compute buffers."""
        if self.handle:
            llama.llama_free(self.handle)
            self.handle = None

    def prefill(self, rows: Sequence[BatchRow]) -> None:
        """Compute the cells of ``rows``, no output.

        Raises:
            DecodeError: see ``decode``.
        """
        self._decode(rows, outputs=False)

    def decode(self, rows: Sequence[BatchRow]) -> Output:
        """One forward pass with an output row for each of ``rows``, in their order.

        Raises:
            DecodeError: when llama.cpp refuses the batch or the cache has no room; cells of the
                batch may remain and must be removed by the caller.
        """
        self._decode(rows, outputs=True)
        return Output(
            self._logits.view(_get_logits(self.handle), len(rows)),
            self._hidden.view(_get_embeddings(self.handle), len(rows)),
        )

    def _decode(self, rows: Sequence[BatchRow], outputs: bool) -> None:
        assert 0 < len(rows) <= self.max_rows
        if outputs != self._embeddings:
            llama.llama_set_embeddings(self.handle, outputs)
            self._embeddings = outputs
        batch = self._rows.fill(rows, outputs)
        code = llama.llama_decode(self.handle, batch)
        if code != 0:
            raise DecodeError(f"llama_decode failed with {code} on {len(rows)} tokens")

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let ``target`` hold ``source``'s cells with positions in [start, end); no data moves."""
        llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> None:
        """Take ``sequence`` off its cells in [start, end); -1 is the end of the sequence."""
        llama.llama_memory_seq_rm(self._memory, sequence, start, end)

    def last_position(self, sequence: int) -> int:
        """The highest position that ``sequence`` holds, -1 when it holds nothing."""
        return int(llama.llama_memory_seq_pos_max(self._memory, sequence))

    def clear(self) -> None:
        """Forget every cell."""
        llama.llama_memory_clear(self._memory, False)


class _Rows:
    """The arrays of a ``llama_batch``, filled through NumPy and reused for every step.

    ``sequences`` holds the ids of all rows behind each other; ``pointers`` says where each begins.
    """

    def __init__(self, capacity: int) -> None:
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.num_sequences = np.zeros(capacity, np.int32)
        self.sequences = np.zeros(capacity * MAX_SEQUENCES, np.int32)
        self.pointers = np.zeros(capacity, np.int64)
        self._first = self.sequences.ctypes.data
        self.outputs = np.ones(capacity, np.int8)
        self.no_outputs = np.zeros(capacity, np.int8)
        self.batch = llama.llama_batch()
        self.batch.token = _pointer(self.tokens, ctypes.c_int32)
        self.batch.pos = _pointer(self.positions, ctypes.c_int32)
        self.batch.n_seq_id = _pointer(self.num_sequences, ctypes.c_int32)
        self.batch.seq_id = _pointer(self.pointers, ctypes.POINTER(ctypes.c_int32))
        self._flags = {
            True: _pointer(self.outputs, ctypes.c_int8),
            False: _pointer(self.no_outputs, ctypes.c_int8),
        }

    def fill(self, rows: Sequence[BatchRow], outputs: bool) -> Any:
        count = len(rows)
        self.tokens[:count], self.positions[:count], sequences = zip(*rows, strict=True)
        self.num_sequences[:count] = lengths = list(map(len, sequences))
        *starts, end = itertools.accumulate(lengths, initial=0)
        self.pointers[:count] = [self._first + _ID_BYTES * start for start in starts]
        self.sequences[:end] = list(itertools.chain.from_iterable(sequences))
        self.batch.n_tokens = count
        self.batch.logits = self._flags[outputs]
        return self.batch


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


class _Outputs:
    """Rows of ``width`` floats where llama.cpp puts them, mostly the same place as before."""

    def __init__(self, width: int) -> None:
        self._width, self._address = width, 0
        self._rows: Floats = np.zeros((0, width), np.float32)

    def view(self, address: int, count: int) -> Floats:
        """``count`` rows from ``address`` on, without a copy."""
        if address != self._address or count > len(self._rows):
            buffer = (ctypes.c_float * (count * self._width)).from_address(address)
            self._rows = np.ndarray((count, self._width), np.float32, memoryview(buffer))
            self._address = address
        return self._rows[:count]
