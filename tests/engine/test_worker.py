"""The engine's thread: whatever breaks, it lives on and every request gets exactly one answer."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.engine.worker import Worker, WorkerState
from gorgon.errors import DecodeError, GorgonError, ModelError, NotReadyError, QueueFullError
from gorgon.request import FinishReason, Request, SpeculationParams, StepResult
from tests.engine.driver import BUSH, flat_cost, medusa
from tests.fake import Failures, FakeBackend, ToyModel

PATIENCE = 60.0


class Client:
    """A sink that keeps what it got, and may break."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.results: list[StepResult] = []
        self.done = threading.Event()
        self._breaks_at = breaks_at

    def __call__(self, results: Sequence[StepResult]) -> None:
        for result in results:
            self.results.append(result)
            if result.finish is not None:
                self.done.set()
            if len(self.results) - 1 == self._breaks_at:
                raise RuntimeError("the client left")

    @property
    def last(self) -> StepResult:
        assert self.done.wait(PATIENCE), "no answer"
        assert sum(result.finish is not None for result in self.results) == 1
        return self.results[-1]

    @property
    def tokens(self) -> list[int]:
        return [token for result in self.results for token in result.tokens]


class Bench:
    """A worker on a fake backend."""

    def __init__(self, backend: FakeBackend | None = None, **settings: Any) -> None:
        self.backend = backend or FakeBackend()
        self.engine = Engine(self.backend, EngineSettings(**settings), flat_cost())
        self.worker = Worker(lambda: self.engine, lambda _: None)
        self.worker.start()
        self.worker.wait_loaded(PATIENCE)
        self._count = 0

    def submit(
        self, max_tokens: int = 12, client: Client | None = None, tree: bool = True
    ) -> tuple[Request, Client]:
        speculation = medusa(BUSH) if tree else SpeculationParams(mode="normal")
        prompt = (1, 2, self._count % 30)
        request = Request(f"r{self._count}", prompt, max_tokens, speculation=speculation)
        self._count += 1
        client = client or Client()
        self.worker.submit(request, client)
        return request, client

    def expect_alive(self) -> None:
        """A further request gets the text of the model alone."""
        request, client = self.submit()
        assert client.last.finish in (FinishReason.LENGTH, FinishReason.STOP)
        assert client.tokens == self.backend.model.generate(request)

    def ask(self, question: Callable[[], None]) -> None:
        """Run something on the worker's thread, between two steps."""
        answered: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def answer() -> None:
            try:
                question()
            except Exception as error:
                answered.put(error)
            else:
                answered.put(None)

        self.worker._inbox.put(answer)
        error = answered.get(timeout=PATIENCE)
        if error is not None:
            raise error

    def close(self) -> None:
        self.ask(self.engine.check_integrity)
        self.worker.stop(PATIENCE)
        assert self.worker.state is WorkerState.STOPPED
        assert self.worker.num_open == 0
        assert self.backend.num_open_samplers == 0


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.mark.parametrize("kind", ["decodes", "prefills", "proposes"])
@pytest.mark.parametrize("call", [0, 1, 3])
def test_a_failing_call_fails_at_most_its_requests(kind: str, call: int) -> None:
    failures = Failures(**{kind: frozenset([call])})  # type: ignore[arg-type]
    bench = Bench(FakeBackend(failures=failures))
    clients = [bench.submit()[1] for _ in range(4)]
    for client in clients:
        assert client.last.error is None or isinstance(client.last.error, GorgonError)
    bench.expect_alive()
    bench.close()


@pytest.mark.parametrize("draw", [0, 1, 5, 17])
def test_a_sampler_that_breaks_fails_everyone_once(
    draw: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    countdown = iter(range(draw, -1, -1))
    make = bench.backend.make_sampler

    def make_breaking(*arguments: Any) -> Any:
        sampler = make(*arguments)
        inner = sampler.draw

        def breaking(*arguments: Any) -> int:
            if next(countdown, None) == 0:
                raise RuntimeError("the sampler broke")
            return inner(*arguments)

        monkeypatch.setattr(sampler, "draw", breaking, raising=True)
        return sampler

    monkeypatch.setattr(bench.backend, "make_sampler", make_breaking)
    clients = [bench.submit()[1] for _ in range(4)]
    errors = [client.last.error for client in clients]
    assert any(isinstance(error, DecodeError) for error in errors)
    bench.expect_alive()
    bench.close()


def test_a_sampler_that_cannot_be_made_fails_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    make = bench.backend.make_sampler

    def refuse_once(*arguments: Any) -> Any:
        monkeypatch.setattr(bench.backend, "make_sampler", make)
        raise RuntimeError("no sampler")

    monkeypatch.setattr(bench.backend, "make_sampler", refuse_once)
    _, client = bench.submit()
    assert isinstance(client.last.error, DecodeError)
    bench.expect_alive()
    bench.close()


@pytest.mark.parametrize("breaks_at", [0, 1, 4])
def test_a_client_that_breaks_is_cancelled_and_nobody_else(bench: Bench, breaks_at: int) -> None:
    _, leaving = bench.submit(60, Client(breaks_at))
    staying = [bench.submit(30) for _ in range(3)]
    for request, client in staying:
        assert client.last.error is None
        assert client.tokens == bench.backend.model.generate(request)
    assert len(leaving.results) <= breaks_at + 1


def test_a_step_calls_each_sink_once(bench: Bench) -> None:
    calls: list[list[str]] = []
    done = threading.Event()

    def sink(results: Sequence[StepResult]) -> None:
        calls.append([result.request_id for result in results])
        if sum(map(len, calls)) == 4 * 6:
            done.set()

    with bench.worker.hold():

        def submit_all() -> None:
            for i in range(4):
                plain = SpeculationParams(mode="normal")
                request = Request(f"together{i}", (1, 2, 3 + i), 6, speculation=plain)
                bench.worker.submit(request, sink)

        bench.ask(submit_all)
    assert done.wait(PATIENCE)
    assert calls == [[f"together{i}" for i in range(4)]] * 6


def test_cancelling_at_any_moment_gives_one_last_result(bench: Bench) -> None:
    chance = random.Random(5)
    for _ in range(40):
        request, client = bench.submit(40)
        if chance.random() < 0.7:
            for _ in range(chance.randrange(200)):
                pass
        bench.worker.cancel(request.id)
        bench.worker.cancel(request.id)
        assert client.last.finish in (FinishReason.CANCELLED, FinishReason.LENGTH)
    bench.expect_alive()


def test_a_full_queue_answers_and_goes_on() -> None:
    bench = Bench(max_running=1, max_waiting=2)
    clients = [bench.submit(40)[1] for _ in range(30)]
    errors = [client.last.error for client in clients]
    assert all(error is None or isinstance(error, QueueFullError) for error in errors)
    assert sum(error is None for error in errors) >= 2
    bench.expect_alive()
    bench.close()


def test_stopping_answers_everyone(bench: Bench) -> None:
    clients = [bench.submit(200)[1] for _ in range(8)]
    bench.ask(lambda: None)
    bench.worker.stop(PATIENCE)
    assert all(
        client.last.finish in (FinishReason.CANCELLED, FinishReason.LENGTH) for client in clients
    )
    with pytest.raises(NotReadyError):
        bench.submit()
    bench.worker = Worker(lambda: bench.engine, lambda _: None)
    bench.worker.start()
    bench.worker.wait_loaded(PATIENCE)


def test_draining_waits_for_a_series_that_is_held_and_lets_it_go_on(bench: Bench) -> None:
    with bench.worker.hold():
        _, client = bench.submit()
        assert client.last.finish is not None
        bench.worker.drain()
        assert bench.worker.num_open == 1
        with pytest.raises(NotReadyError):
            bench.submit()
        second = Client()
        bench.worker.submit(Request("second", (1, 2, 3), 4), second, is_held=True)
        assert second.last.finish is not None
    assert bench.worker.num_open == 0
    with pytest.raises(NotReadyError), bench.worker.hold():
        pass


def test_submitting_while_the_worker_stops_answers_or_refuses() -> None:
    for _ in range(20):
        bench = Bench()
        clients: list[Client] = []

        def keep_submitting(bench: Bench = bench, clients: list[Client] = clients) -> None:
            for _ in range(200):
                client = Client()
                try:
                    bench.submit(3, client)
                except NotReadyError:
                    return
                clients.append(client)

        thread = threading.Thread(target=keep_submitting)
        thread.start()
        bench.worker.stop(PATIENCE)
        thread.join(PATIENCE)
        for client in clients:
            assert client.last.finish is not None


def test_a_cache_that_cannot_be_emptied_ends_the_worker_but_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    def broken(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(bench.backend, "decode", broken)
    monkeypatch.setattr(bench.backend, "clear", broken)
    clients = []
    for _ in range(5):
        try:
            clients.append(bench.submit()[1])
        except NotReadyError:
            break
    for client in clients:
        assert isinstance(client.last.error, DecodeError)
    bench.worker._thread.join(PATIENCE)
    assert bench.worker.state is WorkerState.FAILED
    with pytest.raises(NotReadyError):
        bench.submit()


def test_a_failed_start_is_told_to_everyone() -> None:
    def load() -> Engine:
        raise ModelError("m.gguf: damaged")

    worker = Worker(load, lambda _: None)
    worker.start()
    with pytest.raises(ModelError, match="damaged"):
        worker.wait_loaded(PATIENCE)
    with pytest.raises(NotReadyError, match="failed"):
        worker.submit(Request("r", (1,), 1), Client())


def test_a_long_life_under_faults() -> None:
    """A soak: many clients, small cache, everything fails now and then."""
    chance = random.Random(11)
    failures = Failures(
        decodes=frozenset(chance.sample(range(400), 12)),
        prefills=frozenset(chance.sample(range(100), 6)),
        proposes=frozenset(chance.sample(range(400), 20)),
        leave_cells=True,
    )
    model = ToyModel(eog_ids=frozenset([3]))
    bench = Bench(
        FakeBackend(model, num_cells=150, max_sequences=14, failures=failures),
        max_running=5,
        max_waiting=400,
        cached_cells=60,
        trash_cells=16,
    )
    asked = []
    for _ in range(150):
        asked.append(bench.submit(chance.randrange(1, 40), tree=chance.random() < 0.7))
        if chance.random() < 0.2:
            bench.worker.cancel(chance.choice(asked)[0].id)
    for request, client in asked:
        whole = model.generate(request)
        if client.last.finish in (FinishReason.STOP, FinishReason.LENGTH):
            assert client.tokens == whole
        else:
            assert client.tokens == whole[: len(client.tokens)]
    bench.close()
