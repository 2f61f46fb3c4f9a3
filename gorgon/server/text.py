"""Text around token ids: chat prompts, UTF-8-safe streams, stop strings. No HTTP here."""

from __future__ import annotations

import codecs
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.meta
import jinja2.sandbox

from gorgon.errors import ConfigError, ModelError, RequestError

# FastChat's "vicuna_v1.1" (fastchat/conversation.py): a space after the system text and after a
# user's turn, nothing after the </s> of an answer.
VICUNA_TEMPLATE = (
    "{% set ns = namespace(system='A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s "
    "questions.') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}"
    "{% endif %}{% endfor %}{{ ns.system + ' ' }}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + '</s>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATES = {"vicuna": VICUNA_TEMPLATE}


def choose_template(own: str | None, wanted: str | None) -> str:
    """The chat template to use.

    Args:
        own: the model's own, if it carries one.
        wanted: a name in ``TEMPLATES`` or the path of a Jinja file; None leaves the choice to
            the model, Vicuna's where it carries none.

    Raises:
        ConfigError: when ``wanted`` is neither.
    """
    if wanted is None:
        return own or VICUNA_TEMPLATE
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    try:
        return Path(wanted).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = " or ".join(TEMPLATES)
        raise ConfigError(
            f"chat_template: '{wanted}' is neither {names} nor a readable Jinja file"
        ) from error


class Vocabulary(Protocol):
    """What this module needs of a model."""

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token."""

    @property
    def eos(self) -> int | None:
        """The end-of-sequence token."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes that a token adds; control tokens add their written form if ``special``."""

    def control_text(self, token: int) -> str:
        """The written form of a token."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; ``extra`` is what else the template may read (``tool_calls`` ...)."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


class ChatPrompt:
    """Renders chats with a template, in Jinja's sandbox.

    Raises:
        ModelError: when the template does not parse.
    """

    def __init__(self, vocabulary: Vocabulary, template: str) -> None:
        self._vocabulary = vocabulary
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _to_json
        self.source = template
        try:
            self._template = environment.from_string(self.source)
            self.variables = jinja2.meta.find_undeclared_variables(environment.parse(self.source))
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is broken: {error}") from error

    def render(
        self, messages: Iterable[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The prompt text, up to where the assistant's answer begins.

        Raises:
            RequestError: when the template refuses the messages.
        """
        turns = [{"role": m.role, "content": m.content, **m.extra} for m in messages]
        try:
            return self._template.render(
                messages=turns,
                tools=tools,
                add_generation_prompt=True,
                bos_token=self._text(self._vocabulary.bos),
                eos_token=self._text(self._vocabulary.eos),
            )
        except Exception as error:  # a template is a program of the model's: it may raise anything
            reason = str(error) or type(error).__name__
            raise RequestError(f"the chat template refuses this: {reason}", "messages") from error

    def encode(
        self, messages: Iterable[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of ``render(messages)``, BOS added only where the text has none."""
        text = self.render(messages, tools)
        bos = self._text(self._vocabulary.bos)
        add = not (bos and text.startswith(bos))
        return self._vocabulary.tokenize(text, add_special=add, parse_special=True)

    def _text(self, token: int | None) -> str:
        return "" if token is None else self._vocabulary.control_text(token)


class TextStream:
    """Tokens in, text out: whole characters only, and nothing that a stop string removes.

    Text that may still turn out to be the beginning of a stop string is held back. Of all
    characters that the tokens gave, ``num_decoded``, the first ``num_released`` are out.
    ``special`` writes control tokens out.
    """

    def __init__(
        self, vocabulary: Vocabulary, stop: Sequence[str] = (), *, special: bool = False
    ) -> None:
        self._piece, self._special = vocabulary.piece, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        self.num_tokens = self.num_decoded = self.num_released = 0

    def push(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token releases; tokens after a stop string are not counted."""
        released = []
        for token in tokens:
            if self.stopped:
                break
            self.num_tokens += 1
            self._hold(self._decoder.decode(self._piece(token, special=self._special)))
            released.append(self._release())
        return released

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        self._hold(self._decoder.decode(b"", final=True))
        text = self._release()
        rest, self._held = ("", "") if self.stopped else (self._held, "")
        self.num_released += len(rest)
        return text + rest

    def _hold(self, text: str) -> None:
        self._held += text
        self.num_decoded += len(text)

    def _release(self) -> str:
        text = self._take_safe()
        self.num_released += len(text)
        return text

    def _take_safe(self) -> str:
        found = min(
            (at for at in map(self._held.find, self._stop) if at >= 0),
            default=-1,
        )
        if found >= 0:
            self.stopped = True
            keep, self._held = self._held[:found], ""
            return keep
        safe = len(self._held) - self._num_suspect()
        text, self._held = self._held[:safe], self._held[safe:]
        return text

    def _num_suspect(self) -> int:
        """Length of the longest tail that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As chat templates expect it: plain JSON, where Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
