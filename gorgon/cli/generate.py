"""``gorgon generate``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from gorgon.cli.options import EngineOptions, TemplateOption, expand


@expand
def generate(
    prompt: Annotated[str, typer.Argument(help="what to answer or, with --raw, to continue")],
    engine: EngineOptions,
    mode: Annotated[
        Literal["medusa", "normal", "lookup", "fixed"],
        typer.Option(
            help="medusa: drafts as far as they pay, or --tree; lookup: without heads; "
            "fixed: needs --tree"
        ),
    ] = "medusa",
    max_length: Annotated[int, typer.Option(min=1, help="new tokens, at most")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    tree: Annotated[
        str | None, typer.Option(help="a fixed tree, paths of ranks: '0;0,0;1'")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="no chat template")] = False,
    chat_template: TemplateOption = None,
) -> None:
    """Continue a prompt in the terminal; tokens from accepted drafts are coloured."""
    from gorgon.terminal import generate as run

    if tree is not None and mode not in ("medusa", "fixed"):
        raise typer.BadParameter(f"--tree cannot go with --mode {mode}")
    if raw and chat_template is not None:
        raise typer.BadParameter("--chat-template cannot go with --raw")
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_length": max_length,
        "temperature": temperature,
        "seed": seed,
        "chat": not raw,
    }
    if tree is not None:
        body["tree"] = _parse_tree(tree)
    opened = engine.open()
    run(opened.settings, body, mode, chat_template or opened.chat_template)


def _parse_tree(text: str) -> list[list[int]]:
    try:
        return [[int(rank) for rank in path.split(",")] for path in text.split(";")]
    except ValueError as error:
        raise typer.BadParameter(f"--tree '{text}': write paths of ranks, '0;0,0;1'") from error
