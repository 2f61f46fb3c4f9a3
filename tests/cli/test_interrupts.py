"""Ctrl-C and SIGTERM at any time: no traceback, an exit code that shells know, nothing left."""

from __future__ import annotations

import ctypes
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gorgon.cli.interrupts import SIGNALS, unwinding
from tests.running import is_running, start

COMMANDS = {
    "serve": ["serve", "--port", "0"],
    "generate": ["generate", "hello"],
    "bench": ["bench", "--in-process", "--out", "out"],
    "tune": ["tune", "--seconds", "60"],
}


def no_traceback(error: list[str]) -> bool:
    return not any("Traceback" in line or "KeyboardInterrupt" in line for line in error)


def half_written(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("module", ["typer.", "numpy."])
def test_ctrl_c_during_imports_ends_at_once(verb: str, module: str, tmp_path: Path) -> None:
    running = start(tmp_path, *COMMANDS[verb], PYTHONPROFILEIMPORTTIME="1")
    running.read_until(f" {module}")
    running.process.send_signal(signal.SIGINT)
    code, _, error = running.end()
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)
    assert no_traceback(error)
    assert not half_written(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["serve", "bench", "tune"])
def test_a_signal_while_llama_cpp_reads_the_file(
    verb: str, number: signal.Signals, tmp_path: Path
) -> None:
    running = start(tmp_path, "--verbose", *COMMANDS[verb], GORGON_MEASURE_SECONDS="60")
    running.read_until("llama_model_loader")
    running.process.send_signal(number)
    code, _, error = running.end()
    assert code == 128 + number
    assert any(line.endswith(("gorgon: stopped", "the model was loading")) for line in error)
    assert no_traceback(error)
    assert not half_written(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_takes_its_servers_along(number: signal.Signals, tmp_path: Path) -> None:
    running = start(tmp_path, "bench", "--out", "out")
    running.wait_for(lambda: list(running.children()))
    children = list(running.children())
    running.process.send_signal(number)
    code, _, error = running.end()
    assert (code, error[-1]) == (128 + number, "gorgon: stopped")
    assert not any(is_running(child) for child in children)


def sort_and_wait(compare: Any) -> None:
    ctypes.CDLL(None).qsort((ctypes.c_int * 2)(2, 1), 2, 4, compare)
    time.sleep(60)
    pytest.fail("the interrupt did not come again")


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_that_a_callback_drops_comes_again(number: signal.Signals) -> None:
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def interrupted(_left: int, _right: int) -> int:
        signal.raise_signal(number)
        raise AssertionError("raised above")

    inherited = signal.signal(number, signal.default_int_handler)  # nohup leaves SIGHUP ignored
    handlers = [signal.getsignal(n) for n in SIGNALS]
    try:
        with pytest.raises(SystemExit) as ended, unwinding():
            sort_and_wait(compare(interrupted))
        assert ended.value.code == 128 + number
        assert [signal.getsignal(n) for n in SIGNALS] == handlers
    finally:
        signal.signal(number, inherited)
