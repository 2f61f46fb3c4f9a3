"""Settings: frozen, validated, and the only place where a default is written.

Read from keyword arguments and from environment variables named ``GORGON_<FIELD>``.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gorgon.errors import ConfigError

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
        default=None, description="Medusa heads file; if left out, the shipped ones where they fit"
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
    cached_cells: int | None = Field(
        default=None,
        ge=0,
        description="cells that finished requests may keep as cached prefixes; by default 2048, "
        "or 512 where every step reads all cells that are used",
    )
    trash_cells: int | None = Field(
        default=None,
        ge=0,
        description="rejected cells kept in place so that cell order holds; by default 512 where "
        "that keeps a text what it is alone",
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
    max_body_bytes: int = Field(
        default=1024 * 1024, ge=1024, description="largest body; a token is some 4 bytes"
    )
    chat_template: str | None = Field(
        default=None, description="'vicuna' or a Jinja file; the model's own if left out"
    )
    max_new_tokens: int = Field(
        default=512, ge=1, description="new tokens where a request gives no limit"
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="longest prompt; what the context holds if left out"
    )
    max_choices: int = Field(default=16, ge=1, le=128, description="answers of one request")
    request_timeout: float = Field(
        default=600.0, gt=0, description="seconds that one request may take in all"
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="time for running requests after SIGTERM"
    )
    model_name: str | None = Field(
        default=None, description="name in the API; the file's own if left out"
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), repr=False, description="keys that open the API, with ',' between"
    )
    api_key_file: Path | None = Field(default=None, description="file of further keys, one a line")
    allow_anonymous: bool = Field(default=False, description="serve other machines without any key")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="web origins that may call the API, with ',' between"
    )
    allow_grammar: bool = Field(
        default=True, description="take GBNF grammars from clients; an ambiguous one is slow"
    )
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = Field(default=False, description="write prompts and answers into the log")

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Environment variables hold lists as 'a,b'."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def read_keys(self) -> tuple[str, ...]:
        """All API keys, those of the file included.

        Raises:
            ConfigError: when the file cannot be read, or other machines could connect with no key.
        """
        keys = self.api_keys
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"api_key_file {self.api_key_file}: {error}") from error
            keys += tuple(line.strip() for line in lines if line.strip())
            if not keys:
                raise ConfigError(f"api_key_file {self.api_key_file} holds no key")
        if not keys and not self.is_local and not self.allow_anonymous:
            raise ConfigError(
                f"host {self.host} can be reached from other machines; give --api-key, "
                "or --allow-anonymous to serve everybody"
            )
        return keys

    @model_validator(mode="after")
    def _check_tls(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        return self
