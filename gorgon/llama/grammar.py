"""Drawing tokens that continue a text of a grammar, with llama.cpp's grammar engine.

llama.cpp ends the process when it accepts a token that its grammar does not allow, so every token
is tested before it is accepted, and a grammar is checked before llama.cpp reads it (``gbnf``).
"""

from __future__ import annotations

import time

from gorgon.backend import Floats, Output
from gorgon.errors import RequestError
from gorgon.llama import gbnf
from gorgon.llama.candidates import Candidates
from gorgon.llama.chain import SamplerChain
from gorgon.llama.library import llama
from gorgon.llama.model import Model
from gorgon.noise import Noise

MAX_DRAW_SECONDS = 5.0  # everybody waits for a draw


def check_grammar(model: Model, grammar: str) -> None:
    """Refuse a grammar that llama.cpp cannot follow with this model's tokens.

    Raises:
        RequestError: with what is wrong.
    """
    gbnf.check(grammar)
    if not model.eog_ids:
        raise RequestError("this model has no token that ends a text; use no grammar", "grammar")
    sampler = llama.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if not sampler:
        raise RequestError("llama.cpp does not accept this grammar", "grammar")
    llama.llama_sampler_free(sampler)


class GrammarSampler:
    """A sampler chain that a grammar confines.

    A token is first drawn without the grammar; only if the grammar refuses it, the whole
    vocabulary is put through the grammar and drawn from again, with the same noise: what is largest
    of all and fits is largest of what fits. So it is the same as filtering always (with neither
    top-k, top-p nor min-p, which then see other tokens), at a fraction of the cost.

    Args:
        model: gives vocabulary and end-of-generation tokens.
        chain: the other samplers and the draw; owned by this one from here on.
        grammar: GBNF that passed ``check_grammar``.
        trigger: the text from which on the grammar holds; None is from the start.
    """

    def __init__(
        self, model: Model, chain: SamplerChain, grammar: str, trigger: str | None
    ) -> None:
        self._model, self._chain = model, chain
        self._grammar = llama.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        assert self._grammar, "the grammar was not checked"
        self._all, self._one = Candidates(model.info.num_vocab), Candidates(1)
        self._trigger, self._written = trigger and trigger.encode(), b""
        self._is_dead = False
        self.failure: RequestError | None = None

    @property
    def noise(self) -> Noise | None:
        """See ``Sampler``."""
        return self._chain.noise

    def draw(self, output: Output, row: int) -> int:
        """See ``Sampler``; an end-of-generation token where no token can continue the text."""
        logits, began = output.logits[row], time.perf_counter()
        self._all.fill(logits)
        token = self._chain.choose(self._all)
        if not self._fits(token):
            token = self._draw_fitting(logits)
        self.observe(token)
        if time.perf_counter() - began > MAX_DRAW_SECONDS:
            self.failure = RequestError(
                f"a token took more than {MAX_DRAW_SECONDS:g} s: there are too many ways to read "
                "a text by this grammar",
                "grammar",
            )
            self._is_dead = True
        return token

    def observe(self, token: int) -> None:
        """See ``Sampler``."""
        self._chain.observe(token)
        if self._trigger:
            self._watch(token)
        elif self._fits(token):
            llama.llama_sampler_accept(self._grammar, token)
        else:
            self._is_dead = True

    def _draw_fitting(self, logits: Floats) -> int:
        self._all.fill(logits)
        self._all.forbid(self._model.unwritable_ids)
        self._all.apply(self._grammar)
        if self._is_dead or self._all.are_all_out:
            self._is_dead = True
            return min(self._model.eog_ids)
        return self._chain.choose(self._all)

    def _fits(self, token: int) -> bool:
        if self._trigger:
            return True
        if self._is_dead or token in self._model.unwritable_ids:
            return False
        self._one.fill_one(token)
        self._one.apply(self._grammar)
        return not self._one.are_all_out

    def _watch(self, token: int) -> None:
        """Begin with the grammar when the trigger is written and nothing but blanks after it."""
        assert self._trigger
        self._written += self._model.piece(token, special=True)
        before, found, after = self._written.partition(self._trigger)
        if found and not after.strip():
            self._trigger = None
        self._written = (after if found else before)[-len(self._trigger or b"") :]

    def close(self) -> None:
        """See ``Sampler``."""
        self._chain.close()
        if self._grammar:
            llama.llama_sampler_free(self._grammar)
            self._grammar = None
