"""What a caller says and hears: how to sample, and what each step gives back. Plain frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from midwatch.errors import RequestError

FinishReason = Literal["stop", "length", "deadline", "error"]
Pooling = Literal["mean", "last"]

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_SAMPLES = 64
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How answers are drawn. Every field is checked at construction; a wrong one raises `RequestError` (400).

    `n`: answers to one prompt, which is computed once. `max_tokens`: tokens to generate at most; the engine lowers it
    to what the context still holds. `min_tokens`: until so many, neither an end-of-turn token nor a stop token can be
    drawn. `temperature`: 0 is greedy. `top_k`: 0 keeps all tokens. `top_p`: 1 keeps all. `min_p`: tokens less likely
    than this share of the likeliest are dropped. `presence_penalty` and `frequency_penalty` are OpenAI's, over the
    answer; `repetition_penalty` (Keskar et al., arXiv 1909.05858, section 4.1) is over prompt and answer, 1 is none.
    `logit_bias`: added to the logits of these ids. `seed`: the same seed gives the same answer whatever else runs
    beside it; None draws a fresh one. Answer i of n uses seed + i.
    `stop`: strings that end the answer and are not part of it (`include_stop_str_in_output` keeps them).
    `stop_token_ids`: tokens that do the same. `ignore_eos`: go on past the end-of-turn token (for measurements).
    `logprobs`: None for no log-probabilities, 0 for those of the sampled tokens, n for the n likeliest too (up to
    20). `prompt_logprobs`: the same for the tokens of the prompt. At most one of `json_schema` (the answer is one JSON
    value of this schema), `regex` (the whole answer matches) and `grammar` (llguidance's Lark) closes the answer.
    `speculate`: let copied runs of tokens be drafted and checked several at a time; the answer is the same.
    """

    n: int = 1
    max_tokens: int = 512
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    speculate: bool = True

    def __post_init__(self) -> None:
        _check(_whole(self.n, 1, MAX_SAMPLES), "n", self.n, f"a whole number from 1 to {MAX_SAMPLES}")
        _check(_whole(self.max_tokens, 1, 2**31), "max_tokens", self.max_tokens, "a whole number of at least 1")
        _check(_whole(self.min_tokens, 0, 2**31), "min_tokens", self.min_tokens, "a whole number of at least 0")
        _check(_real(self.temperature, 0.0, 100.0), "temperature", self.temperature, "a number from 0 to 100")
        _check(_real(self.top_p, 0.0, 1.0) and self.top_p > 0, "top_p", self.top_p, "a number above 0, at most 1")
        _check(_whole(self.top_k, 0, 2**31), "top_k", self.top_k, "a whole number; 0 keeps every token")
        _check(_real(self.min_p, 0.0, 1.0), "min_p", self.min_p, "a number from 0 to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(_real(getattr(self, name), -2.0, 2.0), name, getattr(self, name), "a number from -2 to 2")
        good = _real(self.repetition_penalty, 0.0, 100.0) and self.repetition_penalty > 0
        _check(good, "repetition_penalty", self.repetition_penalty, "a number above 0, at most 100")
        good = len(self.logit_bias) <= MAX_LOGIT_BIAS and all(
            _whole(token, 0, 2**31) and _real(bias, -100.0, 100.0) for token, bias in self.logit_bias.items()
        )
        allowed = f"up to {MAX_LOGIT_BIAS} token ids with numbers from -100 to 100"
        _check(good, "logit_bias", dict(self.logit_bias), allowed)
        if self.seed is not None:
            _check(_whole(self.seed, -MAX_SEED, MAX_SEED), "seed", self.seed, "a whole number of at most 63 bits")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            allowed = f"a whole number from 0 to {MAX_TOP_LOGPROBS}"
            _check(value is None or _whole(value, 0, MAX_TOP_LOGPROBS), name, value, allowed)
        good = len(self.stop) <= MAX_STOP_STRINGS and all(
            isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS for text in self.stop
        )
        limit = f"up to {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters"
        _check(good, "stop", list(self.stop), limit)
        good = len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS and all(
            _whole(token, 0, 2**31) for token in self.stop_token_ids
        )
        _check(good, "stop_token_ids", list(self.stop_token_ids), f"up to {MAX_STOP_TOKEN_IDS} token ids")
        good = self.json_schema is None or isinstance(self.json_schema, dict)
        _check(good, "json_schema", self.json_schema, "a JSON Schema object")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            _check(value is None or (isinstance(value, str) and value != ""), name, value, "a text that is not empty")
        closing = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(closing) > 1:
            raise RequestError(f"{' and '.join(closing)} are given together.", "Give one of them.", param=closing[1])

    @property
    def has_penalty(self) -> bool:
        """True if a draw depends on which tokens came before."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def is_closed(self) -> bool:
        """True if a schema, a regular expression or a grammar closes the answer."""
        return self.json_schema is not None or self.regex is not None or self.grammar is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class TopLogprob:
    """One alternative at a position: token id, its bytes, its natural-log probability."""

    token_id: int
    token: bytes
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A generated token and its natural-log probability, before temperature, top-k and top-p.

    `token` holds the bytes the token stands for, which need not be whole UTF-8. `top` lists the likeliest tokens,
    best first. Under a JSON schema both are probabilities among the tokens that the schema allows there, so that an
    enum's margin is what it seems. A token that the schema forced was never sampled: `forced` is True, `logprob` is
    0.0, and `top` is empty.
    """

    token_id: int
    token: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()
    forced: bool = False

    @property
    def text(self) -> str:
        """The token as text; bytes that are no whole character become U+FFFD."""
        return self.token.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What one step added to one request.

    `text_delta` may be empty: the engine holds text back while it may still become a stop string or a whole
    character. `token_ids` are the step's new tokens (several where a grammar forced some), and `logprobs` runs beside
    them if it was asked for, else it is empty. The end-of-turn or stop token is counted in `completion_tokens` but
    not listed. `finish_reason` is None until the last output: `stop` (end of turn, stop string or token, or a whole
    JSON value), `length` (`max_tokens` or the end of the context), `deadline` (its time was up), or `error` (the
    grammar's parser hit its limits). `index` says which of n answers this is. `cached_tokens`: tokens of the prompt
    whose keys and values were already there. `prompt_logprobs`, if asked for, comes with the first output of answer 0:
    None for the first token, then one entry per token of the prompt. `embedding` answers an embedding request.
    """

    request_id: int
    index: int = 0
    text_delta: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = field(default=())
    finish_reason: FinishReason | None = None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """The engine at one moment. Totals only grow; the others are gauges.

    A slot is the place of one token's keys and values. `kv_slots_allocated` are in blocks that live sequences hold,
    `kv_slots_used` those of them that hold a token, counted once however many sequences share it; the difference,
    `kv_slots_empty`, is internal fragmentation. `kv_slots_shared` are places that sharing saved: what the sequences
    hold together beyond the used ones. `kv_slots_cached` hold a prefix that nobody uses now and that may be hit again.
    `prefix_cache_queries_total` and `_hits_total` count prompt tokens, as vLLM does.
    """

    backend: str = ""
    running: int = 0
    waiting: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    forced_tokens_total: int = 0
    requests_total: int = 0
    aborted_total: int = 0
    steps_total: int = 0
    step_seconds_total: float = 0.0
    last_step_ms: float = 0.0
    last_step_tokens: int = 0
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0
    kv_block_size: int = 0
    kv_slots_used: int = 0
    kv_slots_allocated: int = 0
    kv_slots_shared: int = 0
    kv_slots_empty: int = 0
    kv_slots_cached: int = 0
    kv_bytes_per_token: int = 0
    weight_bytes: int = 0
    prefix_cache_queries_total: int = 0
    prefix_cache_hits_total: int = 0
    preemptions_total: int = 0
    spec_drafts_total: int = 0
    spec_draft_tokens_total: int = 0
    spec_accepted_tokens_total: int = 0
    adapters: tuple[str, ...] = ()


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: object, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise RequestError(f"{name} is {_short(value)}; allowed is {allowed}.", param=name)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
