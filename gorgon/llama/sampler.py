"""Drawing tokens from logits with llama.cpp's samplers.

A sampler belongs to one request: it carries the request's random state and, with penalties, the
tokens seen so far. Every drawn token becomes part of the request, so drawing is accepting.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from gorgon.backend import Output, Sampler
from gorgon.errors import RequestError
from gorgon.llama import kernels
from gorgon.llama.context import Context
from gorgon.llama.grammar import GrammarSampler, check_grammar
from gorgon.llama.library import llama
from gorgon.llama.model import Model
from gorgon.request import SamplingParams

PENALTY_WINDOW = 64  # tokens that penalties look back on, llama.cpp's default
_RANDOM_SEED = 0xFFFFFFFF
_ABOVE_ROUNDING = 1e-3  # in a logit


class GreedySampler:
    """The argmax of the logits; the first one where several are equal, as llama.cpp does it."""

    failure = None

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
    """Draws from all tokens at a temperature: what a chain of llama.cpp would draw, but faster.

    It has the random numbers of llama.cpp's sampler for the seed, and like it takes the first token
    up to which the probabilities sum to a random part of one. Only the rounding of sums differs,
    by about 1e-7 of the whole.
    """

    failure = None

    def __init__(self, context: Context, native: Any, params: SamplingParams) -> None:
        self._context, self._native, self._temperature = context, native, params.temperature
        seed = secrets.randbits(32) if params.seed is None else params.seed
        self._random = native.gorgon_kernels_new_random(seed)

    def draw(self, output: Output, row: int) -> int:
        """See ``Sampler``."""
        address, count = self._context.address(output, row), output.logits.shape[1]
        draw = self._native.gorgon_kernels_draw
        return int(draw(self._random, address, count, self._temperature))

    def observe(self, token: int) -> None:
        """What is drawn does not depend on what was drawn before."""

    def close(self) -> None:
        """See ``Sampler``."""
        if self._random:
            self._native.gorgon_kernels_free_random(self._random)
            self._random = None


class ChainSampler:
    """A llama.cpp sampler chain: bias, penalties, top-k, top-p, min-p, temperature, draw.

    Where nothing moves single logits, the chain sees only the tokens that can be drawn: what is
    left out of a vocabulary has a probability of less than 2^-24 in all, no more than what
    rounding takes from the sum of the others.
    """

    failure = None

    def __init__(self, context: Context, params: SamplingParams, prompt: Sequence[int]) -> None:
        num_vocab = context.model.info.num_vocab
        self._candidates = context.candidates
        self._chain = make_chain(params, prompt, num_vocab)
        moves_logits = params.has_penalties or bool(params.logit_bias)
        # top-p sums probabilities before the temperature sharpens them
        scale = max(1.0, params.temperature) if params.top_p < 1.0 else params.temperature
        gap = scale * math.log(num_vocab * 2.0**24)
        if params.min_p > 0.0 and params.top_p == 1.0:  # it takes out what is further below
            gap = min(gap, _ABOVE_ROUNDING - math.log(params.min_p))
        self._gap = None if moves_logits else gap

    def draw(self, output: Output, row: int) -> int:
        """See ``Sampler``."""
        logits, candidates = output.logits[row], self._candidates
        if self._gap is None:
            candidates.fill(logits)
        else:
            candidates.fill_near(logits, self._gap)
        candidates.apply(self._chain)
        token = candidates.selected
        self.observe(token)
        return token

    def observe(self, token: int) -> None:
        """See ``Sampler``."""
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """See ``Sampler``."""
        if self._chain:
            llama.llama_sampler_free(self._chain)
            self._chain = None


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
        chain = make_chain(params, prompt, context.model.info.num_vocab)
        return GrammarSampler(context.model, chain, params.grammar, params.grammar_trigger)
    native = kernels.functions()
    if native is not None and params.is_temperature_alone:
        return TemperatureSampler(context, native, params)
    return ChainSampler(context, params, prompt)


def make_chain(params: SamplingParams, prompt: Sequence[int], num_vocab: int) -> Any:
    """A llama.cpp sampler chain without grammar, which has seen the prompt's last tokens."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for link in _links(params, num_vocab):
        llama.llama_sampler_chain_add(chain, link)
    if params.has_penalties:
        for token in prompt[-PENALTY_WINDOW:]:
            llama.llama_sampler_accept(chain, token)
    return chain


def _links(params: SamplingParams, num_vocab: int) -> list[Any]:
    links = []
    if params.logit_bias:
        links.append(_logit_bias(params.logit_bias, num_vocab))
    if params.has_penalties:
        links.append(
            llama.llama_sampler_init_penalties(
                num_vocab,
                PENALTY_WINDOW,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        )
    if params.is_greedy:
        links.append(llama.llama_sampler_init_greedy())
        return links
    if params.top_k > 0:
        links.append(llama.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1.0:
        links.append(llama.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0.0:
        links.append(llama.llama_sampler_init_min_p(params.min_p, 1))
    links.append(llama.llama_sampler_init_temp(params.temperature))
    seed = _RANDOM_SEED if params.seed is None else params.seed
    links.append(llama.llama_sampler_init_dist(seed))
    return links


def _logit_bias(biases: Sequence[tuple[int, float]], num_vocab: int) -> Any:
    array = (llama.llama_logit_bias * len(biases))(*biases)
    return llama.llama_sampler_init_logit_bias(num_vocab, len(biases), array)
