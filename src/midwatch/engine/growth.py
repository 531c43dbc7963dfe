"""How an answer grows: a drawn token, what a grammar forces after it, and why it ends."""

from __future__ import annotations

from midwatch.engine.request import TokenLogprob, TopLogprob
from midwatch.engine.sampler import NOTHING, Drawn
from midwatch.engine.sequence import Sequence
from midwatch.engine.tokenizer import Tokenizer


class Growth:
    """Adds tokens to answers of one model. `num_forced` counts those that a grammar left no choice in."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_forced = 0

    def add(self, sequence: Sequence, drawn: Drawn) -> None:
        """Add a sampled token and what the grammar forces after it, or finish the sequence."""
        params, token_id = sequence.params, drawn.token_id
        if token_id == NOTHING:
            sequence.finish_reason = "error"
            return
        ends = token_id in self._tokenizer.eos_ids and not (params.ignore_eos and sequence.grammar is None)
        if ends or token_id in params.stop_token_ids:
            sequence.num_hidden_tokens += 1
            sequence.finish_reason = "stop"
            return
        if sequence.grammar is not None and not sequence.grammar.accept(token_id):
            sequence.finish_reason = "error"
            return
        sequence.append(token_id, self.logprob(drawn))
        self.force(sequence)

    def force(self, sequence: Sequence) -> None:
        """Append what the grammar leaves no choice in, then see whether the answer is over."""
        grammar = sequence.grammar
        if grammar is not None and sequence.finish_reason is None:
            for token_id in grammar.forced():
                full = sequence.num_completion_tokens >= sequence.max_tokens
                if full or sequence.finish_reason is not None or token_id in self._tokenizer.eos_ids:
                    break
                logprob = None
                if sequence.params.logprobs is not None:
                    token = self._tokenizer.token_bytes(token_id)
                    logprob = TokenLogprob(token_id=token_id, token=token, logprob=0.0, forced=True)
                sequence.append(token_id, logprob)
                self.num_forced += 1
        if sequence.finish_reason is not None or sequence.pooling is not None:
            return
        if grammar is not None and grammar.error:
            sequence.finish_reason = "error"
        elif grammar is not None and grammar.complete:
            sequence.finish_reason = "stop"
        elif sequence.num_completion_tokens >= sequence.max_tokens:
            sequence.finish_reason = "length"

    def logprob(self, drawn: Drawn) -> TokenLogprob | None:
        """What a caller hears of a drawn token's probability; None if it was not asked for."""
        if drawn.logprob is None:
            return None
        token_bytes = self._tokenizer.token_bytes
        top = tuple(TopLogprob(token_id=id_, token=token_bytes(id_), logprob=value) for id_, value in drawn.top)
        return TokenLogprob(token_id=drawn.token_id, token=token_bytes(drawn.token_id), logprob=drawn.logprob, top=top)
