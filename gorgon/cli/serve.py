"""``gorgon serve``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gorgon.cli.options import EngineOptions, TemplateOption, expand, given
from gorgon.config import ServerSettings


@dataclass(frozen=True)
class ServerOptions:
    """Where the service listens, and to whom."""

    host: Annotated[str | None, typer.Option(help="address; 127.0.0.1 by default")] = None
    port: Annotated[int | None, typer.Option(help="port; 8000 by default")] = None
    chat_template: TemplateOption = None
    api_key: Annotated[
        list[str] | None, typer.Option(help="key that clients must send; may be repeated")
    ] = None
    api_key_file: Annotated[Path | None, typer.Option(help="file of keys, one a line")] = None
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="serve other machines with no key")
    ] = None
    model_name: Annotated[str | None, typer.Option(help="name of the model in the API")] = None
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file")] = None
    tls_key: Annotated[Path | None, typer.Option(help="PEM file")] = None
    log_format: Annotated[Literal["text", "json"] | None, typer.Option(help="text by default")] = (
        None
    )

    def settings(self, template_of_folder: str | None) -> ServerSettings:
        """These options over a compiled folder's chat template, the environment, the defaults."""
        values: dict[str, Any] = asdict(self)
        keys = values.pop("api_key")
        values["chat_template"] = self.chat_template or template_of_folder
        return given(ServerSettings, **values, api_keys=tuple(keys) if keys else None)


@expand
def serve(
    engine: EngineOptions,
    server: ServerOptions,
    folder: Annotated[
        Path | None, typer.Argument(help="compiled folder or GGUF file, as --model")
    ] = None,
    max_running: Annotated[int | None, typer.Option(help="requests decoded at once")] = None,
) -> None:
    """Serve a model over HTTP; further settings are GORGON_SERVER_..., see docs/api.md."""
    from gorgon.server.serve import run

    if folder is not None and engine.model is not None:
        raise typer.BadParameter(f"give the model once: {folder} or --model {engine.model}")
    opened = replace(engine, model=engine.model or folder).open(max_running=max_running)
    run(opened.settings, server.settings(opened.chat_template))
