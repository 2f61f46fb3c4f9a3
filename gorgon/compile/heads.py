"""Released Medusa heads to a heads file ``*.medusa.gguf``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.compile.frequency import count_tokens, most_frequent
from gorgon.compile.released import ReleasedHeads, check_fit, find_heads
from gorgon.compile.sidecar import Sidecar, write
from gorgon.compile.stored import ChosenRows
from gorgon.compile.tensor_files import read_tensors
from gorgon.errors import HeadsError
from gorgon.llama.model import ModelInfo, inspect
from gorgon.llama.tensor_types import Rows, type_named

Ints = npt.NDArray[np.int32]


def compile_heads(
    source: Path,
    base: Path,
    target: Path,
    type_name: str = "Q8_0",
    token_ids: Ints | None = None,
) -> None:
    """Write ``target`` from the checkpoint ``source``.

    Args:
        source: a file or folder of heads under a released naming (see ``released``).
        base: the GGUF that they belong to.
        target: the file to write; it appears only when complete.
        type_name: ggml type of the matrices.
        token_ids: the tokens that the heads may guess, all that they can if None.

    Raises:
        HeadsError: when the source holds no heads, or heads of another model.
        ModelError: when the base is no model that Gorgon serves.
    """
    kind, info = type_named(type_name), inspect(base)
    heads = find_heads(source, read_tensors(source))
    check_fit(source, heads, info.num_embd, info.num_vocab)
    tensors, ids = _cut(source, heads, token_ids)
    sidecar = Sidecar(
        variant="medusa",
        num_heads=heads.num_heads,
        num_blocks=heads.num_blocks,
        output="own" if heads.has_output else "shared",
        tensors=tensors,
        token_ids=ids,
        provenance={"source": source.name},
    )
    write(target, sidecar, info, {}, kind)


def frequent_tokens(base: Path, text: Path, count: int) -> Ints:
    """The ``count`` tokens that ``text`` has most of, end-of-generation tokens included.

    Raises:
        HeadsError: when the text cannot be read or the count is out of range.
        ModelError: when the base cannot be loaded.
    """
    info: ModelInfo = inspect(base)
    if not 1 <= count <= info.num_vocab:
        raise HeadsError(f"--top-vocab {count}: must be 1 to {info.num_vocab}")
    return most_frequent(*count_tokens(base, text, info.num_vocab), count)


def _cut(
    source: Path, heads: ReleasedHeads, token_ids: Ints | None
) -> tuple[dict[str, Rows], Ints | None]:
    """Output matrices cut to ``token_ids``, as far as the heads know these tokens."""
    tensors: dict[str, Rows] = dict(heads.tensors)
    if token_ids is None:
        return tensors, heads.token_ids
    rows = token_ids
    if heads.token_ids is not None:
        place = {int(token): row for row, token in enumerate(heads.token_ids)}
        token_ids = np.array([t for t in token_ids.tolist() if t in place], np.int32)
        rows = np.array([place[t] for t in token_ids.tolist()], np.int32)
    if len(token_ids) == 0:
        raise HeadsError(f"{source}: its token_map has none of the tokens asked for")
    for name, tensor in heads.tensors.items():
        if name.endswith("output.weight"):
            tensors[name] = ChosenRows(tensor, rows)
    return tensors, token_ids
