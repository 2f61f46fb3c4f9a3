"""``gorgon compile model`` and ``gorgon compile heads``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gorgon.cli.interrupts import unwinding
from gorgon.cli.options import ThreadsOption, expand, type_names

if TYPE_CHECKING:
    from gorgon.llama.quantize import Quantization


class CompileGroup(TyperGroup):
    """``gorgon compile SRC`` is ``gorgon compile model SRC``: models are what is compiled most."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default subcommand in where none is named."""
        named = args and (args[0] in self.commands or args[0] == "--help")
        if args and not named:
            args = ["model", *args]
        return super().parse_args(ctx, args)


compile_app = typer.Typer(cls=CompileGroup, no_args_is_help=True)


@dataclass(frozen=True)
class TypeOptions:
    """What the weights are to become."""

    file_type: Annotated[str, typer.Option("--type", help="llama.cpp file type")] = "Q4_K_M"
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=TYPE for tensors whose name matches; may be repeated"),
    ] = None
    output_type: Annotated[str | None, typer.Option(help="type of the output matrix")] = None
    embedding_type: Annotated[str | None, typer.Option(help="type of the embeddings")] = None
    requantize: Annotated[
        bool, typer.Option("--requantize", help="take a source that is quantised already")
    ] = False

    def quantization(self) -> Quantization:
        """These options checked.

        Raises:
            CompileError: for a type that llama.cpp does not know.
        """
        from gorgon.compile import order
        from gorgon.llama.quantize import Quantization

        return Quantization(
            file_type=self.file_type.upper(),
            output_type=self.output_type and self.output_type.upper(),
            embedding_type=self.embedding_type and self.embedding_type.upper(),
            tensor_types=order.parse_tensor_types(self.tensor_type or []),
            requantize=self.requantize,
        )


@compile_app.command("model")
@expand
def compile_model(
    source: Annotated[str, typer.Argument(help="GGUF file, checkpoint folder, or owner/model")],
    types: TypeOptions,
    out: Annotated[
        Path | None, typer.Option(help="folder to make; NAME-TYPE here by default")
    ] = None,
    heads: Annotated[Path | None, typer.Option(help="Medusa heads to compile along")] = None,
    heads_type: Annotated[
        str | None, typer.Option(help="type of matrices of released heads; Q8_0 by default")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="text, or llama-imatrix's file, to weigh columns by")
    ] = None,
    compare: Annotated[str, typer.Option(help="types to compare too: Q8_0,Q6_K,Q4_0")] = "",
    chat_template: Annotated[
        str | None,
        typer.Option(help="'vicuna' or a Jinja file to serve with; the model's own by default"),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="text that quality is measured on; shipped by default")
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="tokens of it to use; 0: no quality")] = 1024,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="replace the folder")] = False,
) -> None:
    """Convert, quantise and measure a model; write a folder for 'gorgon serve'."""
    from rich.console import Console

    from gorgon.compile import order as orders
    from gorgon.compile.model import compile_model as run

    if heads_type is not None and (heads is None or heads.suffix == ".gguf"):
        raise typer.BadParameter("--heads-type needs --heads that are yet to be compiled")
    options = types.quantization()
    order = orders.Order(
        source=source,
        out=out or orders.default_out(source, options.file_type),
        options=options,
        heads=heads,
        heads_type=(heads_type or "Q8_0").upper(),
        imatrix=imatrix,
        text=text or orders.DEFAULT_TEXT,
        num_tokens=tokens,
        compare=type_names(compare),
        chat_template=chat_template,
        threads=threads or orders.default_threads(),
        force=force,
    )
    with unwinding():
        run(order, Console(highlight=False))


@compile_app.command("heads")
def compile_heads(
    source: Annotated[Path, typer.Argument(help="released heads: a file, or a folder of shards")],
    base: Annotated[Path, typer.Option(help="GGUF file of the model that they belong to")],
    type_name: Annotated[str, typer.Option("--type", help="type of the matrices")] = "Q8_0",
    out: Annotated[
        Path | None, typer.Option(help="file to write; SOURCE-TYPE.medusa.gguf here by default")
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
    target = out or Path(f"{source.resolve().stem}-{type_name.upper()}.medusa.gguf")
    with unwinding():
        ids = None
        if top_vocab is not None and text is not None:
            ids = heads.frequent_tokens(base, text, top_vocab)
        heads.compile_heads(source, base, target, type_name, ids)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
