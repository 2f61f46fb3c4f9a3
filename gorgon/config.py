"""Settings: frozen, validated, and the only place where a default is written.

Read from keyword arguments and from environment variables named ``GORGON_<FIELD>``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

CacheType = Literal["f16", "q8_0", "q4_0"]
CpuKernels = Literal["native", "repacked", "plain"]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _profile_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gorgon" / "profiles"


class EngineSettings(BaseSettings):
    """What the engine needs to know about model, memory and batching."""

    model_config = SettingsConfigDict(env_prefix="GORGON_", frozen=True, extra="forbid")

    model: Path | None = Field(
        default=None, description="GGUF file; the embedded model if left out"
    )
    heads: Path | None = Field(
        default=None, description="Medusa heads file; for the embedded model its own if left out"
    )
    threads: int = Field(default_factory=_num_cores, ge=1, le=512)
    gpu_layers: int = Field(
        default=-1, ge=-1, description="layers on the GPU, -1 for all that there are"
    )
    num_cells: int = Field(
        default=8192,
        ge=64,
        le=4_194_304,
        description="tokens that the KV cache holds, all requests",
    )
    cache_type: CacheType = "f16"
    flash_attention: bool = True
    cpu_kernels: CpuKernels = Field(
        default="native",
        description="native: ours for small batches; repacked: llama.cpp's with repacked weights; "
        "plain: llama.cpp's with weights as they are",
    )
    batch_sizes: tuple[int, ...] = Field(
        default=(), description="tokens a step to keep to, where a new size costs; see gorgon tune"
    )
    max_running: int = Field(
        default=32, ge=1, le=128, description="requests decoded at the same time"
    )
    max_waiting: int = Field(
        default=256, ge=0, description="requests queued before 429 is answered"
    )
    max_queue_time: float = Field(
        default=60.0, gt=0, description="seconds in the queue before 429 is answered"
    )
    prefill_chunk: int = Field(
        default=128,
        ge=1,
        le=4096,
        description="prompt tokens a step while others are being decoded",
    )
    prefill_batch: int = Field(
        default=512, ge=1, le=4096, description="prompt tokens a step while nobody is being decoded"
    )
    cached_cells: int = Field(
        default=2048, ge=0, description="cells that finished requests may keep as cached prefixes"
    )
    trash_cells: int = Field(
        default=512, ge=0, description="rejected cells kept in place so that cell order holds"
    )
    measure_seconds: float = Field(
        default=10.0, gt=0, le=600, description="spent at the first start on timing steps"
    )
    profile_folder: Path = Field(
        default_factory=_profile_folder, description="where such measurements are kept"
    )


class ServerSettings(BaseSettings):
    """Where the service listens and what it refuses."""

    model_config = SettingsConfigDict(env_prefix="GORGON_SERVER_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    chat_template: str | None = Field(
        default=None, description="'vicuna' or a Jinja file; the model's own if left out"
    )
    max_new_tokens: int = Field(
        default=512, ge=1, description="max_length where a request gives none"
    )
