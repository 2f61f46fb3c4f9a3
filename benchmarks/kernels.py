"""Time llama.cpp's own CPU kernels against ours: same process, same model, turn by turn.

    python benchmarks/kernels.py MODEL.gguf ... --contexts 256 1024
    python benchmarks/kernels.py --make 7b Q4_0 /tmp/7b.gguf      # random weights of a 7B's shape
    python benchmarks/kernels.py --quantize MODEL.gguf Q8_0 /tmp/q8_0.gguf

Prints, for each model and context, the time of one decode of n tokens (median and least, ms), the
ratios that docs/kernels.md sets bars for, prompt processing, load time and resident memory. Stock
and ours take turns, and so do the sizes, so that drift of the machine hits all alike.
``GORGON_KERNELS_ISA=avx2`` times that path.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gorgon.bench.shapes import write_model
from gorgon.llama import kernels

KINDS = {"f32": 0, "f16": 1, "q8_0": 8}
FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15}  # enum llama_ftype


@llama.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def quiet(_level: int, _text: bytes, _data: object) -> None:
    pass


class Session:
    """One model and cache, with our kernels or without, holding ``texts`` of ``context`` tokens."""

    def __init__(
        self,
        path: Path,
        *,
        weights: bool,
        attention: bool,
        context: int,
        threads: int,
        cache: str = "f16",
        texts: int = 1,
    ) -> None:
        self.weights, self.attention = weights, attention
        self.context, self.texts = context, texts
        kernels.take(weights=weights, attention=attention)
        started = time.perf_counter()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        if weights:  # packed weights are copies: without a mapping the originals take no memory
            params.load_mode = llama.LLAMA_LOAD_MODE_NONE
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"cannot load {path}")
        self.load_seconds = time.perf_counter() - started
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = max(1024, texts * context + 512)
        options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        options.n_seq_max, options.kv_unified = 32, True
        options.flash_attn_type = 1
        options.type_k = options.type_v = KINDS[cache]
        self.handle = llama.llama_init_from_model(self.model, options)
        self.memory = llama.llama_get_memory(self.handle)
        self.num_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        tokens = np.random.default_rng(0).integers(100, self.num_vocab, context)
        for text in range(texts):
            for first in range(0, context, 512):
                part = tokens[first : first + 512]
                positions = range(first, first + len(part))
                self.decode(part, positions, [[text]] * len(part), outputs=False)

    def decode(
        self,
        tokens: Sequence[int] | NDArray[np.int64],
        positions: Sequence[int],
        sequences: Sequence[Sequence[int]] | None = None,
        *,
        outputs: bool = True,
    ) -> float:
        """Milliseconds of one decode; ``sequences`` names those of each token, [0] by default."""
        kernels.take(weights=self.weights, attention=self.attention)
        batch = llama.llama_batch_init(len(tokens), 0, 32)
        batch.n_tokens = len(tokens)
        for i, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            ids = sequences[i] if sequences else [0]
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position, len(ids)
            for j, sequence in enumerate(ids):
                batch.seq_id[i][j] = sequence
            batch.logits[i] = outputs or i == len(tokens) - 1
        started = time.perf_counter()
        code = llama.llama_decode(self.handle, batch)
        llama.llama_synchronize(self.handle)
        elapsed = (time.perf_counter() - started) * 1e3
        llama.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        return elapsed

    def logits(self, rows: int) -> NDArray[np.float32]:
        """A copy of the output rows of the last decode."""
        found = llama.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(found, (rows, self.num_vocab)).copy()

    def rewind(self, position: int | None = None) -> None:
        """Forget all cells from ``position`` on."""
        llama.llama_memory_seq_rm(
            self.memory, -1, self.context if position is None else position, -1
        )

    def step(self, n: int) -> float:
        """Milliseconds of n tokens behind the context, which stays as it was.

        They are n of one text, or one of each of n texts.
        """
        if self.texts == 1:
            elapsed = self.decode(range(1000, 1000 + n), range(self.context, self.context + n))
        else:
            each = [[text] for text in range(n)]
            elapsed = self.decode(range(1000, 1000 + n), [self.context] * n, each)
        self.rewind()
        return elapsed

    def prompt(self, n: int) -> float:
        """Milliseconds of a prompt of n tokens from an empty cache; the context is gone."""
        self.rewind(0)
        elapsed = self.decode(np.arange(1000, 1000 + n), range(n), outputs=False)
        self.rewind(0)
        return elapsed

    def close(self) -> None:
        """Free context and model."""
        llama.llama_free(self.handle)
        llama.llama_model_free(self.model)


def interleave(
    stock: Session, ours: Session, n: int, repeats: int, *, prompt: bool = False
) -> tuple[list[float], list[float]]:
    """Times of both, in turns short enough that both meet the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for session, found in zip((stock, ours), times, strict=True):
            run = session.prompt if prompt else session.step
            run(n)
            found.extend(run(n) for _ in range(1 if prompt else 4))
    return times


def resident(path: Path, mode: str) -> str:
    """Peak and final resident MB of a process that loads the model and decodes a few tokens."""
    found = subprocess.run(
        [sys.executable, __file__, str(path), "--resident", mode],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split("\n")[0]


def print_resident(path: Path, mode: str, threads: int) -> None:
    """What ``resident`` reads."""
    session = Session(
        path, weights=mode == "ours", attention=mode == "ours", context=16, threads=threads
    )
    session.step(1)
    status = Path("/proc/self/status").read_text()
    sizes = {k: int(v) / 1000 for k, v in re.findall(r"(\w+):\s+(\d+) kB", status)}
    print(
        f"{sizes['VmRSS']:.0f} (anonymous {sizes['RssAnon']:.0f}), "
        f"load {session.load_seconds:.2f} s"
    )


def report(path: Path, context: int, arguments: argparse.Namespace) -> None:
    """One model at one context: a table and a line of ratios."""
    stock, ours = (
        Session(
            path,
            weights=mine,
            attention=mine,
            context=context,
            threads=arguments.threads,
            cache=arguments.cache,
        )
        for mine in (False, True)
    )
    print(f"\n{path.name}, context {context}, {arguments.threads} threads, cache {arguments.cache}")
    print("| n | stock, median (least) | ours | ours / stock |\n|---|---|---|---|")
    least: dict[int, tuple[float, float]] = {}
    median: dict[int, tuple[float, float]] = {}
    times: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in arguments.batches}
    for _ in range(arguments.repeats):
        for n in arguments.batches:
            time.sleep(arguments.rest)
            for known, new in zip(times[n], interleave(stock, ours, n, 1), strict=True):
                known.extend(new)
    for n, pair in times.items():
        least[n] = (min(pair[0]), min(pair[1]))
        median[n] = (float(np.median(pair[0])), float(np.median(pair[1])))
        cells = " | ".join(f"{median[n][i]:.2f} ({least[n][i]:.2f})" for i in (0, 1))
        print(f"| {n} | {cells} | {median[n][1] / median[n][0]:.2f} |", flush=True)
    for name, found in (("median", median), ("least", least)):
        ratios = [f"t(1) {found[1][1] / found[1][0]:.2f} of stock"] if 1 in found else []
        ratios += [f"t({n}) = {found[n][1] / found[1][1]:.2f} t(1)" for n in (4, 8) if n in found]
        print(f"{name}: {', '.join(ratios)}")
    if arguments.prompt:
        time.sleep(arguments.rest)
        pair = interleave(stock, ours, arguments.prompt, 2, prompt=True)
        rates = [arguments.prompt / min(times) * 1e3 for times in pair]
        print(
            f"prompt of {arguments.prompt}: {rates[0]:.0f} -> {rates[1]:.0f} tokens/s, "
            f"{rates[1] / rates[0]:.2f}x"
        )
    stock.close()
    ours.close()


def quantize(source: Path, kind: str, path: Path) -> None:
    """Write ``source`` as another type, by llama.cpp's quantiser."""
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = FILE_TYPES[kind], True
    if llama.llama_model_quantize(str(source).encode(), str(path).encode(), params):
        raise SystemExit(f"cannot quantise {source}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--contexts", nargs="+", type=int, default=[256])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8, 16])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--rest", type=float, default=0, help="seconds of sleep before each n")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--cache", choices=KINDS, default="f16")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--make", nargs=3, metavar=("SHAPE", "TYPE", "PATH"))
    parser.add_argument("--quantize", nargs=3, metavar=("MODEL", "TYPE", "PATH"))
    parser.add_argument("--resident", choices=("stock", "ours"))
    arguments = parser.parse_args()
    if arguments.make:
        write_model(arguments.make[0], arguments.make[1], Path(arguments.make[2]))
        return
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    if arguments.quantize:
        quantize(Path(arguments.quantize[0]), arguments.quantize[1], Path(arguments.quantize[2]))
        return
    status = kernels.load()
    if arguments.resident:
        print_resident(arguments.models[0], arguments.resident, arguments.threads)
        return
    now = datetime.datetime.now(datetime.UTC).date()
    print(
        f"{now}, {platform.machine()}, {os.cpu_count()} cores, "
        f"kernels: {status.isa or status.reason}"
    )
    for path in arguments.models:
        for context in arguments.contexts:
            report(path, context, arguments)
        if not arguments.no_memory:
            for mode in ("stock", "ours"):
                print(f"resident MB, {mode}: {resident(path, mode)}")


if __name__ == "__main__":
    main()
