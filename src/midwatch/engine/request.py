"""What a caller says and hears: how to sample, and what each step gives back. Plain frozen values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from midwatch.errors import RequestError

FinishReason = Literal["stop", "length", "error"]

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one answer is drawn. Every field is checked at construction; a wrong one raises `RequestError` (400).

    `max_tokens`: tokens to generate at most; the engine lowers it to what the context still holds.
    `temperature`: 0 is greedy. `top_k`: 0 keeps all tokens. `top_p`: 1 keeps all.
    `seed`: the same seed gives the same answer whatever else runs beside it; None draws a fresh one.
    `stop`: strings that end the answer and are not part of it. `stop_token_ids`: tokens that do the same.
    `logprobs`: None for no log-probabilities, 0 for those of the sampled tokens, n for the n likeliest too (up to
    20). `json_schema`: the answer is one JSON value of this schema and nothing else. `ignore_eos`: go on past the
    end-of-turn token (for measurements).
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    json_schema: dict[str, Any] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check(_whole(self.max_tokens, 1, 2**31), "max_tokens", self.max_tokens, "a whole number of at least 1")
        _check(_real(self.temperature, 0.0, 100.0), "temperature", self.temperature, "a number from 0 to 100")
        _check(_real(self.top_p, 0.0, 1.0) and self.top_p > 0, "top_p", self.top_p, "a number above 0, at most 1")
        _check(_whole(self.top_k, 0, 2**31), "top_k", self.top_k, "a whole number; 0 keeps every token")
        if self.seed is not None:
            _check(_whole(self.seed, -MAX_SEED, MAX_SEED), "seed", self.seed, "a whole number of at most 63 bits")
        if self.logprobs is not None:
            allowed = f"a whole number from 0 to {MAX_TOP_LOGPROBS}"
            _check(_whole(self.logprobs, 0, MAX_TOP_LOGPROBS), "logprobs", self.logprobs, allowed)
        good = len(self.stop) <= MAX_STOP_STRINGS and all(
            isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS for text in self.stop
        )
        limit = f"up to {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters"
        _check(good, "stop", list(self.stop), limit)
        good = all(_whole(token, 0, 2**31) for token in self.stop_token_ids)
        _check(good, "stop_token_ids", list(self.stop_token_ids), "token ids")
        good = self.json_schema is None or isinstance(self.json_schema, dict)
        _check(good, "json_schema", self.json_schema, "a JSON Schema object")


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
    JSON value), `length` (`max_tokens` or the end of the context), or `error` (the grammar's parser hit its limits).
    """

    request_id: int
    text_delta: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = field(default=())
    finish_reason: FinishReason | None = None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """The engine at one moment. Totals only grow; the others are gauges.

    `kv_slots_allocated` are token places held by live sequences, `kv_slots_used` those that hold a token: the
    difference is internal fragmentation. `kv_bytes_per_token` turns either into bytes.
    """

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
    kv_slots_used: int = 0
    kv_slots_allocated: int = 0
    kv_bytes_per_token: int = 0


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
