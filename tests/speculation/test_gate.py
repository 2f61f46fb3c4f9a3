"""Whether to look for drafts, by what looking brought."""

from __future__ import annotations

from gorgon.speculation.gate import Gate


def looks(gate: Gate, num_requests: int, steps: int, gain: float) -> list[int]:
    """The steps, of so many, in which the gate lets one look; each look brings ``gain``."""
    found = []
    for step in range(steps):
        if gate.is_open(num_requests):
            gate.learn(num_requests, gain)
            found.append(step)
    return found


def test_a_gate_that_pays_stays_open() -> None:
    gate = Gate()
    assert looks(gate, 4, 200, 0.02) == list(range(200))
    assert not gate.is_shut(4)


def test_looks_that_bring_nothing_become_rare() -> None:
    gate = Gate()
    found = looks(gate, 4, 1000, -0.03)
    assert gate.is_shut(4)
    assert sum(step < 50 for step in found) < 20
    assert 5 <= sum(step >= 500 for step in found) <= 8  # every 64th
    assert not gate.is_shut(2), "batches of another size have a gate of their own"


def test_it_opens_again_when_looking_pays() -> None:
    gate = Gate()
    looks(gate, 4, 300, -0.03)
    found = looks(gate, 4, 300, 0.1)
    assert found[0] <= 64
    assert not gate.is_shut(4)
    assert found[-200:] == list(range(100, 300))


def test_a_look_is_announced() -> None:
    gate = Gate()
    looks(gate, 4, 100, -0.03)
    announced = False
    for _ in range(200):
        expected, announced = announced, gate.is_open_within(4, 3)
        if gate.is_open(4):
            assert expected
            gate.learn(4, -0.03)


def test_waking_opens_for_some_looks() -> None:
    gate = Gate()
    looks(gate, 4, 300, -0.03)
    gate.wake(4)
    assert not gate.is_shut(4)
    assert 2 < len(looks(gate, 4, 60, -0.03)) < 20
    assert gate.is_shut(4)


def test_a_new_request_is_looked_at_the_sooner_the_fewer_there_are() -> None:
    gate = Gate()
    for num_requests in (1, 8):
        looks(gate, num_requests, 500, -0.03)
    gate.hurry()
    assert looks(gate, 1, 100, -0.03)[0] < 4
    assert 4 <= looks(gate, 8, 100, -0.03)[0] < 32
