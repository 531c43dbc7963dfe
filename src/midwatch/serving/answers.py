"""What a caller hears: OpenAI's answer objects and stream events, made from the engine's outputs.

One request may have several prompts and n answers to each; choice number `prompt · n + index` is one of them, as OpenAI
counts. Tokens of a prompt are counted once, however many answers it has.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from midwatch.engine.request import Output, TokenLogprob, TopLogprob

Json = dict[str, Any]
Outputs = dict[int, list[Output]]
"""The outputs of each choice."""


@dataclass
class Usage:
    """Token counts of a request, from the latest output of every choice."""

    answers_per_prompt: int
    _latest: dict[int, Output] = field(default_factory=dict)

    def note(self, choice: int, output: Output) -> None:
        """Take an output in."""
        self._latest[choice] = output

    @property
    def prompt_tokens(self) -> int:
        """Of every prompt, once."""
        return sum(output.prompt_tokens for output in self._first_of_each_prompt())

    @property
    def completion_tokens(self) -> int:
        """Of every answer."""
        return sum(output.completion_tokens for output in self._latest.values())

    def json(self) -> Json:
        """OpenAI's `usage`."""
        cached = sum(output.cached_tokens for output in self._first_of_each_prompt())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _first_of_each_prompt(self) -> list[Output]:
        first: dict[int, Output] = {}
        for choice in sorted(self._latest):
            first.setdefault(choice // self.answers_per_prompt, self._latest[choice])
        return list(first.values())


class Shape(Protocol):
    """How one kind of request is answered: an event at a time, or all at once."""

    def events(self, choice: int, output: Output) -> list[Json]:
        """The events of one output of one choice, and before a choice's first output its opening."""

    def usage_event(self, usage: Usage) -> Json | None:
        """The event after the last, which carries the token counts; None where they were not asked for."""

    def whole(self, outputs: Outputs, usage: Usage) -> Json:
        """The answer in one object."""


@dataclass(kw_only=True)
class _Envelope:
    model: str
    include_usage: bool
    with_logprobs: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _opened: set[int] = field(default_factory=set)

    def _wrap(self, prefix: str, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _event(self, prefix: str, kind: str, choices: list[Json]) -> Json:
        event = self._wrap(prefix, kind, choices)
        return event | {"usage": None} if self.include_usage else event

    def _opens(self, choice: int) -> bool:
        is_first = choice not in self._opened
        self._opened.add(choice)
        return is_first


class ChatShape(_Envelope):
    """`chat.completion` and `chat.completion.chunk`."""

    def events(self, choice: int, output: Output) -> list[Json]:
        """Whose turn it is, once; then text, log-probabilities, and the reason if it was the last."""
        events = []
        if self._opens(choice):
            events.append(self._chunk(choice, {"role": "assistant", "content": ""}, None, None))
        logprobs = self._logprobs(output.logprobs) if self.with_logprobs and output.logprobs else None
        if output.text_delta or logprobs is not None or output.finish_reason is not None:
            delta = {"content": output.text_delta} if output.text_delta else {}
            events.append(self._chunk(choice, delta, logprobs, output.finish_reason))
        return events

    def usage_event(self, usage: Usage) -> Json | None:
        """Counts without a choice."""
        if not self.include_usage:
            return None
        return self._wrap("chatcmpl", "chat.completion.chunk", []) | {"usage": usage.json()}

    def whole(self, outputs: Outputs, usage: Usage) -> Json:
        """The messages and their counts."""
        choices = []
        for choice, of_choice in sorted(outputs.items()):
            found = [item for output in of_choice for item in output.logprobs]
            choices.append(
                {
                    "index": choice,
                    "message": {"role": "assistant", "content": _text(of_choice), "refusal": None},
                    "logprobs": self._logprobs(found) if self.with_logprobs else None,
                    "finish_reason": of_choice[-1].finish_reason,
                }
            )
        whole = self._wrap("chatcmpl", "chat.completion", choices) | {"usage": usage.json()}
        scored = _prompt_logprobs(outputs[0])
        return whole if scored is None else whole | {"prompt_logprobs": scored}

    def _chunk(self, choice: int, delta: Json, logprobs: Json | None, finish_reason: str | None) -> Json:
        found = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._event("chatcmpl", "chat.completion.chunk", [found])

    @staticmethod
    def _logprobs(items: Iterable[TokenLogprob]) -> Json:
        return {
            "content": [
                _token(item.token, item.logprob)
                | {"top_logprobs": [_token(other.token, other.logprob) for other in item.top]}
                for item in items
            ],
            "refusal": None,
        }


@dataclass(kw_only=True)
class TextShape(_Envelope):
    """`text_completion`, whole and in events alike.

    `echoed` gives the text of a prompt and of its first token, by its number, where answers repeat the prompt; its
    log-probabilities come before the answer's then. `asked_prompt_logprobs`: vLLM's field of that name was set.
    """

    answers_per_prompt: int = 1
    echoed: Callable[[int], tuple[str, str]] | None = None
    asked_prompt_logprobs: bool = False
    _characters: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _scored: dict[int, Sequence[TokenLogprob | None]] = field(default_factory=dict)

    def events(self, choice: int, output: Output) -> list[Json]:
        """The text that an output added, its log-probabilities, and the reason if it was the last."""
        text, items = self._said(choice, [output])
        logprobs = self._logprobs(choice, items) if self.with_logprobs and items else None
        if not text and logprobs is None and output.finish_reason is None:
            return []
        return [self._event("cmpl", "text_completion", [_choice(choice, text, logprobs, output.finish_reason)])]

    def usage_event(self, usage: Usage) -> Json | None:
        """Counts without a choice."""
        if not self.include_usage:
            return None
        return self._wrap("cmpl", "text_completion", []) | {"usage": usage.json()}

    def whole(self, outputs: Outputs, usage: Usage) -> Json:
        """The texts and their counts."""
        choices = []
        for choice, of_choice in sorted(outputs.items()):
            text, items = self._said(choice, of_choice)
            logprobs = self._logprobs(choice, items) if self.with_logprobs else None
            found = _choice(choice, text, logprobs, of_choice[-1].finish_reason)
            if self.asked_prompt_logprobs:
                leader = choice // self.answers_per_prompt * self.answers_per_prompt
                found["prompt_logprobs"] = _prompt_logprobs(outputs[leader])
            choices.append(found)
        return self._wrap("cmpl", "text_completion", choices) | {"usage": usage.json()}

    def _said(self, choice: int, outputs: list[Output]) -> tuple[str, list[TokenLogprob | None]]:
        """Text and tokens of outputs, after the prompt's own where it is echoed and this is the beginning."""
        prompt = choice // self.answers_per_prompt
        for output in outputs:
            if output.prompt_logprobs is not None:
                self._scored[prompt] = output.prompt_logprobs
        text, items = _text(outputs), [item for output in outputs for item in output.logprobs]
        if self.echoed is None or not self._opens(choice):
            return text, list(items)
        return self.echoed(prompt)[0] + text, [*self._scored.get(prompt, ()), *items]

    def _logprobs(self, choice: int, items: Iterable[TokenLogprob | None]) -> Json:
        """In OpenAI's four columns; the first token of a prompt has no probability."""
        shown: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for item in items:
            text, logprob, top = self._row(choice, item)
            shown["tokens"].append(text)
            shown["token_logprobs"].append(logprob)
            shown["top_logprobs"].append(top)
            shown["text_offset"].append(self._characters[choice])
            self._characters[choice] += len(text)
        return shown

    def _row(self, choice: int, item: TokenLogprob | None) -> tuple[str, float | None, dict[str, float] | None]:
        if item is not None:
            top = {other.token.decode("utf-8", "replace"): other.logprob for other in item.top}
            return item.text, item.logprob, top | {item.text: item.logprob}
        assert self.echoed is not None, "only an echoed prompt has a token without a probability"
        return self.echoed(choice // self.answers_per_prompt)[1], None, None


def _choice(choice: int, text: str, logprobs: Json | None, finish_reason: str | None) -> Json:
    return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _prompt_logprobs(outputs: Sequence[Output]) -> list[Json | None] | None:
    """vLLM's form: per token of the prompt None, or the token and its likeliest rivals by id."""
    scored = next((output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None), None)
    if scored is None:
        return None
    shown: list[Json | None] = []
    for item in scored:
        if item is None:
            shown.append(None)
            continue
        ranks = {other.token_id: rank for rank, other in enumerate(item.top, 1)}
        shown.append(
            {
                str(token.token_id): {
                    "logprob": token.logprob,
                    "rank": ranks.get(token.token_id),
                    "decoded_token": token.token.decode("utf-8", "replace"),
                }
                for token in (TopLogprob(token_id=item.token_id, token=item.token, logprob=item.logprob), *item.top)
            }
        )
    return shown


def _token(token: bytes, logprob: float) -> Json:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}


def _text(outputs: Iterable[Output]) -> str:
    return "".join(output.text_delta for output in outputs)
