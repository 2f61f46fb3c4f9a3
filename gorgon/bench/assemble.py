"""From options to parties that are ready to answer; everything started here ends with the stack."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gorgon import __version__
from gorgon.bench.accuracies import Accuracies, load_accuracies
from gorgon.bench.document import PartyInfo
from gorgon.bench.inprocess import Encode, EngineParty
from gorgon.bench.loop import LoopParty
from gorgon.bench.openai import HttpParty, gorgon_drafts, llama_server_drafts
from gorgon.bench.options import Options
from gorgon.bench.party import ModeSpec, Party, parse_mode
from gorgon.bench.replay import ReplayBackend
from gorgon.bench.servers import LlamaServer, answers, free_port, gorgon_command, start
from gorgon.bench.shapes import Base, write_heads, write_model
from gorgon.config import EngineSettings
from gorgon.engine.load import Loaded, load
from gorgon.errors import BenchError
from gorgon.llama.backend import default_model
from gorgon.llama.library import library_version
from gorgon.llama.model import Model, inspect

# Makes the encoder of a loaded model: chat template, then tokens. Text is the server's business,
# so it comes from outside.
MakeEncode = Callable[[Model], Encode]

# llama-server samples with filters unless told not to; ours are off by default.
_PLAIN_SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
_SLOT_CONTEXT = 1024
_SHAPE_PROMPT = 128


def assemble(options: Options, make_encode: MakeEncode, stack: contextlib.ExitStack) -> list[Party]:
    """Every party, the baseline first.

    Raises:
        GorgonError: when one cannot be started or loaded.
    """
    settings = settle_shape(options)
    modes = [parse_mode(mode) for mode in options.modes]
    parties: list[Party] = []
    if modes and options.in_process:
        parties += _engine_parties(options, settings, modes, make_encode, stack)
    elif modes:
        parties += _server_parties(options, settings, modes, stack)
    if options.llama_server is not None:
        parties += _llama_parties(options, settings, stack)
    parties += [_foreign_party(text) for text in options.openai]
    return parties


def settle_shape(options: Options) -> EngineSettings:
    """The engine's settings, with random weights in place of a model where a shape is asked for."""
    settings = options.engine
    if options.shape is None:
        return settings
    kind = options.kind or "Q8_0"
    name = f"{options.shape}-{kind.lower()}"
    model = options.out / f"{name}.gguf"
    if not model.exists():
        write_model(options.shape, kind, model)
    if not options.replay:
        return settings.model_copy(update={"model": model, "heads": None})
    accuracies = load_accuracies(options.replay)
    heads = options.out / f"{name}-{accuracies.variant}.medusa.gguf"
    if not heads.exists():
        info = inspect(model)
        base = Base(info.num_embd, info.num_vocab, info.fingerprint)
        write_heads(accuracies.variant, base, heads, num_heads=len(accuracies.ranks))
    return settings.model_copy(update={"model": model, "heads": heads})


# -- engines in this process ----------------------------------------------------------------------


def _engine_parties(
    options: Options,
    settings: EngineSettings,
    modes: list[ModeSpec],
    make_encode: MakeEncode,
    stack: contextlib.ExitStack,
) -> Iterator[Party]:
    accuracies = load_accuracies(options.replay) if options.replay else None
    loaded = _load(settings, accuracies, options.seed)
    stack.callback(loaded.backend.close)
    encode = make_encode(loaded.model)
    if options.shape is not None:
        encode = _cut(encode)
    for mode in modes:
        info = PartyInfo(
            name=mode.name,
            kind="engine",
            version=our_version(),
            settings={**_changed(settings), **_replay_settings(accuracies)},
            tree_size=mode.tree_size,
            replayed=accuracies is not None and mode.name != "normal",
        )
        yield EngineParty(info, loaded.engine, loaded.model, encode, mode.speculation())
    if options.loop:
        info = PartyInfo(
            name="llama_decode loop",
            kind="llama.cpp",
            version=library_version(),
            settings={"threads": settings.threads, "flash_attention": settings.flash_attention},
        )
        loop = LoopParty.load(info, settings, encode)
        stack.callback(loop.close)
        yield loop


def _cut(encode: Encode) -> Encode:
    """Random models know letters only, so a prompt has five times the usual number of tokens."""
    return lambda text: encode(text)[:_SHAPE_PROMPT]


def _load(settings: EngineSettings, accuracies: Accuracies | None, seed: int) -> Loaded:
    if accuracies is None:
        return load(settings)
    return load(settings, lambda backend: ReplayBackend(backend, accuracies, seed))


def _replay_settings(accuracies: Accuracies | None) -> dict[str, Any]:
    if accuracies is None:
        return {}
    return {"replay": accuracies.name, "accuracies": [list(ranks) for ranks in accuracies.ranks]}


def _changed(settings: EngineSettings) -> dict[str, Any]:
    """What differs from the defaults, and the threads."""
    found = settings.model_dump(mode="json", exclude_defaults=True)
    model = settings.model or default_model()
    return {**found, "model": Path(model).name, "threads": settings.threads}


def our_version() -> str:
    """Of Gorgon and what computes below it."""
    return f"gorgon {__version__}, {library_version()}"


# -- servers --------------------------------------------------------------------------------------


def _server_parties(
    options: Options, settings: EngineSettings, modes: list[ModeSpec], stack: contextlib.ExitStack
) -> Iterator[Party]:
    url, pid, shown = options.url, None, dict[str, Any]()
    if url is None:
        port = free_port()
        changed = settings.model_dump(mode="json", exclude_defaults=True)
        running = max(settings.max_running, *options.clients)
        environment = {f"GORGON_{name.upper()}": str(value) for name, value in changed.items()}
        environment["GORGON_MAX_RUNNING"] = str(running)
        server = stack.enter_context(start(gorgon_command(port, []), port, "/ready", environment))
        url, pid, shown = server.url, server.pid, _changed(settings)
    elif not answers(f"{url}/ready"):
        raise BenchError(f"{url}/ready does not answer 200: no Gorgon server is ready there")
    version = our_version() if options.url is None else f"server at {url}"
    for mode in modes:
        yield make_server_party(mode.name, mode, url, pid, shown, version)


def make_server_party(
    name: str,
    mode: ModeSpec,
    url: str,
    pid: int | None,
    settings: dict[str, Any],
    version: str = "",
) -> HttpParty:
    """One mode of a Gorgon server that is ready."""
    return HttpParty(
        PartyInfo(
            name=name,
            kind="gorgon",
            version=version or our_version(),
            settings=settings,
            tree_size=mode.tree_size,
        ),
        url,
        model=_first_model(url),
        fields={"cache_prompt": False, "speculation": _speculation(mode)},
        fixed_fields={"ignore_eos": True},
        pid=pid,
        read_drafts=gorgon_drafts,
    )


def _speculation(mode: ModeSpec) -> dict[str, Any]:
    """The field of that name in a request to our server."""
    params = mode.speculation()
    return {"mode": params.mode} if params.tree is None else {"tree": params.tree}


def _llama_parties(
    options: Options, settings: EngineSettings, stack: contextlib.ExitStack
) -> Iterator[Party]:
    assert options.llama_server is not None
    binary = LlamaServer.probe(options.llama_server)
    wanted = binary.draft_free if "all" in options.spec_types else options.spec_types
    unknown = set(wanted) - set(binary.draft_free)
    if unknown:
        raise BenchError(
            f"{binary.path} has no draft-free --spec-type {', '.join(sorted(unknown))}; "
            f"it has {', '.join(binary.draft_free) or 'none'}"
        )
    for spec in ("", *wanted):
        port = free_port()
        command = binary.command(
            settings.model or default_model(),
            port,
            threads=settings.threads,
            slots=max(options.clients),
            context=max(settings.num_cells // max(options.clients), _SLOT_CONTEXT),
            gpu_layers=999 if settings.gpu_layers < 0 else settings.gpu_layers,
        )
        command += ["--spec-type", spec] if spec else []
        server = stack.enter_context(start(command, port, "/health", {}))
        info = PartyInfo(
            name=f"llama-server {spec}".strip(),
            kind="llama-server",
            version=binary.version,
            settings={"command": _shown(command)},
        )
        yield HttpParty(
            info,
            server.url,
            fields={**_PLAIN_SAMPLING, "cache_prompt": False},
            fixed_fields={"ignore_eos": True},
            pid=server.pid,
            read_drafts=llama_server_drafts,
        )


def _shown(command: list[str]) -> str:
    """A command line with names in place of paths: those are this machine's own affair."""
    return " ".join(Path(part).name if part.startswith("/") else part for part in command)


def _foreign_party(text: str) -> Party:
    """``URL`` or ``URL#MODEL``; natural lengths, since nothing in the API can fix them."""
    url, _, model = text.partition("#")
    url = url.rstrip("/").removesuffix("/v1")
    model = model or _first_model(url)
    info = PartyInfo(name=f"{url} {model}", kind="openai", version="unknown", settings={})
    return HttpParty(info, url, model=model)


def _first_model(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, ValueError, LookupError) as error:
        raise BenchError(f"{url}/v1/models does not name a model: {error}") from error
