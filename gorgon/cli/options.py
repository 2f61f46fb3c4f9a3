"""Options that verbs share, each written once: dataclasses whose fields are the options.

``@expand`` turns a verb's parameter of such a class into the options themselves, so that
``def tune(compute: ComputeOptions)`` takes ``--model``, ``--threads`` and so on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel

from gorgon.config import CacheType, EngineSettings

Settings = TypeVar("Settings", bound=BaseModel)

ThreadsOption = Annotated[int | None, typer.Option(help="threads; all cores by default")]
TemplateOption = Annotated[
    str | None,
    typer.Option("--chat-template", help="'vicuna' or a Jinja file; the model's own by default"),
]


@dataclass(frozen=True)
class Opened:
    """Settings that name files, and the chat template of the compiled folder they came from."""

    settings: EngineSettings
    chat_template: str | None


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how many threads."""

    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="GGUF file or compiled folder; the embedded model by default"
        ),
    ] = None
    threads: ThreadsOption = None

    def open(self, **more: Any) -> Opened:
        """Settings from these options and ``more``; a compiled folder is replaced by its files.

        Raises:
            ModelError: when a folder is no compiled one, or damaged.
        """
        from gorgon.compile import manifest

        settings = given(EngineSettings, **{**asdict(self), **more})
        if settings.model is None or not settings.model.is_dir():
            return Opened(settings, None)
        found = manifest.read(settings.model)
        changes: dict[str, Any] = {"model": found.model}
        if found.heads is not None and settings.heads is None:
            changes["heads"] = found.heads
        return Opened(settings.model_copy(update=changes), found.chat_template)


@dataclass(frozen=True)
class ComputeOptions(ModelOptions):
    """And on what, with what: all that decides how long a step takes."""

    cache_type: Annotated[
        CacheType | None, typer.Option("--cache-type", help="KV cache type; f16 by default")
    ] = None
    flash_attention: Annotated[
        bool | None, typer.Option(help="flash attention; on by default", show_default=False)
    ] = None
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", help="layers on the GPU; all by default")
    ] = None


@dataclass(frozen=True)
class EngineOptions(ComputeOptions):
    """And heads and room: all that generating text takes."""

    heads: Annotated[Path | None, typer.Option(help="Medusa heads, a *.medusa.gguf file")] = None
    num_cells: Annotated[
        int | None,
        typer.Option("--num-cells", help="tokens that the KV cache holds; 8192 by default"),
    ] = None


def given(kind: type[Settings], **values: Any) -> Settings:
    """Settings from what was given; the rest comes from the environment or is the default."""
    return kind(**{name: value for name, value in values.items() if value is not None})


def type_names(text: str) -> tuple[str, ...]:
    """Quantisations with commas between them."""
    return tuple(name.strip().upper() for name in text.split(",") if name.strip())


def expand(verb: Callable[..., None]) -> Callable[..., None]:
    """``verb`` with the fields of its dataclass parameters as parameters of its own."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in _parameters(verb):
        kind: Any = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _parameters(kind)
        else:
            parameters.append(parameter)

    @functools.wraps(verb)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in _parameters(group)]
            values[name] = group(**{field: values.pop(field) for field in fields})
        verb(**values)

    del vars(expanded)["__wrapped__"]  # its signature is not ours
    vars(expanded)["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Its parameters, by name only, with annotations that are types and not their text."""
    hints = get_type_hints(function, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
    ]
