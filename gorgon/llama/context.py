"""One llama.cpp context: batches in, logits and hidden states out, sequence bookkeeping.

Knows sequences as numbers and cells as "what ids see at a position". A token sees a cell iff the
cell holds the token's first sequence id and its position is not later: this is what makes a token
tree one batch (``kv_unified``, one sequence id per branch).
"""

from __future__ import annotations

import ctypes
import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from gorgon.backend import BatchRow, Floats, Output
from gorgon.config import CacheType, EngineSettings
from gorgon.errors import DecodeError, ModelError
from gorgon.llama.candidates import Candidates
from gorgon.llama.library import address_function, collect_errors, llama
from gorgon.llama.model import Model

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ of this build of llama.cpp
_GGML_TYPES: dict[CacheType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}
_FLASH_ATTENTION = {False: 0, True: 1}
_ID_BYTES = _FLOAT_BYTES = 4
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
        self._outputs = _Outputs(model.info.num_vocab, model.info.num_embd)
        self._row_bytes = _FLOAT_BYTES * model.info.num_vocab
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
        addresses = _get_logits(self.handle), _get_embeddings(self.handle)
        return self._outputs.at(addresses, len(rows))

    def address(self, output: Output, row: int) -> int:
        """Where the logits of ``row`` lie in memory; found fastest for the last ``output``."""
        if output is self._outputs.last:
            return self._outputs.addresses[0] + row * self._row_bytes
        return int(output.logits[row].ctypes.data)

    @property
    def hidden_address(self) -> int:
        """Where the hidden states of the last ``Output`` lie in memory."""
        return self._outputs.addresses[1]

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
    """The arrays of a ``llama_batch``, reused for every step.

    ``sequences`` holds the ids of all rows behind each other; ``pointers`` says where each begins.
    """

    def __init__(self, capacity: int) -> None:
        self.batch = llama.llama_batch()
        self.tokens, self.batch.token = _memory("i", capacity, ctypes.c_int32)
        self.positions, self.batch.pos = _memory("i", capacity, ctypes.c_int32)
        self.num_sequences, self.batch.n_seq_id = _memory("i", capacity, ctypes.c_int32)
        self.sequences, first = _memory("i", capacity * MAX_SEQUENCES, ctypes.c_int32)
        self._first = ctypes.cast(first, ctypes.c_void_p).value
        self.pointers, self.batch.seq_id = _memory("q", capacity, ctypes.POINTER(ctypes.c_int32))
        self._flags = [_memory("b", capacity, ctypes.c_int8, wanted) for wanted in (0, 1)]

    def fill(self, rows: Sequence[BatchRow], outputs: bool) -> Any:
        count = len(rows)
        tokens, positions, sequences = zip(*rows, strict=True)
        lengths = [len(ids) for ids in sequences]
        starts = itertools.accumulate([_ID_BYTES * n for n in lengths], initial=self._first)
        ids = array("i", itertools.chain.from_iterable(sequences))
        self.tokens[:count] = array("i", tokens)
        self.positions[:count] = array("i", positions)
        self.num_sequences[:count] = array("i", lengths)
        self.pointers[:count] = array("q", itertools.islice(starts, count))
        self.sequences[: len(ids)] = ids
        self.batch.n_tokens = count
        self.batch.logits = self._flags[outputs][1]
        return self.batch


def _memory(code: str, size: int, kind: Any, value: int = 0) -> tuple[memoryview, Any]:
    """``size`` numbers of ``array``'s type ``code``, each ``value``, and a C pointer to them."""
    numbers = array(code, [value]) * size
    pointer = ctypes.cast(numbers.buffer_info()[0], ctypes.POINTER(kind))
    return memoryview(numbers), pointer  # the view keeps the numbers where they are


class _Outputs:
    """What llama.cpp computed, where it lies, mostly the same place as before."""

    def __init__(self, num_vocab: int, num_embd: int) -> None:
        self._widths = num_vocab, num_embd
        self.addresses = 0, 0
        self.last: Output | None = None
        self._known: dict[int, Output] = {}  # by the number of rows

    def at(self, addresses: tuple[int, int], count: int) -> Output:
        """``count`` rows of logits and states from ``addresses`` on, without a copy."""
        if addresses != self.addresses:
            self.addresses = addresses
            self._known.clear()
        output = self._known.get(count)
        if output is None:
            logits, hidden = map(_rows_at, addresses, (count, count), self._widths)
            output = self._known[count] = Output(logits, hidden)
        self.last = output
        return output


def _rows_at(address: int, count: int, width: int) -> Floats:
    buffer = (ctypes.c_float * (count * width)).from_address(address)
    return np.ndarray((count, width), np.float32, memoryview(buffer))
