"""What the machine tells: energy where it does, memory of a process, and nothing made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gorgon.bench import machine
from gorgon.bench.machine import EnergyMeter, describe_machine, resident_mb

RAPL = ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("no_gpu")
def test_packages_are_added_up_and_their_parts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zone in RAPL:
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text("1000000\n", encoding="ascii")
    monkeypatch.setattr(machine, "_RAPL", tmp_path)
    with EnergyMeter() as meter:
        assert meter.joules() == pytest.approx(2.0)
        (tmp_path / RAPL[1] / "energy_uj").write_text("4500000\n", encoding="ascii")
        assert meter.joules() == pytest.approx(5.5)


@pytest.mark.usefixtures("no_gpu")
def test_no_counter_is_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_RAPL", tmp_path / "none")
    with EnergyMeter() as meter:
        assert meter.joules() is None


def test_a_gpu_s_power_is_summed_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n"
        'case "$*" in *power.draw*) for i in $(seq 500); do echo 100; sleep 0.02; done;;'
        " *) echo 'A GPU, 1.0';; esac\n",
        encoding="ascii",
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_RAPL", tmp_path / "none")
    assert describe_machine().accelerator == "A GPU, 1.0"
    with EnergyMeter() as meter:
        while not meter.joules():
            pass
        first = meter.joules() or 0.0
        while (later := meter.joules() or 0.0) <= first:
            pass
    assert 0 < first < later


def test_memory_of_this_process() -> None:
    assert 5 < resident_mb(os.getpid()) < 100_000
