"""llama.cpp's samplers in a row, which shape what a token is drawn from, and the draw."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from gorgon.llama.candidates import Candidates
from gorgon.llama.library import llama
from gorgon.noise import Noise
from gorgon.request import SamplingParams

PENALTY_WINDOW = 64  # tokens that penalties look back on, llama.cpp's default


class SamplerChain:
    """Bias, penalties, top-k, top-p, min-p and temperature of one request, without grammar.

    Args:
        params: which of them, and how strong.
        prompt: what penalties have seen.
        num_vocab: tokens of the model.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], num_vocab: int) -> None:
        self.noise = None if params.is_greedy else new_noise(params)
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for link in _links(params, num_vocab):
            llama.llama_sampler_chain_add(self._chain, link)
        if params.has_penalties:
            for token in prompt[-PENALTY_WINDOW:]:
                llama.llama_sampler_accept(self._chain, token)

    def choose(self, candidates: Candidates) -> int:
        """The next token of ``candidates``, not counted before it is observed."""
        candidates.apply(self._chain)
        return candidates.selected if self.noise is None else candidates.draw(self.noise)

    def observe(self, token: int) -> None:
        """Count a token that became part of the request."""
        llama.llama_sampler_accept(self._chain, token)
        if self.noise is not None:
            self.noise = self.noise.next()

    def close(self) -> None:
        """Free llama.cpp's part."""
        if self._chain:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def new_noise(params: SamplingParams) -> Noise:
    """That of the first draw; without a seed another one for each request."""
    seed = secrets.randbits(64) if params.seed is None else params.seed
    return Noise(seed, 0, params.temperature)


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
    return links


def _logit_bias(biases: Sequence[tuple[int, float]], num_vocab: int) -> Any:
    array = (llama.llama_logit_bias * len(biases))(*biases)
    return llama.llama_sampler_init_logit_bias(num_vocab, len(biases), array)
