"""Streams of text: whole characters, and nothing that a stop string removes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.errors import ConfigError, ModelError, RequestError
from gorgon.server.text import ChatPrompt, Message, TextStream, choose_template


class ByteVocabulary:
    """One token per byte; 256 is BOS, 257 EOS."""

    bos: int | None = 256
    eos: int | None = 257

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return ([256] if add_special else []) + list(text.encode())

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if token < 256 else b""

    def control_text(self, token: int) -> str:
        return {256: "<s>", 257: "</s>"}[token]


def stream(text: bytes, stop: list[str], sizes: list[int]) -> tuple[str, list[str], TextStream]:
    """Push ``text`` in groups of ``sizes`` tokens; the whole and the released parts."""
    out = TextStream(ByteVocabulary(), stop)
    parts: list[str] = []
    tokens, at = list(text), 0
    for size in [*sizes, len(tokens)]:
        parts += out.push(tokens[at : at + size])
        at += size
    parts.append(out.flush())
    return "".join(parts), parts, out


@given(st.text(), st.lists(st.integers(1, 5)))
def test_text_comes_out_as_it_went_in(text: str, sizes: list[int]) -> None:
    assert stream(text.encode(), [], sizes)[0] == text


@given(
    st.text(alphabet="ab¡✓🙂"),
    st.lists(st.text(alphabet="ab¡✓🙂", min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.integers(1, 5)),
)
def test_text_ends_before_the_first_stop_string(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    whole, _, out = stream(text.encode(), stop, sizes)
    assert text.startswith(whole)
    assert not any(s in whole for s in stop)
    assert out.stopped == any(s in text for s in stop)
    if out.stopped:
        assert any(text[len(whole) :].startswith(s) for s in stop)
    else:
        assert whole == text


def test_half_a_character_is_never_released() -> None:
    out = TextStream(ByteVocabulary())
    emoji = "🙂".encode()
    assert out.push(list(emoji[:3])) == ["", "", ""]
    assert out.push([emoji[3]]) == ["🙂"]


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assert stream(b"a\xff\xc3", [], [])[0] == "a��"


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    _, _, out = stream(b"one. two", [". "], [8])
    assert out.num_tokens == len("one. ")


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    out = TextStream(ByteVocabulary(), ["###"])
    assert "".join(out.push(list(b"a##"))) == "a"
    assert "".join(out.push(list(b"b"))) == "##b"


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def fastchat(messages: list[tuple[str, str | None]]) -> str:
    """``Conversation.get_prompt`` of FastChat 0.2.36 for ``vicuna_v1.1`` (ADD_COLON_TWO)."""
    seps = [" ", "</s>"]
    text = SYSTEM + seps[0]
    for i, (role, message) in enumerate(messages):
        text += role + ": " + message + seps[i % 2] if message else role + ":"
    return text


@pytest.mark.parametrize(
    "turns",
    [
        [Message("user", "Hi")],
        [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye\n{{ 1 }}")],
    ],
    ids=["one turn", "two turns"],
)
def test_models_without_a_template_get_fastchats_vicuna_format(turns: list[Message]) -> None:
    chat = ChatPrompt(ByteVocabulary(), choose_template(None, None))
    said: list[tuple[str, str | None]] = [
        ("USER" if m.role == "user" else "ASSISTANT", m.content) for m in turns
    ]
    assert chat.render(turns) == fastchat([*said, ("ASSISTANT", None)])


def test_prompts_are_what_fastchat_printed() -> None:
    """Recorded from FastChat 0.2.36: ``get_conv_template("vicuna_v1.1").get_prompt()``."""
    chat = ChatPrompt(ByteVocabulary(), choose_template(None, None))
    turns = [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "What\nis 2?")]
    assert chat.render(turns[:1]) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: Hi ASSISTANT:"
    )
    assert chat.render(turns) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: Hi "
        "ASSISTANT: Hello!</s>USER: What\nis 2? ASSISTANT:"
    )


def test_a_system_turn_replaces_vicunas_own() -> None:
    chat = ChatPrompt(ByteVocabulary(), choose_template(None, None))
    text = chat.render([Message("system", "Be brief."), Message("user", "Hi")])
    assert text == "Be brief. USER: Hi ASSISTANT:"


def test_templates_are_chosen_by_name_file_or_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    assert choose_template("own", None) == "own"
    assert choose_template("own", "vicuna") == choose_template(None, None)
    assert choose_template("own", str(file)) == "{{ messages[0].content }}"
    with pytest.raises(ConfigError, match="chat_template"):
        choose_template("own", "llama9")


def test_bos_is_not_doubled() -> None:
    vocabulary = ByteVocabulary()
    with_bos = ChatPrompt(vocabulary, "{{ bos_token }}{{ messages[0].content }}")
    without = ChatPrompt(vocabulary, "{{ messages[0].content }}")
    assert with_bos.encode([Message("user", "x")]) == list(b"<s>x")
    assert without.encode([Message("user", "x")]) == [256, *b"x"]


def test_a_template_may_refuse() -> None:
    chat = ChatPrompt(ByteVocabulary(), "{{ raise_exception('no system turns') }}")
    with pytest.raises(RequestError, match="no system turns"):
        chat.render([Message("system", "x")])


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(999999999) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ messages[0].content.no.such }}",
        "{{ messages | sort }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_a_template_stumbles_on_is_said(template: str) -> None:
    chat = ChatPrompt(ByteVocabulary(), template)
    with pytest.raises(RequestError, match=r"the chat template refuses this: ."):
        chat.render([Message("user", "x"), Message("user", "y")])


def test_a_template_cannot_reach_python() -> None:
    chat = ChatPrompt(ByteVocabulary(), "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(RequestError):
        chat.render([Message("user", "x")])


def test_a_broken_template_is_a_broken_model() -> None:
    with pytest.raises(ModelError, match="template"):
        ChatPrompt(ByteVocabulary(), "{% if %}")
