from __future__ import annotations

import numpy as np

from gorgon.training.calibration import fit, gaps


def test_overconfident_heads_are_brought_down_to_what_is_measured() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(400_000)
    right = rng.random(400_000) < confidence**2
    stated = fit(confidence[::2], right[::2])(confidence[1::2])
    tenths = gaps(stated, right[1::2])
    assert len(tenths) == 10
    assert all(abs(said - found) < 0.03 for said, found, _ in tenths)


def test_the_map_never_falls() -> None:
    rng = np.random.default_rng(1)
    calibration = fit(rng.random(50), rng.random(50) < 0.5)
    assert np.all(np.diff(calibration.x) > 0)
    assert np.all(np.diff(calibration.y) >= 0)


def test_equal_confidences_give_one_knot() -> None:
    calibration = fit(np.full(100, 0.7), np.arange(100) < 40)
    assert 0.0 <= float(calibration(0.7)) <= 1.0
    assert np.all(np.diff(calibration.x) > 0)
