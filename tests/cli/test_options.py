"""Shared options: how they reach a verb, and that defaults agree with the settings behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gorgon.bench.options import Options
from gorgon.cli.app import app
from gorgon.cli.bench import PartyOptions, WorkloadOptions
from gorgon.cli.options import EngineOptions, ModelOptions, expand
from gorgon.config import EngineSettings
from gorgon.errors import ModelError

VERBS = ("serve", "generate", "train", "tune", "bench", "compile model", "compile heads")


@dataclass(frozen=True)
class Size:
    wide: Annotated[int, typer.Option(help="columns")]
    tall: int = 2


def run(*arguments: str) -> tuple[int, str]:
    verb = typer.Typer()

    @verb.command()
    @expand
    def _draw(name: str, size: Size, again: bool = False) -> None:
        print(name, size, again)

    done = CliRunner().invoke(verb, arguments)
    return done.exit_code, done.output


def test_fields_become_options() -> None:
    assert run("a", "--wide", "3") == (0, "a Size(wide=3, tall=2) False\n")
    assert run("a", "--wide", "3", "--tall", "4", "--again") == (
        0,
        "a Size(wide=3, tall=4) True\n",
    )
    code, output = run("a")
    assert code == 2
    assert "--wide" in output
    assert "columns" in run("--help")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_its_options(verb: str) -> None:
    done = CliRunner().invoke(app, [*verb.split(), "--help"], terminal_width=200)
    assert done.exit_code == 0
    assert "Usage" in done.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("serve folder --model m.gguf", "give the model once"),
        ("generate hi --mode normal --tree 0", "--tree cannot go with --mode normal"),
        ("generate hi --raw --chat-template vicuna", "cannot go with --raw"),
        ("compile m.gguf --heads-type Q4_0", "--heads-type needs --heads"),
        ("compile heads h.pt --base b.gguf --top-vocab 5", "together"),
        ("tune --types Q4_0,Q9", "knows no type 'Q9'"),
        ("bench --type Q4_K_M", "--type needs --shape"),
        ("bench --url http://x --heads h.gguf", "--heads has no effect on the server of --url"),
    ],
)
def test_an_option_without_effect_is_refused(command: str, message: str) -> None:
    done = CliRunner().invoke(app, command.split(), terminal_width=200)
    assert done.exit_code != 0
    assert message in done.output + str(done.exception)


def test_defaults_of_bench_are_those_of_a_run() -> None:
    fields = {**WorkloadOptions().parsed(), **PartyOptions().parsed()}
    engine = EngineSettings()
    assert Options(engine=engine, **fields) == Options(engine=engine)


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GORGON_NUM_CELLS", "777")
    assert EngineOptions().open().settings.num_cells == 777
    assert EngineOptions(num_cells=99).open().settings.num_cells == 99


def test_a_compiled_folder_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"12345")
    (tmp_path / "h").touch()
    value = {
        "format": 1,
        "model": "m.gguf",
        "model_size": 5,
        "heads": "h",
        "chat_template": "vicuna",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    opened = EngineOptions(model=tmp_path).open()
    assert (opened.settings.model, opened.settings.heads) == (tmp_path / "m.gguf", tmp_path / "h")
    assert opened.chat_template == "vicuna"
    others = tmp_path / "others.medusa.gguf"
    assert EngineOptions(model=tmp_path, heads=others).open().settings.heads == others
    assert ModelOptions(model=tmp_path / "m.gguf").open().chat_template is None
    (tmp_path / "m.gguf").write_bytes(b"1")
    with pytest.raises(ModelError, match="compile the folder again"):
        ModelOptions(model=tmp_path).open()
