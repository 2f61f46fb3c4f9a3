"""What a user asks ``gorgon compile`` for; checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gorgon.config import EngineSettings
from gorgon.errors import CompileError
from gorgon.llama.quantize import Quantization

NAMED_TEMPLATES = ("vicuna",)  # of gorgon.server.text
DEFAULT_TEXT = Path(__file__).parent.parent / "assets" / "evaluation.txt"


@dataclass(frozen=True, slots=True)
class Order:
    """One compilation.

    Args:
        source: a GGUF file, a checkpoint folder, or a name on the Hugging Face hub.
        out: the folder to make.
        options: types of the model.
        heads: heads to compile along: a checkpoint of heads or a finished ``*.medusa.gguf``.
        heads_type: ggml type of the heads' matrices.
        imatrix: a text, or a file of llama-imatrix.
        text: what quality is measured on.
        num_tokens: tokens of ``text`` to use; 0 measures no quality.
        compare: further file types to make, measure and delete.
        chat_template: what to serve with in place of the model's own: a name in
            ``NAMED_TEMPLATES`` or a Jinja file; None leaves it to the model.
        threads: threads of everything.
        force: replace ``out`` if it is there.
    """

    source: str
    out: Path
    options: Quantization = field(default_factory=Quantization)
    heads: Path | None = None
    heads_type: str = "Q8_0"
    imatrix: Path | None = None
    text: Path = DEFAULT_TEXT
    num_tokens: int = 1024
    compare: tuple[str, ...] = ()
    chat_template: str | None = None
    threads: int = 1
    force: bool = False

    def check(self) -> None:
        """Look at everything that can be looked at without work.

        Raises:
            CompileError: naming what is wrong.
        """
        if self.out.exists() and not self.force:
            raise CompileError(f"{self.out}: already there; choose another --out, or --force")
        if self.out.exists() and not (self.out / "manifest.json").is_file():
            raise CompileError(f"{self.out}: not made by gorgon compile, so --force spares it")
        for option, path in (("heads", self.heads), ("imatrix", self.imatrix), ("text", self.text)):
            if path is not None and not path.exists():
                raise CompileError(f"--{option}: {path} is not there")
        for name in self.compare:
            Quantization(file_type=name)
        template = self.chat_template
        if template is not None and template not in NAMED_TEMPLATES:
            _read_text("chat-template", Path(template))

    def read_text(self) -> str:
        """The text that quality is measured on.

        Raises:
            CompileError: when it is no UTF-8 text.
        """
        return _read_text("text", self.text)


def _read_text(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"--{option}: {path} is no readable UTF-8 text") from error


def parse_tensor_types(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``["attn_v=Q6_K"]`` to pairs.

    Raises:
        CompileError: when there is no ``=`` in one.
    """
    pairs = [text.rpartition("=") for text in texts]
    for text, (pattern, _, name) in zip(texts, pairs, strict=True):
        if not (pattern and name):
            raise CompileError(f"--tensor-type {text}: write PATTERN=TYPE, attn_v=Q6_K for example")
    return tuple((pattern, name.upper()) for pattern, _, name in pairs)


def default_out(source: str, file_type: str) -> Path:
    """``vicuna-7b-v1.3-Q4_K_M`` in the working directory for ``lmsys/vicuna-7b-v1.3``."""
    name = Path(source.rstrip("/").partition("@")[0]).name
    return Path(f"{name.removesuffix('.gguf')}-{file_type}")


def default_threads() -> int:
    """All cores that this process may use."""
    return EngineSettings().threads
