"""The command line: one verb per job, each imports what it needs when it runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from gorgon.config import CacheType, EngineSettings, ServerSettings
from gorgon.errors import BenchError, GorgonError

if TYPE_CHECKING:
    from gorgon.bench.inprocess import Encode
    from gorgon.llama.model import Model

Number = TypeVar("Number", int, float)

# Libraries of the extras: what only the offline verbs import.
OPTIONAL = {"gguf", "matplotlib", "safetensors", "torch"}
Settings = TypeVar("Settings", bound=BaseModel)

app = typer.Typer(
    help="Large language models with Medusa heads on llama.cpp.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", help="GGUF file or compiled folder [default: the embedded model]"
    ),
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
TemplateOption = Annotated[
    str | None,
    typer.Option("--chat-template", help="'vicuna' or a Jinja file [default: the model's own]"),
]


@app.callback()
def _start(verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )


@app.command()
def serve(
    folder: Annotated[
        Path | None, typer.Argument(help="compiled folder or GGUF file, as --model")
    ] = None,
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
    chat_template: TemplateOption = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="key that clients must send; may be repeated")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="file of keys, one a line")] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="serve other machines with no key")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="name of the model in the API")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file")] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="[default: text]")
    ] = None,
) -> None:
    """Serve a model over HTTP; further settings are GORGON_SERVER_..., see docs/api.md."""
    from gorgon.server.serve import run

    engine = _given(
        EngineSettings,
        model=model or folder,
        heads=heads,
        threads=threads,
        num_cells=num_cells,
        cache_type=cache_type,
        flash_attention=flash_attention,
        gpu_layers=gpu_layers,
        max_running=max_running,
    )
    engine, template = _open_folder(engine)
    server = _given(
        ServerSettings,
        host=host,
        port=port,
        api_keys=tuple(api_key) if api_key else None,
        api_key_file=api_key_file,
        allow_anonymous=allow_anonymous,
        model_name=model_name,
        chat_template=chat_template or template,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        log_format=log_format,
    )
    run(engine, server)


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
    chat_template: TemplateOption = None,
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
    settings, template = _open_folder(settings)
    run(settings, body, mode, chat_template or template)


def _open_folder(settings: EngineSettings) -> tuple[EngineSettings, str | None]:
    """Settings with a compiled folder replaced by its files, and the folder's chat template."""
    from gorgon.compile import manifest

    if settings.model is None or not settings.model.is_dir():
        return settings, None
    found = manifest.read(settings.model)
    changes = {"model": found.model, "heads": settings.heads or found.heads}
    return settings.model_copy(update=changes), found.chat_template


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
app.add_typer(
    compile_app,
    name="compile",
    help="Make a model, or heads, ready to serve; 'compile SRC' is 'compile model SRC'.",
)


@compile_app.command("model")
def compile_model(
    source: Annotated[str, typer.Argument(help="GGUF file, checkpoint folder, or owner/model")],
    file_type: Annotated[str, typer.Option("--type", help="llama.cpp file type")] = "Q4_K_M",
    out: Annotated[
        Path | None, typer.Option(help="folder to make [default: NAME-TYPE here]")
    ] = None,
    heads: Annotated[Path | None, typer.Option(help="Medusa heads to compile along")] = None,
    heads_type: Annotated[str, typer.Option(help="type of the heads' matrices")] = "Q8_0",
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=TYPE for tensors whose name matches; may be repeated"),
    ] = None,
    output_type: Annotated[str | None, typer.Option(help="type of the output matrix")] = None,
    embedding_type: Annotated[str | None, typer.Option(help="type of the embeddings")] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="text, or llama-imatrix's file, to weigh columns by")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="types to compare, with commas: Q8_0,Q6_K,Q4_0")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="text that quality is measured on [default: shipped]")
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="tokens of it to use; 0: no quality")] = 1024,
    threads: ThreadsOption = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="take a source that is quantised already")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the folder")] = False,
) -> None:
    """Convert, quantise and measure a model; write a folder for 'gorgon serve'."""
    from rich.console import Console

    from gorgon.compile import order as orders
    from gorgon.compile.model import compile_model as run
    from gorgon.llama.quantize import Quantization

    options = Quantization(
        file_type=file_type.upper(),
        output_type=output_type and output_type.upper(),
        embedding_type=embedding_type and embedding_type.upper(),
        tensor_types=orders.parse_tensor_types(tensor_type or []),
        requantize=requantize,
    )
    order = orders.Order(
        source=source,
        out=out or orders.default_out(source, options.file_type),
        options=options,
        heads=heads,
        heads_type=heads_type.upper(),
        imatrix=imatrix,
        text=text or orders.DEFAULT_TEXT,
        num_tokens=tokens,
        compare=tuple(name.strip().upper() for name in (compare or "").split(",") if name.strip()),
        threads=threads or orders.default_threads(),
        force=force,
    )
    run(order, Console(highlight=False))


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


@app.command()
def train(
    prompts: Annotated[Path, typer.Option(help="one prompt a line, or .jsonl; may be packed")],
    out: Annotated[Path, typer.Option(help="the heads file to make, *.medusa.gguf")],
    model: ModelOption = None,
    variant: Annotated[Literal["conditioned", "medusa"], typer.Option()] = "conditioned",
    num_heads: Annotated[int | None, typer.Option(help="tokens to look ahead [default: 4]")] = None,
    num_hidden: Annotated[int | None, typer.Option(help="width [default: 1024]")] = None,
    window: Annotated[int | None, typer.Option(help="states looked back on [default: 2]")] = None,
    num_outputs: Annotated[int | None, typer.Option(help="tokens guessed [default: 8192]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="of an answer [default: 256]")] = None,
    num_invented: Annotated[int | None, typer.Option(help="prompts the model makes up")] = None,
    epochs: Annotated[float | None, typer.Option(help="[default: 4]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="positions [default: 1024]")] = None,
    matrix_type: Annotated[
        Literal["F16", "Q8_0", "Q4_0"] | None, typer.Option(help="[default: Q4_0]")
    ] = None,
    source: Annotated[Literal["auto", "llama.cpp", "torch"], typer.Option()] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    work: Annotated[
        Path | None, typer.Option(help="folder for answers and checkpoints, kept at the end")
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Train heads for a model on its own answers; run it again to go on after a stop."""
    from gorgon.llama.backend import default_model
    from gorgon.llama.model import Model
    from gorgon.server.text import ChatPrompt, Message, choose_template
    from gorgon.training.settings import TrainingSettings
    from gorgon.training.train import train as run

    settings = _given(
        TrainingSettings, prompts=prompts, out=out, variant=variant, num_heads=num_heads,
        num_hidden=num_hidden, window=window, num_outputs=num_outputs, max_tokens=max_tokens,
        num_invented=num_invented, epochs=epochs, batch_size=batch_size, matrix_type=matrix_type,
        source=source, device=device, seed=seed, work=work,
    )  # fmt: skip
    engine = _given(EngineSettings, model=model, threads=threads)
    base = Model(engine, engine.model or default_model())
    try:
        chat = ChatPrompt(base, choose_template(base.info.chat_template, None))
        run(settings, engine, base, lambda text: chat.encode([Message("user", text)]))
    finally:
        base.close()
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; report in {out.with_suffix('.txt')}")


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("bench-result"),
    modes: Annotated[
        str,
        typer.Option(help="normal, medusa, lookup, chain:N, tree:N, paths:0;0,0 - with spaces"),
    ] = "normal medusa",
    clients: Annotated[str, typer.Option(help="numbers of clients: '1 4 8'")] = "1",
    temperature: Annotated[str, typer.Option(help="temperatures, 0 is greedy: '0 0.7'")] = "0",
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with 'turns'")] = None,
    count: Annotated[int, typer.Option(min=1, help="prompts, spread over the file")] = 24,
    length: Annotated[int, typer.Option(min=1, help="new tokens of an answer")] = 128,
    natural: Annotated[bool, typer.Option("--natural", help="let answers end early")] = False,
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    waves: Annotated[int, typer.Option(min=1, help="requests per client and block")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    ttft_bound: Annotated[float, typer.Option(help="of goodput, seconds")] = 1.0,
    tpot_bound: Annotated[float, typer.Option(help="of goodput, seconds")] = 0.1,
    in_process: Annotated[bool, typer.Option("--in-process", help="no server, no HTTP")] = False,
    url: Annotated[str | None, typer.Option(help="a running Gorgon server")] = None,
    llama_server: Annotated[Path | None, typer.Option(help="binary of a peer")] = None,
    spec_types: Annotated[str, typer.Option(help="of llama-server: names, or 'all'")] = "",
    openai: Annotated[list[str] | None, typer.Option(help="further peer: URL or URL#MODEL")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="bare llama_decode as a peer")] = False,
    curve: Annotated[bool, typer.Option("--curve", help="measure t(n) too")] = False,
    charts: Annotated[bool, typer.Option(help="draw PNG charts")] = True,
    shape: Annotated[str | None, typer.Option(help="random weights: 7b, 1b, 135m")] = None,
    kind: Annotated[str, typer.Option("--type", help="of --shape: F16, Q8_0, Q4_K_M")] = "Q8_0",
    replay: Annotated[str | None, typer.Option(help="accuracies of replayed drafts")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="OLD.json NEW.json: compare, do not run")
    ] = None,
    redraw: Annotated[Path | None, typer.Option(help="result.json: write its report anew")] = None,
    tolerance: Annotated[float, typer.Option(help="of --compare: 0.03 is 3 %")] = 0.03,
    model: ModelOption = None,
    heads: HeadsOption = None,
    threads: ThreadsOption = None,
    num_cells: CellsOption = None,
    cache_type: CacheOption = None,
    flash_attention: FlashOption = None,
    gpu_layers: LayersOption = None,
) -> None:
    """Measure modes and peers on the same prompts, in turns; or compare two results."""
    from gorgon.bench import run
    from gorgon.bench.options import Options

    if compare is not None:
        if not run.compare(*compare, tolerance):
            raise typer.Exit(1)
        return
    if redraw is not None:
        run.redraw(redraw, charts=charts)
        return
    engine = _given(
        EngineSettings,
        model=model,
        heads=heads,
        threads=threads,
        num_cells=num_cells,
        cache_type=cache_type,
        flash_attention=flash_attention,
        gpu_layers=gpu_layers,
    )
    run.run(
        Options(
            engine=engine,
            out=out,
            modes=tuple(modes.split()),
            clients=_numbers("clients", clients, int),
            temperatures=_numbers("temperature", temperature, float),
            prompts=prompts,
            count=count,
            length=length,
            natural=natural,
            repeats=repeats,
            waves=waves,
            seed=seed,
            ttft_bound=ttft_bound,
            tpot_bound=tpot_bound,
            in_process=in_process,
            url=url and url.rstrip("/"),
            llama_server=llama_server,
            spec_types=tuple(spec_types.split()),
            openai=tuple(openai or ()),
            loop=loop,
            curve=curve,
            charts=charts,
            shape=shape,
            kind=kind,
            replay=replay,
        ),
        _make_encode,
    )


def _make_encode(model: Model) -> Encode:
    """Prompts of a benchmark as the server would see them: a user's turn in the chat template."""
    from gorgon.server.text import ChatPrompt, Message, choose_template

    chat = ChatPrompt(model, choose_template(model.info.chat_template, None))
    return lambda text: chat.encode([Message("user", text)])


def _numbers(name: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split())
    except ValueError as error:
        raise BenchError(f"--{name} '{text}' must be numbers with spaces between them") from error


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
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        print(
            f"gorgon: this needs {error.name}, which serving does not: run scripts/setup --dev"
            " (--train for training) or install the extras of this package",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("gorgon: stopped", file=sys.stderr)
        sys.exit(130)
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
