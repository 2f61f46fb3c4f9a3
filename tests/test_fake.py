"""The fake backend refuses what llama.cpp refuses and notices what it would notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gorgon.backend import Backend, BatchRow
from gorgon.errors import DecodeError
from gorgon.request import Request, SamplingParams
from tests.fake import FakeBackend, FakeSampler, ToyModel


def rows(*specs: tuple[int, int, tuple[int, ...]]) -> list[BatchRow]:
    return [BatchRow(*spec) for spec in specs]


def test_it_fulfils_the_contract() -> None:
    backend: Backend = FakeBackend()
    assert backend.last_position(0) == -1


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (rows((1, 4, (1,))), "gap"),
        (rows((1, 2, (1,))), "gap"),
        (rows((1, 3, (1,)), (1, 5, (1,))), "not continuous"),
        (rows((1, 4, (1,)), (1, 3, (1,))), "decreasing"),
        (rows((1, 3, (1, 2))), "diverged"),
        (rows((99, 3, (1,))), "invalid token"),
        (rows((1, 0, (99,))), "invalid id"),
        (rows(*((1, 3 + i, (1,)) for i in range(14))), "no room"),
    ],
)
def test_it_refuses_what_llama_cpp_refuses(batch: list[BatchRow], why: str) -> None:
    backend = FakeBackend(num_cells=16)
    backend.prefill(rows((1, 0, (1,)), (1, 1, (1,)), (1, 2, (1,))))
    with pytest.raises(DecodeError, match=why):
        backend.decode(batch)
    assert backend.num_used == 3


def lose_a_cell(backend: FakeBackend) -> None:
    backend.remove(1, 1, 2)


def hold_too_much(backend: FakeBackend) -> None:
    backend.share(2, 1, 0, 9)


def hold_an_equal_cell_of_another(backend: FakeBackend) -> None:
    backend.remove(1, 2)
    backend.share(2, 1, 2, 3)


@pytest.mark.parametrize("spoil", [lose_a_cell, hold_too_much, hold_an_equal_cell_of_another])
def test_what_a_row_sees_decides_its_logits(spoil: Callable[[FakeBackend], None]) -> None:
    outputs = []
    for spoiled in (False, True):
        backend = FakeBackend()
        backend.prefill(rows((1, 0, (1,)), (2, 1, (1,)), (3, 2, (1,))))
        backend.prefill(rows((4, 0, (2,)), (5, 1, (2,)), (3, 2, (2,))))
        if spoiled:
            spoil(backend)
        outputs.append(backend.decode(rows((6, 3, (1,)))).logits)
    assert (outputs[0] != outputs[1]).any()


def test_the_toy_model_alone_is_the_fake_backend_token_by_token() -> None:
    model = ToyModel()
    request = Request("r", (3, 1, 4), 20, SamplingParams(temperature=1.0, seed=5))
    backend, sampler = FakeBackend(model), FakeSampler(request.sampling, request.prompt_ids)
    tokens = list(request.prompt_ids)
    backend.prefill(rows(*((t, i, (7,)) for i, t in enumerate(tokens[:-1]))))
    while len(tokens) < 23:
        output = backend.decode(rows((tokens[-1], len(tokens) - 1, (7,))))
        tokens.append(sampler.draw(output, 0))
    assert tokens[3:] == model.generate(request)
