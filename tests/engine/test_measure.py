"""Measuring a made-up machine, and keeping what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gorgon.backend import BatchRow, Output
from gorgon.engine import profile
from gorgon.engine.measure import measure, still_holds
from gorgon.speculation.cost import StepTimes
from tests.fake import FakeBackend

IDENTITY = {"model": "toy", "threads": "2"}
SIZES = (1, 2, 3, 4, 8)


class Machine(FakeBackend):
    """Takes ``1 + slope (n - 1) + context / 1000`` seconds a step by its own clock.

    The first steps of another size take ``changes`` on top.
    """

    def __init__(
        self, slope: float = 0.5, changes: tuple[float, ...] = (), **params: object
    ) -> None:
        super().__init__(num_cells=2000, max_position=2000, **params)  # type: ignore[arg-type]
        self.slope, self.changes, self.now = slope, changes, 0.0
        self.last = self.num_same = 0

    def decode(self, rows: Sequence[BatchRow]) -> Output:
        size = len(rows)
        self.now += 1 + self.slope * (size - 1) + rows[0].position / 1000
        self.num_same = self.num_same + 1 if size == self.last else 0
        self.now += self.changes[self.num_same] if self.num_same < len(self.changes) else 0.0
        self.last = size
        return super().decode(rows)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("changes", [(0.25,), (0.05, 0.2), (0.0, 0.25)])
def test_what_steps_take_is_found(conditioned: bool, changes: tuple[float, ...]) -> None:
    machine = Machine(changes=changes, conditioned=conditioned)
    found = measure(machine, 2000, sizes=SIZES, contexts=(10, 500), clock=machine.clock)
    assert found.times.contexts == (10, 500)
    for context, row in zip(found.times.contexts, found.times.seconds, strict=True):
        expected = [1 + 0.5 * (n - 1) + context / 1000 for n in SIZES]
        assert row == pytest.approx(expected, rel=0.01)
    assert found.change == pytest.approx(0.25, rel=0.05)
    assert found.propose is not None
    assert (found.deepen is not None) == conditioned
    assert machine.num_used == 0, "the cache is left empty"


def test_a_slow_machine_gets_fewer_sizes_and_contexts() -> None:
    machine = Machine(slope=2.0)
    found = measure(machine, 40, sizes=SIZES, contexts=(10, 1500), clock=machine.clock)
    assert found.times.contexts == (10,)
    assert found.times.sizes[:3] == (1, 2, 3)


def test_a_measurement_of_another_machine_is_noticed() -> None:
    machine = Machine(slope=0.5)
    found = measure(machine, 300, sizes=SIZES, contexts=(10,), clock=machine.clock)
    assert still_holds(machine, found.times, machine.clock)
    wrong = StepTimes((10,), SIZES, found.times.seconds * [[1, 1, 1, 3, 3]])
    assert not still_holds(machine, wrong, machine.clock)
    slower = StepTimes((10,), SIZES, found.times.seconds * 3)
    assert still_holds(machine, slower, machine.clock), "drift is followed, not measured anew"


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    machine = Machine(conditioned=True)
    found = measure(machine, 100, sizes=SIZES, contexts=(10,), clock=machine.clock)
    profile.write(tmp_path, IDENTITY, found)
    again = profile.read(tmp_path, IDENTITY)
    assert again is not None
    assert again.times.sizes == found.times.sizes
    assert (again.times.seconds == found.times.seconds).all()
    assert (again.change, again.propose, again.deepen) == (
        found.change,
        found.propose,
        found.deepen,
    )
    assert profile.read(tmp_path, IDENTITY | {"threads": "4"}) is None


@pytest.mark.parametrize("content", ["", "{", "{}", '{"format": 99}', "\x00\x01"])
def test_a_damaged_profile_is_measured_anew(tmp_path: Path, content: str) -> None:
    profile.path_of(tmp_path, IDENTITY).write_text(content)
    assert profile.read(tmp_path, IDENTITY) is None


def test_negative_times_on_disk_are_not_believed(tmp_path: Path) -> None:
    machine = Machine()
    found = measure(machine, 100, sizes=SIZES, contexts=(10,), clock=machine.clock)
    profile.write(tmp_path, IDENTITY, found)
    path = profile.path_of(tmp_path, IDENTITY)
    stored = profile.Profile.model_validate_json(path.read_bytes())
    broken = stored.model_copy(update={"seconds": [[-1.0] * len(SIZES)]})
    path.write_text(broken.model_dump_json())
    assert profile.read(tmp_path, IDENTITY) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    machine = Machine()
    found = measure(machine, 100, sizes=SIZES, contexts=(10,), clock=machine.clock)
    (tmp_path / "file").write_text("in the way")
    profile.write(tmp_path / "file" / "profiles", IDENTITY, found)
    assert profile.read(tmp_path / "file" / "profiles", IDENTITY) is None
