"""The command line: one verb per job, each imports what it needs when it runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from gorgon.config import CacheType, EngineSettings, ServerSettings
from gorgon.errors import GorgonError

Settings = TypeVar("Settings", EngineSettings, ServerSettings)

app = typer.Typer(
    help="Large language models with Medusa heads on llama.cpp.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", help="GGUF file [default: the embedded model]")
]
HeadsOption = Annotated[Path | None, typer.Option(help="Medusa heads, a *.medusa.gguf file")]
ThreadsOption = Annotated[int | None, typer.Option(help="threads [default: all cores]")]
CellsOption = Annotated[
    int | None, typer.Option("--num-cells", help="tokens that the KV cache holds [default: 8192]")
]
CacheOption = Annotated[
    CacheType | None, typer.Option("--cache-type", help="KV cache type [default: f16]")
]
FlashOption = Annotated[
    bool | None, typer.Option(help="flash attention [default: on]", show_default=False)
]
LayersOption = Annotated[
    int | None, typer.Option("--gpu-layers", help="layers on the GPU [default: all]")
]


@app.callback()
def _start(verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )


@app.command()
def serve(
    model: ModelOption = None,
    heads: HeadsOption = None,
    host: Annotated[str | None, typer.Option(help="address [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port [default: 8000]")] = None,
    threads: ThreadsOption = None,
    num_cells: CellsOption = None,
    cache_type: CacheOption = None,
    flash_attention: FlashOption = None,
    gpu_layers: LayersOption = None,
    max_running: Annotated[int | None, typer.Option(help="requests decoded at once")] = None,
) -> None:
    """Serve a model over HTTP."""
    from gorgon.server.serve import run

    engine = _given(
        EngineSettings,
        model=model,
        heads=heads,
        threads=threads,
        num_cells=num_cells,
        cache_type=cache_type,
        flash_attention=flash_attention,
        gpu_layers=gpu_layers,
        max_running=max_running,
    )
    run(engine, _given(ServerSettings, host=host, port=port))


@app.command()
def generate(
    prompt: str,
    mode: Annotated[
        Literal["medusa", "normal", "lookup", "fixed"],
        typer.Option(
            help="medusa: drafts as far as they pay; lookup: without heads; fixed: --tree"
        ),
    ] = "medusa",
    max_length: Annotated[int, typer.Option(min=1, help="new tokens, at most")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    tree: Annotated[
        str | None, typer.Option(help="a fixed tree, paths of ranks: '0;0,0;1'")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="no chat template")] = False,
    model: ModelOption = None,
    heads: HeadsOption = None,
    threads: ThreadsOption = None,
    num_cells: CellsOption = None,
    cache_type: CacheOption = None,
    flash_attention: FlashOption = None,
    gpu_layers: LayersOption = None,
) -> None:
    """Continue a prompt in the terminal; tokens from accepted drafts are coloured."""
    from gorgon.terminal import generate as run

    settings = _given(
        EngineSettings,
        model=model,
        heads=heads,
        threads=threads,
        num_cells=num_cells,
        cache_type=cache_type,
        flash_attention=flash_attention,
        gpu_layers=gpu_layers,
    )
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_length": max_length,
        "temperature": temperature,
        "seed": seed,
        "chat": not raw,
    }
    if tree is not None:
        body["tree"] = [[int(rank) for rank in path.split(",")] for path in tree.split(";")]
    run(settings, body, mode)


@app.command()
def tune(
    model: ModelOption = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="for each measurement")] = 4.0,
    types: Annotated[
        str, typer.Option(help="quantisations to try too, with commas: Q4_0,Q8_0,Q4_K_M")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="draw t(n) into this PNG")] = None,
    threads: ThreadsOption = None,
    cache_type: CacheOption = None,
    flash_attention: FlashOption = None,
    gpu_layers: LayersOption = None,
) -> None:
    """Find the settings under which a model runs fastest here; `serve` takes them up."""
    from gorgon.tune.run import run

    settings = _given(
        EngineSettings,
        model=model,
        threads=threads,
        cache_type=cache_type,
        flash_attention=flash_attention,
        gpu_layers=gpu_layers,
    )
    run(settings, seconds, [name for name in types.split(",") if name], plot)


class CompileGroup(TyperGroup):
    """``gorgon compile SRC`` is ``gorgon compile model SRC``: models are what is compiled most."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default subcommand in where none is named."""
        named = args and (args[0] in self.commands or args[0] == "--help")
        if args and not named and "model" in self.commands:
            args = ["model", *args]
        return super().parse_args(ctx, args)


compile_app = typer.Typer(cls=CompileGroup, no_args_is_help=True)
app.add_typer(compile_app, name="compile", help="Make a model, or heads, ready to serve.")


@compile_app.command("heads")
def compile_heads(
    source: Annotated[Path, typer.Argument(help="released heads: a file, or a folder of shards")],
    base: Annotated[Path, typer.Option(help="GGUF file of the model that they belong to")],
    type_name: Annotated[str, typer.Option("--type", help="type of the matrices")] = "Q8_0",
    out: Annotated[
        Path | None, typer.Option(help="file to write [default: SOURCE-TYPE.medusa.gguf here]")
    ] = None,
    top_vocab: Annotated[
        int | None, typer.Option(help="guess only so many tokens, the most frequent in --text")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to count tokens in")] = None,
) -> None:
    """Turn released Medusa heads into a heads file."""
    from gorgon.compile import heads

    if (top_vocab is None) != (text is None):
        raise typer.BadParameter("give --top-vocab and --text together")
    ids = None
    if top_vocab is not None and text is not None:
        ids = heads.frequent_tokens(base, text, top_vocab)
    target = out or Path(f"{source.resolve().stem}-{type_name.upper()}.medusa.gguf")
    heads.compile_heads(source, base, target, type_name, ids)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def _given(kind: type[Settings], **values: Any) -> Settings:
    """Settings from what was given; the rest comes from the environment or is the default."""
    return kind(**{name: value for name, value in values.items() if value is not None})


def main() -> None:
    """Run the command line; errors of ours are one line and exit code 1."""
    try:
        app()
    except GorgonError as error:
        print(f"gorgon: {error}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:  # pydantic's ValidationError: a setting out of range
        print(f"gorgon: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _one_line(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        raise error
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return f"{name}: {first['msg']} (got {first['input']!r})"


if __name__ == "__main__":
    main()
