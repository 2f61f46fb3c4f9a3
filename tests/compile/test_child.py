"""Children: progress, results, errors and deaths come back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gorgon.compile import child
from gorgon.errors import CompileError


def test_a_job_reports_progress_result_and_memory(tiny: Path, tmp_path: Path) -> None:
    options = {"file_type": "Q8_0", "tensor_types": []}
    seen: list[float] = []
    arguments = {
        "source": str(tiny),
        "target": str(tmp_path / "out.gguf"),
        "options": options,
        "threads": 1,
        "importance": None,
    }
    done = child.run_job("quantize", arguments, seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[-1] <= 1
    assert done.peak_memory > 1 << 20
    assert (tmp_path / "out.gguf").stat().st_size < tiny.stat().st_size
    with pytest.raises(CompileError, match="cannot make"):
        child.run_job("quantize", {**arguments, "source": str(tmp_path / "none")}, seen.append)


def test_output_is_read_by_lines_and_carriage_returns() -> None:
    seen: list[str] = []
    code = r"print('10%\r20%\r\nend'); raise SystemExit(3)"
    ended = child.run([sys.executable, "-c", code], seen.append, {})
    assert (seen, ended.code, ended.tail) == (["10%", "20%", "end"], 3, ["10%", "20%", "end"])


def test_an_interrupt_ends_the_child() -> None:
    def stop(_line: str) -> None:
        raise KeyboardInterrupt

    code = "import time\nprint('begun', flush=True)\ntime.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        child.run([sys.executable, "-c", code], stop, {})
