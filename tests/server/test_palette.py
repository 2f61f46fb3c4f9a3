"""Depth colours can be told apart: by all eyes, on light and dark, on the page and in a terminal.

Colour vision is simulated after Machado, Oliveira and Fernandes (2009), severity 1; distances are
Euclidean in OKLab (Ottosson 2020), where about 0.02 is just noticeable.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import numpy.typing as npt
import pytest

from gorgon.server.page import STATIC
from gorgon.terminal import DEPTH_COLOURS, mark

Floats = npt.NDArray[np.float64]

VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(colour: str) -> Floats:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def oklab(rgb: Floats) -> Floats:
    return np.asarray(TO_LAB @ np.cbrt(TO_CONES @ np.clip(rgb, 0, 1)))


def contrast(a: str, b: str) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(weights @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def page_themes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", (STATIC / "page.css").read_text(), re.DOTALL)
    return {
        name: dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for name, block in (("light", light), ("dark", dark))
    }


THEMES = page_themes()
PALETTES = {
    name: tuple(theme[f"depth-{depth}"] for depth in range(1, 6)) for name, theme in THEMES.items()
} | {"terminal": DEPTH_COLOURS}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", PALETTES)
def test_no_two_depths_look_alike(palette: str, vision: str) -> None:
    seen = [oklab(VISION[vision] @ linear(colour)) for colour in PALETTES[palette]]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 0.12


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_can_be_read(theme: str) -> None:
    colours = THEMES[theme]
    for ground in (colours["ground"], colours["card"]):
        assert contrast(colours["ink"], ground) > 7
        assert contrast(colours["muted"], ground) > 4.5
    assert contrast(colours["on-strong"], colours["strong"]) > 7
    assert contrast(colours["bad"], colours["bad-ground"]) > 4.5
    assert all(contrast(colour, colours["card"]) > 3 for colour in PALETTES[theme])


def test_the_terminal_can_be_black_or_white() -> None:
    for colour in DEPTH_COLOURS:
        assert contrast(colour, "#ffffff") >= 3
        assert contrast(colour, "#101216") >= 3


def test_a_terminal_marks_the_word_and_not_the_space_before_it() -> None:
    marked = mark(" sky", 2)
    assert marked.plain == " sky"
    assert [(s.start, s.end, str(s.style)) for s in marked.spans] == [
        (1, 4, f"underline {DEPTH_COLOURS[1]}")
    ]
    assert mark(" sky", 0).spans == []
    assert str(mark("sky", 99).spans[0].style).endswith(DEPTH_COLOURS[-1])
