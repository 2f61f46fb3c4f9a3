"""Generation in a terminal: streamed, accepted drafts coloured by depth, numbers at the end."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from gorgon.config import EngineSettings
from gorgon.engine.load import Loaded, load
from gorgon.errors import RequestError
from gorgon.request import Mode, Request, RequestStats
from gorgon.server.schemas import GenerateRequest
from gorgon.server.text import ChatPrompt, Message, TextStream

DEPTH_STYLES = ("", "green", "cyan", "magenta", "yellow", "blue", "red")


def generate(settings: EngineSettings, fields: dict[str, Any], mode: Mode) -> None:
    """Load the model, continue one prompt, print.

    Args:
        settings: the engine's.
        fields: those of ``POST /generate``.
        mode: ``medusa`` or ``normal``.

    Raises:
        GorgonError: what cannot be loaded or served.
    """
    body = _validate(fields)
    logging.getLogger("gorgon").setLevel(logging.WARNING)
    console = Console(highlight=False)
    loaded = load(settings)
    try:
        stats, num_tokens = _stream(console, loaded, body, mode)
        _summarise(console, loaded, stats, num_tokens)
    finally:
        loaded.backend.close()


def _validate(fields: dict[str, Any]) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise RequestError(f"{name}: {first['msg']}", name) from error


def _stream(
    console: Console, loaded: Loaded, body: GenerateRequest, mode: Mode
) -> tuple[RequestStats, int]:
    engine, stream = loaded.engine, TextStream(loaded.model, body.stop)
    engine.submit(
        Request(
            id="terminal",
            prompt_ids=_encode(loaded, body),
            max_tokens=body.max_length,
            sampling=body.sampling(),
            speculation=body.speculation(mode),
        )
    )
    stats = RequestStats()
    while engine.has_work:
        for result in engine.step():
            if result.error is not None:
                raise result.error
            for piece, depth in zip(stream.push(result.tokens), result.depths, strict=False):
                style = DEPTH_STYLES[min(depth, len(DEPTH_STYLES) - 1)]
                console.print(Text(piece, style=style), end="")
            stats = result.stats or stats
    console.print(stream.flush())
    return stats, stream.num_tokens


def _encode(loaded: Loaded, body: GenerateRequest) -> tuple[int, ...]:
    if body.chat:
        chat = ChatPrompt(loaded.model, loaded.model.info.chat_template)
        return tuple(chat.encode([Message("user", body.prompt)]))
    return tuple(loaded.model.tokenize(body.prompt, add_special=True, parse_special=False))


def _summarise(console: Console, loaded: Loaded, stats: RequestStats, num_tokens: int) -> None:
    speed = (num_tokens - 1) / stats.decode_time if stats.decode_time else 0.0
    plain = loaded.plain_step.at(stats.prompt_tokens + num_tokens // 2)
    line = (
        f"{num_tokens} tokens, {speed:.1f} tokens/s decoding "
        f"({speed * plain:.2f}x of a plain step), "
        f"{num_tokens / max(stats.steps, 1):.2f} tokens/step"
    )
    if stats.drafted:
        line += f", {stats.accepted} of {stats.drafted} drafts accepted"
        line += f" ({100 * stats.accepted / stats.drafted:.0f} %)"
    console.print(Text(line, style="dim"))
    if stats.drafted and console.is_terminal:
        legend = Text("accepted at depth ", style="dim")
        for depth, count in enumerate(stats.accepted_by_depth, 1):
            style = DEPTH_STYLES[min(depth, len(DEPTH_STYLES) - 1)]
            legend.append(f" {depth}: {count} ", style=style)
        console.print(legend)
