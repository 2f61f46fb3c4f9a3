"""``gorgon compile``: source, unquantised GGUF, quantised GGUF, heads, measurements, manifest.

Every stage runs in a child process and ends in a file under its final name in the workspace; the
folder itself gets its final name last.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gorgon.compile import child, converter, memory, report, space
from gorgon.compile.heads import compile_heads
from gorgon.compile.manifest import NAME, TEMPLATE, Manifest
from gorgon.compile.measure import Measurement
from gorgon.compile.order import NAMED_TEMPLATES, Order
from gorgon.compile.progress import stage
from gorgon.compile.report import Row
from gorgon.compile.source import Source, find, half_or_own_type, sha256, unquantised
from gorgon.compile.workspace import Stage, Workspace, key_of, open_workspace, write_json
from gorgon.errors import CompileError
from gorgon.llama.gguf import MAGIC, GgufFile, num_elements
from gorgon.llama.heads_file import open_heads, read_info
from gorgon.llama.model import inspect
from gorgon.llama.quantize import UNQUANTISED, Quantization

HEADS_NAME = "heads.medusa.gguf"
_LOG_PROBS = "reference.log_probs"


def compile_model(order: Order, console: Console) -> Path:
    """Make the folder ``order.out`` and print a report.

    Returns:
        The folder.

    Raises:
        GorgonError: one line on what is wrong; nothing is left behind.
    """
    order.check()
    text = order.read_text()
    source = find(order.source, console)
    with open_workspace(order.out) as workspace:
        compilation = Compilation(order, source, workspace, console, text)
        keep = compilation.run()
        workspace.finish(keep)
    console.print(f"\nserve it with: gorgon serve {order.out}", soft_wrap=True)
    return order.out


class Compilation:
    """One compilation in its workspace."""

    def __init__(
        self, order: Order, source: Source, workspace: Workspace, console: Console, text: str
    ) -> None:
        self._order, self._source, self._text = order, source, text
        self._workspace, self._console = workspace, console
        self._own_type = half_or_own_type(source)
        self._stages: list[Stage] = []

    def run(self) -> set[str]:
        """All stages; the names of the files to keep."""
        self._refuse_requantizing()
        base, stage_of_base = unquantised(self._source, self._workspace, self._console)
        self._base, self._base_key = base, stage_of_base.key
        self._stages.append(stage_of_base)
        self._importance = self._find_importance()
        model = self._make(self._order.options, self._final_name)
        heads = self._compile_heads(model)
        template = self._store_template()
        rows = self._measure(model)
        self._write_manifest(model, heads, template, rows)
        files = {model.name, NAME} | {name for name in (template,) if name == TEMPLATE}
        if heads is not None:
            files.add(heads.name)
        if self._order.compare:
            files |= report.write_comparison(rows, self._workspace.folder)
        report.show(rows, self._cache_table(model), self._stages, self._console)
        return files

    @property
    def _final_name(self) -> str:
        return f"model-{self._order.options.file_type}.gguf"

    def _refuse_requantizing(self) -> None:
        wanted = self._order.options
        is_new = wanted != Quantization(wanted.file_type) or wanted.file_type != self._own_type
        if self._own_type not in UNQUANTISED and is_new and not wanted.requantize:
            raise CompileError(
                f"{self._source.name} is quantised already, and quantising it again loses quality;"
                " start from the original, or add --requantize"
            )

    def _find_importance(self) -> Path | None:
        """The importance matrix in the form that the quantiser's job reads."""
        given = self._order.imatrix
        if given is None:
            return None
        key = key_of("importance", self._base_key, sha256(given))
        done = self._workspace.find("importance", key)
        target = self._workspace.path("importance.npz")
        if done is None:
            arguments = {
                "source": str(given),
                "target": str(target),
                "model": str(self._base),
                "threads": self._order.threads,
            }
            done = self._job("importance matrix", "importance", arguments, target, key)
            self._workspace.add(done)
        self._stages.append(done)
        return target

    def _make(self, options: Quantization, name: str) -> Path:
        """The model in the types of ``options`` under ``name``."""
        target = self._workspace.path(name)
        key = key_of("quantize", self._base_key, asdict(options), str(self._importance))
        done = self._workspace.find(name, key)
        if done is None:
            done = self._quantize(options, target, key)
            self._workspace.add(done)
        self._stages.append(done)
        return target

    def _quantize(self, options: Quantization, target: Path, key: str) -> Stage:
        plain = Quantization(options.file_type)
        if options.file_type == self._own_type and replace(options, requantize=False) == plain:
            return self._copy(target, key)
        shared = {"source": str(self._base), "options": asdict(options)}
        size = child.run_job("quantized_size", shared, lambda fraction: None).result["size"]
        space.check(self._workspace.folder, {f"the {options.file_type} model": size})
        part = target.with_name(target.name + ".part")
        arguments = {
            **shared,
            "target": str(part),
            "threads": self._order.threads,
            "importance": None if self._importance is None else str(self._importance),
        }
        done = self._job(f"quantising to {options.file_type}", "quantize", arguments, part, key)
        inspect(part)
        part.replace(target)
        return replace(done, name=target.name, file=target.name)

    def _copy(self, target: Path, key: str) -> Stage:
        """The unquantised file as it is: linked where the file system can."""
        part = target.with_name(target.name + ".part")
        size, began = self._base.stat().st_size, time.monotonic()
        try:
            part.hardlink_to(self._base.resolve())
        except OSError:
            space.check(self._workspace.folder, {"a copy of the model": size})
            shutil.copyfile(self._base, part)
        part.replace(target)
        return Stage(target.name, key, target.name, size, time.monotonic() - began, 0)

    def _job(
        self, title: str, name: str, arguments: dict[str, Any], target: Path, key: str
    ) -> Stage:
        began = time.monotonic()
        with stage(self._console, title) as on_progress:
            done = child.run_job(name, arguments, on_progress)
        seconds = time.monotonic() - began
        return Stage(name, key, target.name, target.stat().st_size, seconds, done.peak_memory)

    def _compile_heads(self, model: Path) -> Path | None:
        given = self._order.heads
        if given is None:
            return None
        target = self._workspace.path(HEADS_NAME)
        with stage(self._console, "compiling the heads"):
            if _is_gguf(given):
                with open_heads(given) as file:
                    read_info(file, inspect(model))
                shutil.copyfile(given, target)
            else:
                compile_heads(given, model, target, self._order.heads_type, None)
        return target

    def _store_template(self) -> str | None:
        """The manifest's entry; a template from a file lies in the folder."""
        given = self._order.chat_template
        if given is None or given in NAMED_TEMPLATES:
            return given
        shutil.copyfile(given, self._workspace.path(TEMPLATE))
        return TEMPLATE

    def _measure(self, model: Path) -> list[Row]:
        """The unquantised model first, then each type; files of other types are deleted."""
        base_type, wanted = self._own_type, self._order.options.file_type
        kept = {wanted: model}
        rows = [self._row(base_type, self._base, "write")]
        mode = "write" if rows[0].measured is None else "compare"  # nothing to compare with
        for name in dict.fromkeys([wanted, *self._order.compare]):
            if name == base_type and name != wanted:
                continue
            path = kept.get(name)
            if path is None:
                options = replace(self._order.options, file_type=name)
                if name in UNQUANTISED:
                    options = replace(options, tensor_types=())
                path = self._make(options, f"compared-{name}.gguf")
            rows.append(self._row(name, path, mode))
            if name not in kept:
                path.unlink()
        return rows

    def _row(self, name: str, path: Path, mode: str) -> Row:
        size, free = path.stat().st_size, memory.available()
        if free is not None and size > free:
            self._console.print(
                f"{name} is not measured: {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory"
                " are free",
                soft_wrap=True,
            )
            return Row(name, size, _bits_per_weight(path), None)
        if self._order.num_tokens:
            self._check_space_of_log_probs(path)
        arguments = {
            "model": str(path),
            "text": self._text,
            "num_tokens": self._order.num_tokens,
            "reference": str(self._workspace.path(_LOG_PROBS)),
            "mode": mode,
            "threads": self._order.threads,
        }
        with stage(self._console, f"measuring {name}") as on_progress:
            done = child.run_job("measure", arguments, on_progress)
        measured = Measurement.from_json(done.result)
        return Row(name, size, _bits_per_weight(path), measured)

    def _check_space_of_log_probs(self, path: Path) -> None:
        if not self._workspace.path(_LOG_PROBS).exists():
            size = 4 * self._order.num_tokens * inspect(path).num_vocab
            space.check(self._workspace.folder, {"log probabilities": size})

    def _cache_table(self, model: Path) -> dict[int, dict[str, int]]:
        trained = inspect(model).num_ctx_train
        lengths = sorted({2048, 8192, trained or 2048})
        return {length: memory.cache_bytes(model, length) for length in lengths}

    def _write_manifest(
        self, model: Path, heads: Path | None, template: str | None, rows: list[Row]
    ) -> None:
        order, info = self._order, inspect(model)
        details = {
            "model_sha256": sha256(model),
            "heads_sha256": None if heads is None else sha256(heads),
            "name": info.name,
            "fingerprint": info.fingerprint,
            "source": self._source.describe(),
            "options": asdict(order.options),
            "importance": None if order.imatrix is None else sha256(order.imatrix),
            "heads_source": None if order.heads is None else str(order.heads),
            "versions": report.versions(
                converter.versions(converter.install(self._console))
                if self._source.checkpoint
                else {}
            ),
            "stages": [asdict(done) for done in self._stages],
            "text_sha256": sha256(order.text),
            "measurements": [row.as_json() for row in rows],
            "cache_bytes": self._cache_table(model),
        }
        manifest = Manifest(
            model=model.name,
            model_size=model.stat().st_size,
            heads=None if heads is None else heads.name,
            chat_template=template,
            details=details,
        )
        write_json(self._workspace.path(NAME), manifest.as_json())


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _bits_per_weight(path: Path) -> float:
    with GgufFile(path) as file:
        tensors = list(file.tensors.values())
    return 8 * sum(t.size for t in tensors) / sum(num_elements(t) for t in tensors)
