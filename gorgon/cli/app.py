"""The verbs put together, and how errors reach the terminal: one line, exit code not 0."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from gorgon.cli.bench import bench
from gorgon.cli.compile import compile_app
from gorgon.cli.generate import generate
from gorgon.cli.interrupts import EXIT_CODES
from gorgon.cli.serve import serve
from gorgon.cli.train import train
from gorgon.cli.tune import tune
from gorgon.errors import GorgonError

# Libraries of the extras: what only the offline verbs import.
OPTIONAL = {"gguf", "matplotlib", "safetensors", "torch"}

app = typer.Typer(
    help="Large language models with Medusa heads on llama.cpp.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _start(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="log more, llama.cpp's own lines too")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )


app.command()(serve)
app.command()(generate)
app.add_typer(
    compile_app,
    name="compile",
    help="Make a model, or heads, ready to serve; 'compile SRC' is 'compile model SRC'.",
)
app.command()(train)
app.command()(tune)
app.command()(bench)


def run() -> None:
    """Run the command line; errors of ours are one line and exit code 1."""
    try:
        app()
    except GorgonError as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        _end(
            f"this needs {error.name}, which serving does not: run scripts/setup --dev"
            " (--train for training) or install the extras of this package"
        )
    except ValidationError as error:  # a setting out of range
        _end(_one_line(error))
    except SystemExit as end:
        if end.code in EXIT_CODES:
            _say("stopped")
        raise


def _end(reason: str) -> None:
    _say(reason)
    sys.exit(1)


def _say(reason: str) -> None:
    print(f"gorgon: {reason}", file=sys.stderr)


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # about several settings together
        return message
    name = ".".join(str(part) for part in first["loc"])
    return f"{name}: {message} (got {first['input']!r})"
