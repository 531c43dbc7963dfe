"""What a caller may ask: OpenAI's request bodies, checked field by field and turned into sampling parameters.

A field that would change the answer and cannot be honoured is refused by name; one that would not (`user`, `store`)
is passed over. `null` means "as if it were not there", as in OpenAI's own clients.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from midwatch.engine.request import SamplingParams
from midwatch.errors import RequestError

MAX_MESSAGES = 4096
NO_LIMIT = 2**31 - 1
"""`max_tokens` of a chat that sets none: the engine lowers it to what the context holds."""

_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "verbosity": ("medium",),
}


class ChatMessage(BaseModel):
    """One turn. `developer` is read as `system`; content is a string or a list of text parts, read as one string."""

    model_config = ConfigDict(extra="forbid", strict=True)

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


class StreamOptions(BaseModel):
    """`include_usage` adds a last event that carries the token counts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """`text`, `json_object` (any JSON object), or `json_schema` (always held to the schema)."""

    model_config = ConfigDict(extra="forbid", strict=True)

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


class _Request(BaseModel):
    """The fields that both kinds of request have. Ranges are checked by `SamplingParams`, which names the field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _pass_over_what_changes_nothing(cls, data: Any) -> Any:
        """Drop nulls, harmless fields, and fields at the value that asks for nothing."""
        if not isinstance(data, dict):
            return data
        kept = {name: value for name, value in data.items() if value is not None and name not in _HARMLESS}
        for name, neutral in _NEUTRAL.items():
            if name in kept and kept[name] in neutral:
                del kept[name]
        return kept

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def include_usage(self) -> bool:
        """True where the stream should end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _params(self, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true.", "Remove it.", param="stream_options")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            logprobs=logprobs,
            json_schema=self.response_format.schema_or_none() if self.response_format else None,
            ignore_eos=self.ignore_eos,
        )


class ChatCompletionRequest(_Request):
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


class CompletionRequest(_Request):
    """The body of `POST /v1/completions`. A prompt is one text or one list of token ids."""

    prompt: str | list[int]
    max_tokens: int = 16
    logprobs: int | None = None

    def params(self) -> SamplingParams:
        """How to sample. Raises `RequestError` that names the field which is out of range."""
        return self._params(max_tokens=self.max_tokens, logprobs=self.logprobs)

    @field_validator("prompt", mode="before")
    @classmethod
    def _only_one_prompt(cls, value: Any) -> Any:
        """A list of one prompt is that prompt."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
            value = value[0]
        if isinstance(value, str) or (isinstance(value, list) and all(type(item) is int for item in value)):
            return value
        raise ValueError("it must be one string or one list of token ids; send one request for each prompt")


_R = TypeVar("_R", bound=_Request)


def parse(kind: type[_R], body: bytes) -> _R:
    """Read a body. Raises `RequestError` (400) that names the first wrong field and what is allowed there."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON in UTF-8: {error}.", "Send one JSON object.") from None
    if not isinstance(data, dict):
        raise RequestError(f"The body is a JSON {type(data).__name__}, not an object.", "Send one JSON object.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _first_wrong(error) from None


def _first_wrong(error: ValidationError) -> RequestError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    item = problems[0]
    field = ".".join(str(part) for part in item["loc"])[:120]
    top = str(item["loc"][0])[:120] if item["loc"] else None
    if item["type"] == "extra_forbidden":
        hint = f"Leave it out or at its default ({_NEUTRAL[field][0]!r})." if field in _NEUTRAL else "Leave it out."
        if field == "n":
            hint = "Only n=1 is served; send the request several times for several answers."
        return RequestError(f"{field} is a field that this server cannot honour.", hint, param=top)
    if item["type"] == "missing":
        return RequestError(f"{field} is missing.", "Add it.", param=top)
    return RequestError(f"{field}: {item['msg'].removeprefix('Value error, ')}.", "Correct it.", param=top)
