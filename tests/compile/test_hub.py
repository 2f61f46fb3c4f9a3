"""Names on the hub: download, resumption, and one line where there is no network or no model."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from gorgon.compile import converter, manifest
from gorgon.compile.model import compile_model
from gorgon.compile.order import Order
from gorgon.errors import CompileError
from gorgon.llama.quantize import Quantization
from tests.compile.hub_server import Hub, serve

SHARD = "model-00001-of-00004.safetensors"

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def order(tmp_path: Path, name: str = "owner/model") -> Order:
    return Order(name, tmp_path / "out", Quantization("Q8_0"), num_tokens=0)


def refusal(tmp_path: Path, console: Console, name: str = "owner/model") -> str:
    with pytest.raises(CompileError) as refused:
        compile_model(order(tmp_path, name), console)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    return message


def test_a_model_is_downloaded_and_compiled(
    vicuna: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Hub(vicuna)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = manifest.read(compile_model(order(tmp_path), console))
    assert found.model.name == "model-Q8_0.gguf"


def test_a_broken_connection_is_taken_up_again(
    converter_python: Path, vicuna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Hub(vicuna, broken=SHARD, num_breaks=1)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = converter.download(converter_python, "owner/model", lambda fraction: None)
    assert hub.fetched.count(SHARD) == 2
    for path in vicuna.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_after_a_stop_only_unfinished_files_are_fetched(
    converter_python: Path,
    vicuna: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(Hub(vicuna, broken=SHARD, num_breaks=1000)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert "no answer from the hub" in refusal(tmp_path, console)
    done = set(hub.fetched) - {SHARD}
    with serve(Hub(vicuna)) as again:
        monkeypatch.setenv("HF_ENDPOINT", again.url)
        converter.download(converter_python, "owner/model", lambda fraction: None)
    assert done
    assert set(again.fetched) == {p.name for p in vicuna.iterdir()} - done


def test_without_a_network_it_says_so(
    converter_python: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "no answer from the hub" in refusal(tmp_path, console)


def test_a_name_that_the_hub_does_not_know(
    vicuna: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Hub(vicuna)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert "no such model on the hub" in refusal(tmp_path, console, "nobody/nothing")


def test_a_full_disk_is_seen_before_the_download(
    vicuna: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(Hub):
        def describe(self) -> list[dict[str, object]]:
            return [{**each, "size": 1 << 50} for each in super().describe()]

    with serve(Endless(vicuna)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert "the download needs" in refusal(tmp_path, console)
