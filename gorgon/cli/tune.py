"""``gorgon tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gorgon.cli.interrupts import unwinding
from gorgon.cli.options import ComputeOptions, expand, type_names


@expand
def tune(
    compute: ComputeOptions,
    seconds: Annotated[float, typer.Option(min=0.5, help="for each measurement")] = 4.0,
    types: Annotated[
        str, typer.Option(help="quantisations to try too, with commas: Q4_0,Q8_0,Q4_K_M")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="draw t(n) into this PNG")] = None,
) -> None:
    """Find the settings under which a model runs fastest here; `serve` takes them up."""
    from gorgon.tune.run import run

    with unwinding():
        run(compute.open().settings, seconds, type_names(types), plot)
