"""``gorgon bench``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gorgon.cli.interrupts import unwinding
from gorgon.cli.options import EngineOptions, expand
from gorgon.errors import BenchError

if TYPE_CHECKING:
    from gorgon.bench.assemble import MakeEncode
    from gorgon.bench.inprocess import Encode
    from gorgon.llama.model import Model

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class WorkloadOptions:
    """What is asked, how often, and what counts as good."""

    modes: Annotated[
        str,
        typer.Option(help="normal, medusa, lookup, chain:N, tree:N, paths:0;0,0 - with spaces"),
    ] = "normal medusa"
    clients: Annotated[str, typer.Option(help="numbers of clients: '1 4 8'")] = "1"
    temperature: Annotated[str, typer.Option(help="temperatures, 0 is greedy: '0 0.7'")] = "0"
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with 'turns'")] = None
    count: Annotated[int, typer.Option(min=1, help="prompts, spread over the file")] = 24
    length: Annotated[int, typer.Option(min=1, help="new tokens of an answer")] = 128
    natural: Annotated[bool, typer.Option("--natural", help="let answers end early")] = False
    spread: Annotated[
        float, typer.Option(help="answers are longer or shorter by up to this part: 0.5 is half")
    ] = 0.0
    repeats: Annotated[int, typer.Option(min=1)] = 1
    waves: Annotated[int, typer.Option(min=1, help="requests per client and block")] = 2
    seed: Annotated[int, typer.Option(min=0)] = 1
    ttft_bound: Annotated[float, typer.Option(help="of goodput, seconds")] = 1.0
    tpot_bound: Annotated[float, typer.Option(help="of goodput, seconds")] = 0.1

    def parsed(self) -> dict[str, Any]:
        """Fields of ``gorgon.bench.options.Options``."""
        values = asdict(self)
        values["modes"] = tuple(self.modes.split())
        values["clients"] = _numbers("clients", self.clients, int)
        values["temperatures"] = _numbers("temperature", values.pop("temperature"), float)
        return values


@dataclass(frozen=True)
class PartyOptions:
    """Who is measured."""

    in_process: Annotated[bool, typer.Option("--in-process", help="no server, no HTTP")] = False
    url: Annotated[str | None, typer.Option(help="a running Gorgon server")] = None
    llama_server: Annotated[Path | None, typer.Option(help="binary of a peer")] = None
    spec_types: Annotated[str, typer.Option(help="of llama-server: names, or 'all'")] = ""
    openai: Annotated[list[str] | None, typer.Option(help="further peer: URL or URL#MODEL")] = None
    loop: Annotated[bool, typer.Option("--loop", help="bare llama_decode as a peer")] = False
    shape: Annotated[str | None, typer.Option(help="random weights: 7b, 1b, 135m")] = None
    kind: Annotated[
        str | None, typer.Option("--type", help="of --shape: F16, Q8_0, Q4_K_M; Q8_0 by default")
    ] = None
    replay: Annotated[str | None, typer.Option(help="accuracies of replayed drafts")] = None

    def parsed(self) -> dict[str, Any]:
        """Fields of ``gorgon.bench.options.Options``."""
        return {
            **asdict(self),
            "url": self.url and self.url.rstrip("/"),
            "spec_types": tuple(self.spec_types.split()),
            "openai": tuple(self.openai or ()),
        }


@expand
def bench(
    workload: WorkloadOptions,
    parties: PartyOptions,
    engine: EngineOptions,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("bench-result"),
    curve: Annotated[bool, typer.Option("--curve", help="measure t(n) too")] = False,
    charts: Annotated[bool, typer.Option(help="draw PNG charts")] = True,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="OLD.json NEW.json: compare, do not run")
    ] = None,
    redraw: Annotated[Path | None, typer.Option(help="result.json: write its report anew")] = None,
    tolerance: Annotated[float, typer.Option(help="of --compare: 0.03 is 3 %")] = 0.03,
) -> None:
    """Measure modes and peers on the same prompts, in turns; or compare two results."""
    from gorgon.bench import run
    from gorgon.bench.options import Options

    if compare is not None:
        if not run.compare(*compare, tolerance):
            raise typer.Exit(1)
    elif redraw is not None:
        run.redraw(redraw, charts=charts)
    else:
        _check_url(parties, engine)
        opened = engine.open()
        fields = {**workload.parsed(), **parties.parsed(), "out": out}
        options = Options(engine=opened.settings, **fields, curve=curve, charts=charts)
        with unwinding():
            run.run(options, make_encoder(opened.chat_template))


def _check_url(parties: PartyOptions, engine: EngineOptions) -> None:
    """A running server is measured as it is."""
    given = [name for name, value in asdict(engine).items() if value is not None]
    if given and parties.url is not None and parties.llama_server is None:
        name = given[0].replace("_", "-")
        raise BenchError(f"--{name} has no effect on the server of --url; set it where that starts")


def make_encoder(chat_template: str | None) -> MakeEncode:
    """Prompts of a benchmark as the server would see them: a user's turn in the chat template."""
    from gorgon.server.text import ChatPrompt, Message, choose_template

    def make_encode(model: Model) -> Encode:
        chat = ChatPrompt(model, choose_template(model.info.chat_template, chat_template))
        return lambda text: chat.encode([Message("user", text)])

    return make_encode


def _numbers(name: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split())
    except ValueError as error:
        raise BenchError(f"--{name} '{text}' must be numbers with spaces between them") from error
