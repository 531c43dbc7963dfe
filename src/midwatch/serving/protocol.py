"""What a caller may ask of a model: OpenAI's chat and completion bodies, with vLLM's further sampling parameters.

Types are checked here, ranges by `SamplingParams`, which names the field. A request in `guided_json`, `guided_regex`,
`guided_choice` or `guided_grammar` (vLLM's older names) means the same as one in `structured_outputs` (its newer one)
and, for JSON, in OpenAI's `response_format`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from midwatch.engine.request import SamplingParams
from midwatch.errors import RequestError
from midwatch.serving.bodies import Body

MAX_MESSAGES = 4096
MAX_PROMPTS = 128
NO_LIMIT = 2**31 - 1
"""`max_tokens` of a chat that sets none: the engine lowers it to what the context holds."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ChatMessage(_Part):
    """One turn. `developer` is read as `system`; content is a string or a list of text parts, read as one string."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        parts: list[Any] = value if isinstance(value, list) else [None]
        texts = [part["text"] for part in parts if _is_text_part(part)]
        if len(texts) < len(parts):
            raise ValueError('it must be a string, or a list of {"type": "text", "text": ...} parts')
        return "".join(texts)

    def as_turn(self) -> dict[str, str]:
        """The turn as the chat template reads it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


class StreamOptions(_Part):
    """`include_usage` adds a last event that carries the token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _JsonSchema(_Part):
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Part):
    """`text`, `json_object` (any JSON object), or `json_schema` (always held to the schema)."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    def schema_or_none(self) -> dict[str, Any] | None:
        """The JSON Schema that closes the grammar, or None for free text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            raise RequestError(
                "response_format of type json_schema lacks its json_schema.",
                'Send {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
                param="response_format",
            )
        return self.json_schema.schema_


class StructuredOutputs(_Part):
    """vLLM's way to close an answer: one of a JSON schema, a regular expression, a list of texts, a Lark grammar."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class SamplingBody(Body):
    """The fields that both kinds of request have."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    best_of: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = Field(default_factory=dict)
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    prompt_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    speculate: bool = True
    priority: int = 0
    timeout_s: float | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _ids_are_spelled_as_strings(cls, value: Any) -> Any:
        if isinstance(value, dict) and not all(re.fullmatch(r"[0-9]{1,10}", str(token)) for token in value):
            raise ValueError("its keys must be token ids")
        return value

    @property
    def include_usage(self) -> bool:
        """True where the stream should end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _params(self, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None) -> SamplingParams:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true.", "Remove it.", param="stream_options")
        if self.best_of not in {None, self.n}:
            raise RequestError("best_of is served only where it equals n.", "Leave it out.", param="best_of")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs come with whole answers only.", "Set stream to false.", param="prompt_logprobs"
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise RequestError(f"timeout_s is {self.timeout_s:g}; allowed is a number above 0.", param="timeout_s")
        if not -(2**31) <= self.priority < 2**31:
            raise RequestError("priority is not a 32-bit number.", param="priority")
        return SamplingParams(
            n=self.n,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k == -1 else self.top_k,  # vLLM's -1 keeps all, as 0 does
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if prompt_logprobs is None else prompt_logprobs,
            speculate=self.speculate,
            **self._closing(),
        )

    def _closing(self) -> dict[str, Any]:
        """The one thing that closes the answer, as a field of `SamplingParams`."""
        structured = self.structured_outputs or StructuredOutputs()
        wanted: dict[str, dict[str, Any]] = {}
        if self.response_format is not None and (schema := self.response_format.schema_or_none()) is not None:
            wanted["response_format"] = {"json_schema": schema}
        for where, value in (("guided_json", self.guided_json), ("structured_outputs.json", structured.json_)):
            if value is not None:
                wanted[where] = {"json_schema": _schema(value, where)}
        if structured.json_object:
            wanted["structured_outputs.json_object"] = {"json_schema": {"type": "object"}}
        for where, choice in (("guided_choice", self.guided_choice), ("structured_outputs.choice", structured.choice)):
            if choice is not None:
                wanted[where] = {"regex": _one_of(choice, where)}
        for name in ("regex", "grammar"):
            older, newer = getattr(self, f"guided_{name}"), getattr(structured, name)
            if older is not None:
                wanted[f"guided_{name}"] = {name: older}
            if newer is not None:
                wanted[f"structured_outputs.{name}"] = {name: newer}
        if len(wanted) > 1:
            first, second, *_ = wanted
            raise RequestError(
                f"{first} and {second} are given together.", "Give one of them.", param=second.partition(".")[0]
            )
        return next(iter(wanted.values()), {})


def _schema(value: dict[str, Any] | str, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            value = ""
    if not isinstance(value, dict):
        raise RequestError(f"{where} is not a JSON Schema object.", "Send one.", param=where.partition(".")[0])
    return value


def _one_of(choices: list[str], where: str) -> str:
    if not choices or "" in choices:
        what = f"{where} must be a list of texts that are not empty."
        raise RequestError(what, "Send one text at least.", param=where.partition(".")[0])
    return "|".join(re.sub(r"([!-/:-@[-`{-~])", r"\\\1", choice) for choice in choices)  # ASCII's punctuation


class ChatCompletionRequest(SamplingBody):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    def params(self) -> SamplingParams:
        """How to sample. Raises `RequestError` that names the field which is out of range."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", "Set logprobs too.", param="top_logprobs")
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._params(max_tokens=NO_LIMIT if limit is None else limit, logprobs=logprobs)


class CompletionRequest(SamplingBody):
    """The body of `POST /v1/completions`: a text, a list of token ids, or a list of either."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int = 16
    logprobs: int | None = None
    echo: bool = False

    def params(self) -> SamplingParams:
        """How to sample. Raises `RequestError` that names the field which is out of range."""
        prompt_logprobs = self.logprobs if self.echo else None
        return self._params(max_tokens=self.max_tokens, logprobs=self.logprobs, prompt_logprobs=prompt_logprobs)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One text or one list of ids per prompt."""
        return several(self.prompt)

    @field_validator("prompt", mode="before")
    @classmethod
    def _texts_or_ids(cls, value: Any) -> Any:
        return check_several(value, MAX_PROMPTS)


def check_several(value: Any, most: int) -> Any:
    """Refuse, with a sentence, what is not a text, a list of ids, or a list of up to `most` of either."""
    items = value if isinstance(value, list) else [value]
    if all(type(item) is int for item in items):
        items = [items]
    if all(isinstance(item, str) for item in items) or all(_are_ids(item) for item in items):
        if len(items) > most:
            raise ValueError(f"it holds {len(items)} items and {most} are allowed; send several requests")
        return value
    raise ValueError("it must be a string, a list of token ids, or a list of one of these kinds")


def several(value: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """A value that `check_several` let through, as a list of texts or of lists of ids."""
    if isinstance(value, str):
        return [value]
    if all(isinstance(item, int) for item in value):
        return [[item for item in value if isinstance(item, int)]]
    return [item for item in value if not isinstance(item, int)]


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
