"""Generation in a terminal: streamed, accepted drafts coloured by depth, numbers at the end."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.load import Loaded, load
from gorgon.errors import RequestError
from gorgon.request import Mode, Request, RequestStats
from gorgon.server.schemas import GenerateRequest
from gorgon.server.text import ChatPrompt, Message, TextStream, choose_template

logger = logging.getLogger("gorgon")

# The page's hues, as far from each other for all eyes as they can be where the background may be
# black or white; the last one is for all depths from there on.
DEPTH_COLOURS = ("#387dfb", "#006a82", "#885700", "#e97140", "#b884b2")


def generate(
    settings: EngineSettings, fields: dict[str, Any], mode: Mode, chat_template: str | None = None
) -> None:
    """Load the model, continue one prompt, print.

    Args:
        settings: the engine's.
        fields: those of ``POST /generate``.
        mode: how to draft.
        chat_template: see ``choose_template``.

    Raises:
        GorgonError: what cannot be loaded or served.
    """
    body = _validate(fields)
    if not logger.isEnabledFor(logging.DEBUG):  # --verbose
        logger.setLevel(logging.WARNING)
    console = Console(highlight=False)
    loaded = load(settings)
    try:
        stats, num_tokens = _stream(console, loaded, body, mode, chat_template)
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
    console: Console,
    loaded: Loaded,
    body: GenerateRequest,
    mode: Mode,
    chat_template: str | None,
) -> tuple[RequestStats, int]:
    engine, stream = loaded.engine, TextStream(loaded.model, body.stop)
    engine.submit(
        Request(
            id="terminal",
            prompt_ids=_encode(loaded, body, chat_template),
            max_tokens=body.max_length or ServerSettings().max_new_tokens,
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
                console.print(mark(piece, depth), end="", soft_wrap=True)
            stats = result.stats or stats
    console.print(stream.flush(), end="\n\n")
    return stats, stream.num_tokens


def mark(piece: str, depth: int) -> Text:
    """A token's text: coloured and underlined if it was drafted, white space before it left out."""
    if depth == 0:
        return Text(piece)
    word = piece.lstrip()
    colour = DEPTH_COLOURS[min(depth, len(DEPTH_COLOURS)) - 1]
    return Text.assemble(piece[: len(piece) - len(word)], (word, f"underline {colour}"))


def _encode(loaded: Loaded, body: GenerateRequest, chat_template: str | None) -> tuple[int, ...]:
    if body.chat:
        chat = ChatPrompt(
            loaded.model, choose_template(loaded.model.info.chat_template, chat_template)
        )
        return tuple(chat.encode([Message("user", body.prompt)]))
    return tuple(loaded.model.tokenize(body.prompt, add_special=True, parse_special=False))


def _summarise(console: Console, loaded: Loaded, stats: RequestStats, num_tokens: int) -> None:
    speed = (num_tokens - 1) / stats.decode_time if stats.decode_time else 0.0
    plain = loaded.plain_step.at(stats.prompt_tokens + num_tokens // 2)
    line = Text(style="dim")
    line.append(f"{speed:.1f} tokens/s", style="bold not dim")
    line.append(f"  {speed * plain:.2f}x of one token a step")
    line.append(f"  {num_tokens} tokens in {stats.steps} steps")
    line.append(f"  {num_tokens / max(stats.steps, 1):.2f} tokens/step")
    console.print(line, soft_wrap=True)
    if stats.drafted:
        console.print(_legend(stats))


def _legend(stats: RequestStats) -> Text:
    """How many drafts were kept, by how far ahead they were guessed."""
    legend = Text("drafts kept", style="dim")
    depths = zip(stats.accepted_by_depth, stats.drafted_by_depth, strict=True)
    for depth, (accepted, drafted) in enumerate(depths, 1):
        legend.append("  ")
        legend.append_text(mark(f"{depth} ahead", depth))
        legend.append(f" {accepted}/{drafted}")
    return legend
