"""Bodies in and out: bounded, JSON, checked field by field."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from midwatch.errors import RequestError

MAX_BODY_BYTES = 20_000_000
MAX_DRAINED_BYTES = 100_000_000
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "request_id",
}
NEUTRAL: dict[str, tuple[object, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "verbosity": ("medium",),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "add_special_tokens": (True, False),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "truncate_prompt_tokens": (),
}
"""Fields that are refused by name unless they say what happens anyway."""


class Body(BaseModel):
    """A request body. `null` means "as if it were not there", as in OpenAI's own clients.

    A field that would change the answer and cannot be honoured is refused by name; one that would not (`user`, `store`)
    is passed over.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _pass_over_what_changes_nothing(cls, data: Any) -> Any:
        """Drop nulls, harmless fields, and fields at the value that asks for nothing."""
        if not isinstance(data, dict):
            return data
        kept = {name: value for name, value in data.items() if value is not None and name not in _HARMLESS}
        for name, neutral in NEUTRAL.items():
            if name in kept and name not in cls.model_fields and kept[name] in neutral:
                del kept[name]
        return kept


_B = TypeVar("_B", bound=Body)


async def read(request: Request, kind: type[_B]) -> _B:
    """The body of a request as a `kind`. Raises `RequestError` (400, 413, 415) that says what is wrong with it."""
    return parse(kind, await _bytes(request))


def parse(kind: type[_B], body: bytes) -> _B:
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


def reply(body: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


async def _bytes(request: Request) -> bytes:
    """The body, if it is JSON by its header and not too large.

    A body that is too large is read to its end (up to a limit) and thrown away, so that the caller hears the 413.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    body = bytearray()
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received <= MAX_BODY_BYTES:
                body += chunk
            elif received > MAX_DRAINED_BYTES:
                break
    except ClientDisconnect:
        raise RequestError("The connection was closed before the body was whole.") from None
    if received > MAX_BODY_BYTES:
        what = f"The body is larger than {MAX_BODY_BYTES} bytes."
        raise RequestError(what, "Send less text.", status=413)
    if kind != "application/json":
        what = f"The body is said to be {kind[:100]!r}."
        raise RequestError(what, "Send Content-Type: application/json.", status=415)
    return bytes(body)


def _first_wrong(error: ValidationError) -> RequestError:
    item = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in item["loc"])[:120]
    top = str(item["loc"][0])[:120] if item["loc"] else None
    if item["type"] == "extra_forbidden":
        usual = NEUTRAL.get(field, ())
        hint = f"Leave it out or at its default ({usual[0]!r})." if usual else "Leave it out."
        return RequestError(f"{field} is a field that this server cannot honour.", hint, param=top)
    if item["type"] == "missing":
        return RequestError(f"{field} is missing.", "Add it.", param=top)
    return RequestError(f"{field}: {item['msg'].removeprefix('Value error, ')}.", "Correct it.", param=top)
