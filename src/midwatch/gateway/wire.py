"""What is asked of a model and what it answers: the words that the copilot and every provider share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One call. `json_schema` closes the answer's grammar; `top_logprobs` asks for the alternatives of each token."""

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = 0
    json_schema: dict[str, Any] | None = None
    top_logprobs: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A sampled token, its natural-log probability, and the likeliest alternatives (token, log-probability)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer and its bill.

    `ttft_ms` is the time to the first content byte, `latency_ms` to the last, both from the moment of asking.
    `cost_usd` is tokens times the host's price, or machine time times the machine's rent for a local model.
    """

    text: str
    finish_reason: str
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    latency_ms: float
    cost_usd: float
    logprobs: tuple[TokenLogprob, ...] = field(default=())
