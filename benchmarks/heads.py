"""What the heads cost: those that come with Gorgon, or random ones of other types.

    python -m benchmarks.heads [--threads 2] [--rows 1 8] [--type Q8_0 --block-type Q4_0]
    python -m benchmarks.heads --model 7b.gguf --gpu-layers -1 --type Q4_K --block-type Q4_K

Times are least and median of the calls that one draft needs (on a machine that does other work the
median is that work's): ``propose`` for independent heads; ``propose`` and two ``deepen`` for a
chain of three by conditioned heads, or their ``search`` of all depths where they have one (on a
GPU). "after a pass" lets the model decode three tokens, or one for each row, before each draft, so
that neither weights nor Python's own objects are in the processor's caches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.backend import BatchRow, DraftState, Guesses
from gorgon.compile.sidecar import Sidecar, write
from gorgon.config import EngineSettings
from gorgon.llama import kernels
from gorgon.llama.backend import ASSETS, DEFAULT_HEADS, default_model
from gorgon.llama.context import Context
from gorgon.llama.heads import Heads, load_heads
from gorgon.llama.model import Model, ModelInfo
from gorgon.llama.tensor_types import TYPES, Rows

NUM_OUTPUTS, HIDDEN, WINDOW, LENGTH, NUM_HEADS = 8192, 1024, 2, 512, 4
REPEATS = 200
SHIPPED = {
    "conditioned": DEFAULT_HEADS,
    "medusa": ASSETS / "smollm2-135m-instruct.independent.medusa.gguf",
}
CONTEXT = 256  # cells that the model attends to


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one draft: least and median."""

    warm: tuple[float, float]
    after_a_pass: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="the embedded one by default")
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--type", choices=sorted(TYPES), help="of random weights' output matrix")
    parser.add_argument("--block-type", default="Q4_0", choices=sorted(TYPES), help="of the rest")
    arguments = parser.parse_args()
    settings = EngineSettings(threads=arguments.threads, gpu_layers=arguments.gpu_layers)
    status, model = kernels.load(), Model(settings, arguments.model or default_model())
    base, context = model.info, Context(model, settings)
    context.prefill([BatchRow(1 + i, i, (0,)) for i in range(CONTEXT)])
    print(f"kernels: {status.isa or status.reason}; {arguments.threads} threads")
    what = f"random, output {arguments.type}, rest {arguments.block_type}"
    print(f"{what if arguments.type else 'as shipped'}; milliseconds a draft")
    print(f"{'heads':<28}{'rows':>5}{'warm':>16}{'after a pass':>18}")
    for variant in ("conditioned", "medusa"):
        if arguments.type:
            heads = make(variant, base, settings, arguments.type, arguments.block_type)
        else:
            heads = load_heads(SHIPPED[variant], base, settings)
        for rows in arguments.rows:
            times = measure(heads, context, rows)
            label = f"{variant}, {heads.size / 1e6:.1f} MB"
            print(f"{label:<28}{rows:>5}{_text(times.warm)}  {_text(times.after_a_pass)}")
        heads.close()
    context.close()
    model.close()


def make(
    variant: str, base: ModelInfo, settings: EngineSettings, kind: str, block_kind: str
) -> Heads:
    """Random heads of the default sizes, written and loaded."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return np.asarray(rng.normal(size=(rows, columns)) / np.sqrt(columns), np.float32)

    embd = base.num_embd
    tensors: dict[str, Rows] = {"output.weight": matrix(NUM_OUTPUTS, embd)}
    numbers = {}
    if variant == "conditioned":
        numbers = {"hidden_length": HIDDEN, "window": WINDOW, "window_length": LENGTH}
        tensors |= {
            "block.gate.weight": matrix(HIDDEN, 2 * embd),
            "block.up.weight": matrix(HIDDEN, 2 * embd),
            "block.down.weight": matrix(embd, HIDDEN),
            "window.in.weight": matrix(LENGTH, 2 * WINDOW * embd),
            "window.state.weight": matrix(embd, LENGTH),
            "window.gate.weight": matrix(HIDDEN, LENGTH),
        }
    else:
        for head in range(NUM_HEADS):
            tensors[f"head.{head}.block.0.weight"] = matrix(embd, embd)
            tensors[f"head.{head}.block.0.bias"] = np.zeros(embd, np.float32)
    sidecar = Sidecar(
        "conditioned" if variant == "conditioned" else "medusa",
        NUM_HEADS,
        "own",
        tensors,
        rng.permutation(base.num_vocab)[:NUM_OUTPUTS].astype(np.int32),
        numbers=numbers,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.medusa.gguf"
        write(path, sidecar, base, {"output.weight": TYPES[kind]}, TYPES[block_kind])
        return load_heads(path, base, settings)


def measure(heads: Heads, context: Context, rows: int) -> Times:
    """Many drafts of ``rows`` requests; ``context`` holds ``CONTEXT`` cells of sequence 0."""
    rng, base = np.random.default_rng(1), context.model.info
    shape = (rows, 1 + heads.window)
    state = DraftState(
        rng.normal(size=(*shape, base.num_embd)).astype(np.float32),
        rng.integers(0, base.num_vocab, shape).astype(np.int32),
    )
    batch = [BatchRow(1 + i, CONTEXT + i, (0,)) for i in range(max(3, rows))]

    def draft() -> Guesses:
        guesses = heads.propose(state)
        depth = 2
        while guesses.states is not None and depth <= 3:
            guesses = heads.deepen(guesses.states, guesses.tokens[:, 0, 0], depth)
            depth += 1
        return guesses

    def decode() -> None:
        context.decode(batch)
        context.remove(0, CONTEXT)

    def search() -> object:
        return heads.search(state)

    call = search if heads.searches else draft
    call()
    return Times(_time(call, lambda: None), _time(call, decode))


def _text(times: tuple[float, float]) -> str:
    return f"{times[0]:>8.3f}{times[1]:>8.3f}"


def _time(draft: Callable[[], object], before: Callable[[], object]) -> tuple[float, float]:
    times = []
    for _ in range(REPEATS):
        before()
        began = time.perf_counter()
        draft()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3, statistics.median(times) * 1e3


if __name__ == "__main__":
    main()
