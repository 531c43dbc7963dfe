"""What a caller hears: OpenAI's answer objects and stream events, made from the engine's outputs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from midwatch.engine.request import Output, TokenLogprob

Json = dict[str, Any]


class Shape(Protocol):
    """How one kind of request is answered: an event at a time, or all at once."""

    def opening(self) -> Json | None:
        """The event before the first text, if there is one."""

    def event(self, output: Output) -> Json | None:
        """The event of one output; None if it carries nothing."""

    def usage_event(self, output: Output) -> Json | None:
        """The event after the last, which carries the token counts; None where they were not asked for."""

    def whole(self, outputs: Iterable[Output]) -> Json:
        """The answer in one object."""


@dataclass(kw_only=True)
class _Envelope:
    model: str
    include_usage: bool
    with_logprobs: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

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


class ChatShape(_Envelope):
    """`chat.completion` and `chat.completion.chunk`."""

    def opening(self) -> Json:
        """Says whose turn it is."""
        return self._chunk({"role": "assistant", "content": ""}, None, None)

    def event(self, output: Output) -> Json | None:
        """The text that an output added, its log-probabilities, and the reason if it was the last."""
        logprobs = self._logprobs(output.logprobs) if self.with_logprobs and output.logprobs else None
        if not output.text_delta and logprobs is None and output.finish_reason is None:
            return None
        delta = {"content": output.text_delta} if output.text_delta else {}
        return self._chunk(delta, logprobs, output.finish_reason)

    def usage_event(self, output: Output) -> Json | None:
        """Counts without a choice."""
        if not self.include_usage:
            return None
        return self._wrap("chatcmpl", "chat.completion.chunk", []) | {"usage": _usage(output)}

    def whole(self, outputs: Iterable[Output]) -> Json:
        """The message and its counts."""
        outputs = list(outputs)
        found = [item for output in outputs for item in output.logprobs]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": _text(outputs), "refusal": None},
            "logprobs": self._logprobs(found) if self.with_logprobs else None,
            "finish_reason": outputs[-1].finish_reason,
        }
        return self._wrap("chatcmpl", "chat.completion", [choice]) | {"usage": _usage(outputs[-1])}

    def _chunk(self, delta: Json, logprobs: Json | None, finish_reason: str | None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._event("chatcmpl", "chat.completion.chunk", [choice])

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


class TextShape(_Envelope):
    """`text_completion`, whole and in events alike."""

    _characters = 0

    def opening(self) -> None:
        """There is none."""
        return

    def event(self, output: Output) -> Json | None:
        """The text that an output added, its log-probabilities, and the reason if it was the last."""
        logprobs = self._logprobs(output.logprobs) if self.with_logprobs and output.logprobs else None
        if not output.text_delta and logprobs is None and output.finish_reason is None:
            return None
        return self._event("cmpl", "text_completion", [self._choice(output.text_delta, logprobs, output.finish_reason)])

    def usage_event(self, output: Output) -> Json | None:
        """Counts without a choice."""
        if not self.include_usage:
            return None
        return self._wrap("cmpl", "text_completion", []) | {"usage": _usage(output)}

    def whole(self, outputs: Iterable[Output]) -> Json:
        """The text and its counts."""
        outputs = list(outputs)
        found = [item for output in outputs for item in output.logprobs]
        logprobs = self._logprobs(found) if self.with_logprobs else None
        choice = self._choice(_text(outputs), logprobs, outputs[-1].finish_reason)
        return self._wrap("cmpl", "text_completion", [choice]) | {"usage": _usage(outputs[-1])}

    @staticmethod
    def _choice(text: str, logprobs: Json | None, finish_reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, items: Iterable[TokenLogprob]) -> Json:
        shown: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for item in items:
            shown["tokens"].append(item.text)
            shown["token_logprobs"].append(item.logprob)
            top = {other.token.decode("utf-8", "replace"): other.logprob for other in item.top}
            shown["top_logprobs"].append(top | {item.text: item.logprob})
            shown["text_offset"].append(self._characters)
            self._characters += len(item.text)
        return shown


def _token(token: bytes, logprob: float) -> Json:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}


def _text(outputs: Iterable[Output]) -> str:
    return "".join(output.text_delta for output in outputs)


def _usage(output: Output) -> Json:
    return {
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": output.completion_tokens,
        "total_tokens": output.prompt_tokens + output.completion_tokens,
    }
