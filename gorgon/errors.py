"""Every error that Gorgon raises on purpose, each with the HTTP status that it maps to.

A message names the field or the file that is wrong and what to do about it: it is shown to users
as it stands. Errors that are our own bugs are assertions, not classes of this tree.
"""

from __future__ import annotations


class GorgonError(Exception):
    """Base of all; ``status`` is the HTTP status, ``code`` a stable word for clients."""

    status = 500
    code = "internal_error"


class ConfigError(GorgonError):
    """A setting is out of range or two settings contradict each other."""

    code = "bad_config"


class ModelError(GorgonError):
    """A model file is missing, damaged, or of a kind that Gorgon does not serve."""

    code = "bad_model"


class HeadsError(GorgonError):
    """A heads file is missing, damaged, or made for another model."""

    code = "bad_heads"


class CompileError(GorgonError):
    """A model cannot be compiled: its source, a type, disk space or the network is the reason."""

    code = "compile_failed"


class TrainingError(GorgonError):
    """Heads cannot be trained: bad prompts, a full disk, a damaged file of an earlier run."""

    code = "training_failed"


class RequestError(GorgonError):
    """What the client sent cannot be served; ``field`` names the culprit."""

    status = 400
    code = "bad_request"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class QueueFullError(GorgonError):
    """Too many requests wait already; ``retry_after`` is in seconds."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AuthError(GorgonError):
    """The API key is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class UnknownModelError(RequestError):
    """The client asked for a model that is not the served one."""

    status = 404
    code = "model_not_found"


class TimeLimitError(GorgonError):
    """A request took longer than the server allows."""

    status = 504
    code = "timeout"


class NotReadyError(GorgonError):
    """The engine is loading, draining or stopped."""

    status = 503
    code = "not_ready"


class DecodeError(GorgonError):
    """llama.cpp refused a batch; the requests of that batch fail, the engine goes on."""

    code = "decode_failed"


class BenchError(GorgonError):
    """A benchmark cannot go on: a bad prompt file, a server that does not start or answer."""

    code = "bench_failed"
