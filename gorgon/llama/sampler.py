"""Drawing tokens from logits: llama.cpp's samplers shape the distribution, noise decides.

A sampler belongs to one request: it counts the request's draws and, with penalties, remembers the
tokens seen so far. Every drawn token becomes part of the request, so drawing is accepting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gorgon.backend import Output, Sampler
from gorgon.errors import RequestError
from gorgon.llama import kernels
from gorgon.llama.chain import SamplerChain, new_noise
from gorgon.llama.context import Context
from gorgon.llama.grammar import GrammarSampler, check_grammar
from gorgon.llama.model import Model
from gorgon.noise import Noise
from gorgon.request import SamplingParams

_ABOVE_ROUNDING = 1e-3  # in a logit


class GreedySampler:
    """The argmax of the logits; the first one where several are equal, as llama.cpp does it."""

    failure = noise = None

    def __init__(self, context: Context) -> None:
        self._context, self._native = context, kernels.functions()

    def draw(self, output: Output, row: int) -> int:
        """See ``Sampler``."""
        if self._native is None:
            return int(output.logits[row].argmax())
        address, count = self._context.address(output, row), output.logits.shape[1]
        return int(self._native.gorgon_kernels_likeliest(address, count))

    def observe(self, token: int) -> None:
        """Greedy decoding remembers nothing."""

    def close(self) -> None:
        """Nothing to free."""


class TemperatureSampler:
    """Draws from all tokens at a temperature, in one call of the native library."""

    failure = None

    def __init__(self, context: Context, native: Any, params: SamplingParams) -> None:
        self._context, self._draw = context, native.gorgon_kernels_draw
        self.noise = new_noise(params)

    def draw(self, output: Output, row: int) -> int:
        """See ``Sampler``."""
        address, count = self._context.address(output, row), output.logits.shape[1]
        seed, place, temperature = self.noise
        self.noise = Noise(seed, place + 1, temperature)
        return int(self._draw(seed, place, address, count, temperature))

    def observe(self, token: int) -> None:
        """See ``Sampler``."""
        self.noise = self.noise.next()

    def close(self) -> None:
        """Nothing to free."""


class ChainSampler:
    """A llama.cpp sampler chain: bias, penalties, top-k, top-p, min-p, temperature; then a draw.

    Where nothing moves single logits, the chain sees only the tokens that can be drawn: what is
    left out of a vocabulary has a probability of less than 2^-24 in all, no more than what
    rounding takes from the sum of the others.
    """

    failure = None

    def __init__(self, context: Context, params: SamplingParams, prompt: Sequence[int]) -> None:
        num_vocab = context.model.info.num_vocab
        self._candidates = context.candidates
        self._chain = SamplerChain(params, prompt, num_vocab)
        moves_logits = params.has_penalties or bool(params.logit_bias)
        # top-p sums probabilities before the temperature sharpens them
        scale = max(1.0, params.temperature) if params.top_p < 1.0 else params.temperature
        gap = scale * math.log(num_vocab * 2.0**24)
        if params.min_p > 0.0 and params.top_p == 1.0:  # it takes out what is further below
            gap = min(gap, _ABOVE_ROUNDING - math.log(params.min_p))
        self._gap = None if moves_logits else gap

    @property
    def noise(self) -> Noise | None:
        """See ``Sampler``."""
        return self._chain.noise

    def draw(self, output: Output, row: int) -> int:
        """See ``Sampler``."""
        logits, candidates = output.logits[row], self._candidates
        if self._gap is None:
            candidates.fill(logits)
        else:
            candidates.fill_near(logits, self._gap)
        token = self._chain.choose(candidates)
        self.observe(token)
        return token

    def observe(self, token: int) -> None:
        """See ``Sampler``."""
        self._chain.observe(token)

    def close(self) -> None:
        """See ``Sampler``."""
        self._chain.close()


def check_sampling(model: Model, params: SamplingParams) -> None:
    """Refuse what no sampler can be made of.

    Raises:
        RequestError: for a token id that is not in the vocabulary, or a bad grammar.
    """
    for token, _ in params.logit_bias:
        if not 0 <= token < model.info.num_vocab:
            raise RequestError(
                f"logit_bias names token {token}; ids are 0 to {model.info.num_vocab - 1}",
                field="logit_bias",
            )
    if params.grammar is not None:
        check_grammar(model, params.grammar)


def make_sampler(context: Context, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
    """The sampler that ``params`` ask for; close it when the request ends.

    ``params`` must have passed ``check_sampling``.
    """
    if params.is_plain_greedy:
        return GreedySampler(context)
    if params.grammar is not None:
        chain = SamplerChain(params, prompt, context.model.info.num_vocab)
        return GrammarSampler(context.model, chain, params.grammar, params.grammar_trigger)
    native = kernels.functions()
    if native is not None and params.is_temperature_alone:
        return TemperatureSampler(context, native, params)
    return ChainSampler(context, params, prompt)
