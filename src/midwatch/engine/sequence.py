"""One answer inside the engine: its tokens, how many of them are computed, and the text made so far."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence as Ids
from hashlib import blake2b
from typing import TYPE_CHECKING

from midwatch.engine.request import FinishReason, Output, Pooling, SamplingParams, TokenLogprob
from midwatch.engine.tokenizer import Detokenizer, Spelling

if TYPE_CHECKING:
    from midwatch.engine.grammar import Grammar

PENDING = -1
"""A token that a step in flight will draw."""


class Sequence:
    """The state of one answer. `num_computed_tokens` of `token_ids` have their keys and values stored.

    `token_ids` is the prompt and then the answer; its last entry is `PENDING` while a step in flight draws it.
    `draft_ids` are guesses of what follows, computed beside the last token and kept only where they prove right. A
    sequence is due for sampling when a step brings `num_computed_tokens` up to `num_tokens`. The end-of-turn token is
    counted in `num_hidden_tokens`, never stored. `rank` orders sequences for the scheduler, the smallest first.
    """

    def __init__(
        self,
        sequence_id: int,
        prompt_ids: Ids[int],
        params: SamplingParams,
        *,
        tokenizer: Spelling,
        grammar: Grammar | None = None,
        max_tokens: int,
        request_id: int | None = None,
        index: int = 0,
        priority: int = 0,
        rank_s: float = 0.0,
        deadline_s: float = math.inf,
        adapter_slot: int = -1,
        namespace: bytes = b"",
        pooling: Pooling | None = None,
    ) -> None:
        self.id = sequence_id
        self.request_id = sequence_id if request_id is None else request_id
        self.index = index
        self.params = params
        self.max_tokens = max_tokens
        self.grammar = grammar
        self.priority = priority
        self.rank = (rank_s, sequence_id)
        self.deadline_s = deadline_s
        self.adapter_slot = adapter_slot
        self.namespace = namespace
        self.pooling = pooling
        self.token_ids = list(prompt_ids)
        self.draft_ids: list[int] = []
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.num_hidden_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.forked = False
        self.scored: list[TokenLogprob | None] = []
        self.pooled: list[float] | None = None
        self._seed = (params.seed if params.seed is not None else secrets.randbits(62)) + index
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, params.stop, keep_stop=params.include_stop_str_in_output)
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprob] = []
        self._scores_told = False

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far, a pending token included, drafts not."""
        return len(self.token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Prompt and answer so far, without a token that is still being drawn."""
        return len(self.token_ids) - self.is_pending

    @property
    def is_pending(self) -> bool:
        """True while a step in flight draws the last token."""
        return self.token_ids[-1] == PENDING

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of the answer so far, a pending one and an end-of-turn or stop token included."""
        return len(self.token_ids) - self.num_prompt_tokens + self.num_hidden_tokens

    @property
    def owed(self) -> int:
        """Tokens to compute. A pending token that will be the last is never computed."""
        if self.is_pending and self.num_completion_tokens >= self.max_tokens:
            return 0
        return len(self.token_ids) + len(self.draft_ids) - self.num_computed_tokens

    @property
    def answer_ids(self) -> list[int]:
        """The answer so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def wants_all_rows(self) -> bool:
        """True while what is asked needs every row of the prompt, so that no part of it may come from the cache."""
        if self.num_tokens > self.num_prompt_tokens:
            return False
        return self.params.prompt_logprobs is not None or self.pooling == "mean"

    def uniform(self, ahead: int = 0) -> float:
        """A number in [0, 1) for the next token of the answer, or for the one `ahead` of it.

        It depends on the seed and on the token's place alone: not on the batch, on preemption or on drafts.
        """
        place = self.num_completion_tokens + ahead
        digest = blake2b(b"%d %d" % (self._seed, place), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) / (1 << 53)

    def append(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Add a token to the answer. Finishes the sequence if its text completes a stop string."""
        self.token_ids.append(token_id)
        self._new_ids.append(token_id)
        if logprob is not None:
            self._new_logprobs.append(logprob)
        self._text.add(token_id, may_stop=self.num_completion_tokens >= self.params.min_tokens)
        if self._text.stopped:
            self.finish_reason = "stop"

    def fork(self, sequence_id: int, index: int) -> Sequence:
        """A second answer to the same prompt, as it stands; its draws are its own."""
        child = Sequence(
            sequence_id,
            self.token_ids[: self.num_prompt_tokens],
            self.params,
            tokenizer=self._tokenizer,
            grammar=self.grammar.fork() if self.grammar is not None else None,
            max_tokens=self.max_tokens,
            request_id=self.request_id,
            index=index,
            priority=self.priority,
            rank_s=self.rank[0],
            deadline_s=self.deadline_s,
            adapter_slot=self.adapter_slot,
            namespace=self.namespace,
        )
        child.num_cached_tokens = self.num_cached_tokens
        child._scores_told = True
        logprobs = iter(self._new_logprobs)
        for token_id in self.answer_ids:
            child.append(token_id, next(logprobs, None))
        return child

    def preempt(self) -> None:
        """Forget what was computed, not what was drawn."""
        self.num_computed_tokens = 0
        self.draft_ids.clear()
        if self.num_tokens == self.num_prompt_tokens:
            self.scored.clear()
            self.pooled = None

    def take_output(self) -> Output:
        """What has been added since the last call, with all held text if the sequence is finished."""
        if self.finish_reason is not None:
            self._text.finish()
        tells_scores = self.params.prompt_logprobs is not None and not self._scores_told and bool(self.scored)
        self._scores_told |= tells_scores
        output = Output(
            request_id=self.request_id,
            index=self.index,
            text_delta=self._text.take(),
            token_ids=tuple(self._new_ids),
            logprobs=tuple(self._new_logprobs),
            finish_reason=self.finish_reason,
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_completion_tokens - self.is_pending,
            cached_tokens=self.num_cached_tokens or 0,
            prompt_logprobs=tuple(self.scored) if tells_scores else None,
            embedding=tuple(self.pooled) if self.finish_reason is not None and self.pooled is not None else None,
        )
        self._new_ids.clear()
        self._new_logprobs.clear()
        return output


class TextStream:
    """Text as it may be shown: whole characters only, and nothing that may still become a stop string."""

    def __init__(self, tokenizer: Spelling, stop: tuple[str, ...], *, keep_stop: bool = False) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._keep_stop = keep_stop
        self._held = ""
        self._ready: list[str] = []
        self.stopped = False

    def add(self, token_id: int, *, may_stop: bool = True) -> None:
        """Take a token. Sets `stopped` when its text completes a stop string; text from there on is dropped."""
        self._take(self._detokenizer.add(token_id), may_stop=may_stop)

    def finish(self) -> None:
        """The answer is over: what was held back is text after all."""
        if not self.stopped:
            self._take(self._detokenizer.flush())
        if not self.stopped:
            self._ready.append(self._held)
            self._held = ""

    def take(self) -> str:
        """The text that has become ready since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _take(self, text: str, *, may_stop: bool = True) -> None:
        if not self._stop or not may_stop:
            self._ready.append(text)
            return
        held = self._held + text
        hits = [(held.find(stop), stop) for stop in self._stop if stop in held]
        if hits:
            self.stopped = True
            at, stop = min(hits)
            self._ready.append(held[: at + len(stop)] if self._keep_stop else held[:at])
            self._held = ""
            return
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._ready.append(held[: len(held) - keep])
        self._held = held[len(held) - keep :]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`, in characters."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
