"""Folders point down only, and each outside library has its one home: see ARCHITECTURE.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gorgon"

# A part may import from rows above itself in this list, and from itself.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"__init__", "errors"}),
    frozenset({"config", "noise", "request"}),
    frozenset({"backend"}),
    frozenset({"llama", "speculation"}),
    frozenset({"engine"}),
    frozenset({"server", "compile"}),
    frozenset({"training", "bench", "tune"}),
    frozenset({"terminal"}),
    frozenset({"cli"}),
)

# Outside libraries that only these parts may import; "*" is every part.
HOMES: dict[str, frozenset[str]] = {
    "numpy": frozenset({"*"}),
    "pydantic": frozenset(
        {"config", "engine", "server", "cli", "terminal", "compile", "training", "bench"}
    ),
    "pydantic_settings": frozenset({"config"}),
    "llama_cpp": frozenset({"llama"}),
    "ctypes": frozenset({"llama", "compile"}),  # in convert.py, run by the converter's Python
    "fastapi": frozenset({"server"}),
    "starlette": frozenset({"server"}),
    "uvicorn": frozenset({"server"}),
    "jinja2": frozenset({"server"}),
    "torch": frozenset({"training"}),
    "matplotlib": frozenset({"compile", "training", "bench", "tune"}),
    "triton": frozenset({"training"}),
    "gguf": frozenset({"bench", "compile", "training"}),
    "h11": frozenset({"bench"}),
    "safetensors": frozenset({"compile", "training"}),
    "huggingface_hub": frozenset({"compile"}),  # in hub.py, run by the converter's Python
    "typer": frozenset({"cli"}),
    "rich": frozenset({"cli", "terminal", "compile", "training", "bench", "tune"}),
    "httpx": frozenset({"bench"}),
    "prometheus_client": frozenset({"server"}),
    "swagger_ui_bundle": frozenset({"server"}),
}

# The clock and the cache of a model are none of its business.
PURE: dict[str, frozenset[str]] = {
    "speculation": frozenset({"time", "threading", "random", "os", "pathlib"}),
}


def part_of(path: Path) -> str:
    """``llama`` for gorgon/llama/model.py, ``errors`` for gorgon/errors.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def row_of(part: str) -> int:
    rows = [row for row, parts in enumerate(ROWS) if part in parts]
    assert rows, f"gorgon/{part} has no place in the house: name it in ROWS and ARCHITECTURE.md"
    return rows[0]


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "gorgon":
                yield from (f"gorgon.{alias.name}" for alias in node.names)
            else:
                yield node.module


def faults_of(path: Path) -> Iterator[str]:
    """What a file imports and should not."""
    part = part_of(path)
    for module in imports_of(path):
        top, _, rest = module.partition(".")
        if top == "gorgon":
            other = rest.partition(".")[0]
            other = other if other and not other.startswith("__") else "__init__"
            if other != part and row_of(other) >= row_of(part):
                yield f"imports {module}, which is not below it"
        elif top in HOMES or top not in sys.stdlib_module_names:
            if top not in HOMES:
                yield f"imports {module}, which has no home: name it in HOMES"
            elif "*" not in HOMES[top] and part not in HOMES[top]:
                yield f"imports {module}, whose home is {', '.join(sorted(HOMES[top]))}"
        elif top in PURE.get(part, ()):
            yield f"imports {module}, but {part} is pure"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_libraries_stay_at_home(path: Path) -> None:
    assert not list(faults_of(path))


@pytest.mark.parametrize(
    ("place", "code", "fault"),
    [
        ("speculation/tree.py", "import gorgon.engine.pool", "not below"),
        ("speculation/tree.py", "from gorgon.llama import ggml", "not below"),
        ("speculation/tree.py", "from gorgon import engine", "not below"),
        ("speculation/tree.py", "def f():\n    import time", "pure"),
        ("engine/engine.py", "from gorgon.server.text import TextStream", "not below"),
        ("engine/engine.py", "import ctypes", "home is compile, llama"),
        ("engine/engine.py", "from fastapi import FastAPI", "home is server"),
        ("server/app.py", "if True:\n    import torch.nn", "home is training"),
        ("server/app.py", "import gorgon.training.trainer", "not below"),
        ("llama/model.py", "import requests", "no home"),
        ("config.py", "from gorgon.request import Mode", "not below"),
    ],
)
def test_what_points_up_is_found(
    place: str, code: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    (found,) = faults_of(path)
    assert fault in found


def test_architecture_names_every_part() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    parts = {part_of(path) for path in FILES} - {"__init__"}
    for part in parts:
        name = f"`{part}/`" if (PACKAGE / part).is_dir() else f"`{part}.py`"
        assert name in text, f"ARCHITECTURE.md does not say what {name} holds"
        row_of(part)
