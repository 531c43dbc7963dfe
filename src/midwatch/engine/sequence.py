"""One request inside the engine: its tokens, how many of them are computed, and the text made so far."""

from __future__ import annotations

import random
from collections.abc import Sequence as Ids

from midwatch.engine.grammar import Grammar
from midwatch.engine.request import FinishReason, Output, SamplingParams, TokenLogprob
from midwatch.engine.tokenizer import Detokenizer, Tokenizer


class Sequence:
    """The state of one request. `num_computed_tokens` of `token_ids` have their keys and values stored.

    `token_ids` is the prompt and then the answer. A sequence is due for sampling when a step brings
    `num_computed_tokens` up to `num_tokens`. The end-of-turn token is counted in `num_hidden_tokens`, never stored.
    """

    def __init__(
        self,
        request_id: int,
        prompt_ids: Ids[int],
        params: SamplingParams,
        *,
        tokenizer: Tokenizer,
        grammar: Grammar | None,
        max_tokens: int,
    ) -> None:
        self.id = request_id
        self.params = params
        self.max_tokens = max_tokens
        self.grammar = grammar
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_hidden_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.random = random.Random(params.seed)
        self.text = TextStream(tokenizer, params.stop)
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprob] = []

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of the answer so far, an end-of-turn or stop token included."""
        return len(self.token_ids) - self.num_prompt_tokens + self.num_hidden_tokens

    def append(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Add a token to the answer. Finishes the sequence if its text completes a stop string."""
        self.token_ids.append(token_id)
        self._new_ids.append(token_id)
        if logprob is not None:
            self._new_logprobs.append(logprob)
        self.text.add(token_id)
        if self.text.stopped:
            self.finish_reason = "stop"

    def take_output(self) -> Output:
        """What has been added since the last call, with all held text if the sequence is finished."""
        if self.finish_reason is not None:
            self.text.finish()
        output = Output(
            request_id=self.id,
            text_delta=self.text.take(),
            token_ids=tuple(self._new_ids),
            logprobs=tuple(self._new_logprobs),
            finish_reason=self.finish_reason,
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_completion_tokens,
        )
        self._new_ids.clear()
        self._new_logprobs.clear()
        return output


class TextStream:
    """Text as it may be shown: whole characters only, and nothing that may still become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._held = ""
        self._ready: list[str] = []
        self.stopped = False

    def add(self, token_id: int) -> None:
        """Take a token. Sets `stopped` when its text completes a stop string; text from there on is dropped."""
        self._take(self._detokenizer.add(token_id))

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

    def _take(self, text: str) -> None:
        if not self._stop:
            self._ready.append(text)
            return
        held = self._held + text
        hits = [hit for hit in (held.find(stop) for stop in self._stop) if hit >= 0]
        if hits:
            self.stopped = True
            self._ready.append(held[: min(hits)])
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
