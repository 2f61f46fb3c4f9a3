"""``gorgon train``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from gorgon.cli.interrupts import unwinding
from gorgon.cli.options import ModelOptions, expand, given


@dataclass(frozen=True)
class TrainingOptions:
    """Those of ``gorgon.training.settings``, which holds the defaults."""

    prompts: Annotated[Path, typer.Option(help="one prompt a line, or .jsonl; may be packed")]
    out: Annotated[Path, typer.Option(help="the heads file to make, *.medusa.gguf")]
    variant: Annotated[Literal["conditioned", "medusa"], typer.Option()] = "conditioned"
    num_heads: Annotated[int | None, typer.Option(help="tokens to look ahead; 4 by default")] = None
    num_hidden: Annotated[int | None, typer.Option(help="width; 1024 by default")] = None
    window: Annotated[int | None, typer.Option(help="states looked back on; 2 by default")] = None
    num_outputs: Annotated[int | None, typer.Option(help="tokens guessed; 8192 by default")] = None
    max_tokens: Annotated[int | None, typer.Option(help="of an answer; 256 by default")] = None
    num_answers: Annotated[int | None, typer.Option(help="to each prompt; 2 by default")] = None
    num_invented: Annotated[
        int | None, typer.Option(help="prompts the model makes up; 0 by default")
    ] = None
    epochs: Annotated[float | None, typer.Option(help="2 by default")] = None
    batch_size: Annotated[int | None, typer.Option(help="positions; 512 by default")] = None
    matrix_type: Annotated[
        Literal["F16", "Q8_0", "Q4_0"] | None, typer.Option(help="Q4_0 by default")
    ] = None
    source: Annotated[Literal["auto", "llama.cpp", "torch"], typer.Option()] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto"
    seed: Annotated[int, typer.Option(min=0)] = 0
    work: Annotated[
        Path | None, typer.Option(help="folder for answers and checkpoints, kept at the end")
    ] = None


@expand
def train(training: TrainingOptions, base: ModelOptions) -> None:
    """Train heads for a model on its own answers; run it again to go on after a stop."""
    from gorgon.training.stages import Stages

    stages = Stages()
    with stages.stage("loading"):
        from gorgon.llama.backend import default_model
        from gorgon.llama.model import Model
        from gorgon.server.text import ChatPrompt, Message, choose_template
        from gorgon.training.settings import TrainingSettings
        from gorgon.training.train import train as run

        settings, opened = given(TrainingSettings, **asdict(training)), base.open()
        engine = opened.settings
        model = Model(engine, engine.model or default_model())
    try:
        template = choose_template(model.info.chat_template, opened.chat_template)
        chat = ChatPrompt(model, template)
        with unwinding():
            run(settings, engine, model, lambda text: chat.encode([Message("user", text)]), stages)
    finally:
        model.close()
    stages.end()
    out = settings.out
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; report in {out.with_suffix('.txt')}")
