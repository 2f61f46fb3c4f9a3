"""The one thread that owns model and cache; everyone else sends it notes.

    front end                          worker thread
    submit(request, sink)  --inbox-->  load, then: read inbox, step, hand results to sinks
    cancel(id)             --inbox-->

Sinks are called on the worker thread, once a step with all results that are theirs, and must only
pass them on (to an event loop, a queue). Every submitted request gets exactly one result with
``finish`` set, whatever happens.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gorgon.engine.engine import Engine
from gorgon.errors import DecodeError, GorgonError, NotReadyError
from gorgon.request import FinishReason, Request, StepResult

logger = logging.getLogger("gorgon.engine")

Sink = Callable[[Sequence[StepResult]], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step took, in seconds: in all, and of these in the model and in the heads."""

    seconds: float
    model_seconds: float
    heads_seconds: float


class Observer(Protocol):
    """Sees every step, on the worker thread; it must be quick and must not raise."""

    def observe(self, report: StepReport, results: Sequence[StepResult]) -> None:
        """After every step."""

    def observe_end(self, result: StepResult) -> None:
        """After the last result of every request, refusals included."""


class WorkerState(enum.StrEnum):
    """Where the worker is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Worker:
    """Runs an engine on its own thread.

    Args:
        load: makes the engine; called on the worker thread.
        close: frees what ``load`` made; called on the worker thread at the end.
        observer: sees every step, for metrics.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        close: Callable[[Engine], None],
        observer: Observer | None = None,
    ) -> None:
        self._load, self._close, self._observer = load, close, observer
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._sinks: dict[str, Sink] = {}
        self._thread = threading.Thread(target=self._run, name="gorgon-engine", daemon=True)
        self._loaded = threading.Event()
        self._gate = threading.Lock()  # nobody enters the inbox once the thread has left it
        self._num_held = 0
        self.state = WorkerState.LOADING
        self.error: Exception | None = None
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, for reading what never changes; its methods belong to the worker thread.

        Raises:
            NotReadyError: before it is loaded.
        """
        if self._engine is None:
            raise NotReadyError(f"the model is not there ({self.state}); try again later")
        return self._engine

    @property
    def num_open(self) -> int:
        """Requests that have not got their last result yet, and series that are held."""
        return len(self._sinks) + self._num_held

    def start(self) -> None:
        """Start loading; returns at once."""
        self._thread.start()

    def wait_loaded(self, timeout: float | None = None) -> None:
        """Wait until the engine can serve.

        Raises:
            GorgonError: when loading failed.
        """
        self._loaded.wait(timeout)
        if self.error is not None:
            raise self.error

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Count a series of requests as open from its first to its last.

        Draining waits for it, and lets its later requests in; see ``submit``.

        Raises:
            NotReadyError: unless the worker is ready.
        """
        with self._gate:
            self._check_serving(False)
            self._num_held += 1
        try:
            yield
        finally:
            with self._gate:
                self._num_held -= 1

    def _check_serving(self, is_held: bool) -> None:
        if self.state is not WorkerState.READY and not (
            is_held and self.state is WorkerState.DRAINING
        ):
            raise NotReadyError(f"not serving ({self.state}); try again later")

    def submit(self, request: Request, sink: Sink, is_held: bool = False) -> None:
        """Hand a request over; every outcome, refusals included, reaches ``sink``.

        Args:
            request: what to generate.
            sink: called with every result; sinks that are equal are called together.
            is_held: whether the request is of a series that is held.

        Raises:
            NotReadyError: unless the worker is ready; draining is enough where ``is_held``.
        """
        with self._gate:
            self._check_serving(is_held)
            self._inbox.put(lambda: self._accept(request, sink))

    def cancel(self, request_id: str) -> None:
        """End a request early; its sink gets a last result if it was still open."""
        self._inbox.put(lambda: self._cancel(request_id))

    def inspect(self, read: Callable[[Engine], T]) -> Future[T]:
        """What ``read`` gives, called on the worker thread between two steps.

        Raises:
            NotReadyError: unless the engine is there.
        """
        future: Future[T] = Future()
        with self._gate:
            if self.state not in (WorkerState.READY, WorkerState.DRAINING):
                raise NotReadyError(f"the model is not there ({self.state}); try again later")
            self._inbox.put(lambda: _fulfil(future, lambda: read(self.engine)))
        return future

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; it may be inside llama.cpp long after ``stop`` gave up."""
        return self._thread.is_alive()

    def drain(self) -> None:
        """Take no new requests; running ones finish."""
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING

    def stop(self, timeout: float = 10.0) -> None:
        """Cancel what runs, free everything and end the thread."""
        self.drain()
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join(timeout)

    # -- on the worker thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._engine = self._load()
        except Exception as error:
            self.error, self.state = error, WorkerState.FAILED
            if not isinstance(error, GorgonError):
                logger.exception("loading failed")
            self._loaded.set()
            return
        self.state = WorkerState.READY
        self._loaded.set()
        while self.state not in (WorkerState.STOPPED, WorkerState.FAILED):
            try:
                self._read_inbox()
                self._step()
            except Exception as error:
                logger.exception("a step failed; its requests are dropped and the cache is emptied")
                self._start_over(DecodeError(f"the engine failed: {error}"))
        self._close(self._engine)

    def _read_inbox(self) -> None:
        """Do everything that was asked for; sleep only when there is nothing else to do."""
        if not self.engine.has_work:
            self._inbox.get()()
        self._read_inbox_to_the_end()

    def _step(self) -> None:
        if not self.engine.has_work:
            return
        results = self.engine.step()
        if self._observer is not None:
            times = self.engine.times
            self._observer.observe(StepReport(times.total, times.model, times.heads), results)
        self._deliver(results)

    def _start_over(self, failure: GorgonError) -> None:
        """Fail everyone who waits for an answer, also those whom the engine forgot midway."""
        try:
            self.engine.fail_all(failure)
        except Exception as error:
            logger.exception("the cache cannot be emptied; the engine has ended")
            with self._gate:
                self.error, self.state = error, WorkerState.FAILED
            self._read_inbox_to_the_end()
        self._deliver([_failed(request_id, failure) for request_id in self._sinks])

    def _read_inbox_to_the_end(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()

    def _accept(self, request: Request, sink: Sink) -> None:
        self._sinks[request.id] = sink
        if self.state is WorkerState.FAILED:
            return  # answered with all others
        try:
            self.engine.submit(request)
        except Exception as error:
            if not isinstance(error, GorgonError):
                logger.exception("request %s could not be queued", request.id)
            self._deliver([_failed(request.id, error)])

    def _cancel(self, request_id: str) -> None:
        if request_id in self._sinks:
            failed = self.state is WorkerState.FAILED
            stats = None if failed else self.engine.cancel(request_id)
            self._deliver([StepResult(request_id, finish=FinishReason.CANCELLED, stats=stats)])

    def _deliver(self, results: Iterable[StepResult]) -> None:
        batches: dict[Sink, list[StepResult]] = {}
        for result in results:
            sink = self._sinks.get(result.request_id)
            if sink is None:
                continue
            if result.finish:
                del self._sinks[result.request_id]
                if self._observer is not None:
                    self._observer.observe_end(result)
            batches.setdefault(sink, []).append(result)
        for sink, batch in batches.items():
            try:
                sink(batch)
            except Exception:
                logger.exception("a client is gone, and with it %d requests", len(batch))
                self._forget(batch)

    def _forget(self, results: Iterable[StepResult]) -> None:
        for result in results:
            if self._sinks.pop(result.request_id, None) is not None:
                self.engine.cancel(result.request_id)

    def _stop(self) -> None:
        with self._gate:
            self.state = WorkerState.STOPPED
        self._read_inbox_to_the_end()
        for request_id in list(self._sinks):
            self._cancel(request_id)


def _failed(request_id: str, error: Exception) -> StepResult:
    return StepResult(request_id, finish=FinishReason.ERROR, error=error)


def _fulfil(future: Future[T], read: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(read())
    except Exception as error:
        future.set_exception(error)
