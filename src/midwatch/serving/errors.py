"""Everything that goes wrong, in OpenAI's shape: `{"error": {message, type, param, code}}`, and never a stack trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from midwatch.errors import MidwatchError, ProviderError, RequestError

_KINDS = {403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}


class UnknownModelError(RequestError):
    """The request names a model that this server does not serve."""

    def __init__(self, asked: str, served: Sequence[str]) -> None:
        super().__init__(
            f"The model {asked[:100]!r} is not served here.",
            f"This server serves {', '.join(map(repr, served))}.",
            status=404,
            param="model",
        )


class PromptTooLongError(RequestError):
    """The prompt leaves no room for an answer."""

    def __init__(self, what: str, limit_tokens: int, param: str) -> None:
        super().__init__(
            f"{what}; the context holds {limit_tokens} tokens, answer included.", "Shorten it.", param=param
        )


class LoadingError(ProviderError):
    """The weights are still being loaded."""

    def __init__(self) -> None:
        super().__init__("The model is still loading.", "Ask again in a second; /health answers 200 when it is ready.")


class DrainingError(ProviderError):
    """The server was asked to stop, and finishes what it has."""

    def __init__(self) -> None:
        super().__init__("The server is stopping.", "Send the request to another one, or again in a few seconds.")


class DeadlineError(MidwatchError):
    """The time that the caller gave was up before the answer was whole."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The deadline passed after {seconds:.1f} s, before the answer was whole.",
            "Give more time in timeout_s or X-Request-Timeout-Ms, or ask for fewer tokens.",
        )


class DeadEndError(RequestError):
    """An answer could not go on: its grammar allowed nothing more or hit a limit, or the model's numbers were none."""

    def __init__(self, *, closed: bool) -> None:
        if closed:
            super().__init__("The grammar came to a dead end in this answer.", "Simplify the grammar.", status=422)
        else:
            super().__init__("The model left no token to draw.", "Look at logit_bias and min_tokens.", status=422)


def body_of(error: MidwatchError) -> dict[str, Any]:
    """The error as the JSON object that a body or an event carries."""
    status = status_of(error)
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = getattr(error, "param", None)
    param = "response_format" if param == "json_schema" else param  # the engine's name for what the caller calls so
    return {"error": {"message": str(error), "type": kind, "param": param, "code": _code_of(error)}}


def status_of(error: MidwatchError) -> int:
    """HTTP status: the caller's fault says its own (4xx); an engine that cannot serve is 503, a passed deadline 504."""
    if isinstance(error, DeadlineError):
        return 504
    return error.status if isinstance(error, RequestError) else 503


def response_to(error: MidwatchError, retry_after_s: int = 1) -> Response:
    """A whole answer for an error that came before the first byte. A full queue says when to come back.

    OpenAI's clients send a 504 again by themselves; what has missed its deadline once would only miss it again, so
    they are told not to.
    """
    headers = {"Retry-After": str(retry_after_s)} if status_of(error) in {429, 503} else {}
    if status_of(error) == 504:
        headers["x-should-retry"] = "false"
    if status_of(error) == 413:
        headers["Connection"] = "close"
    return Response(
        orjson.dumps(body_of(error)), status_code=status_of(error), media_type="application/json", headers=headers
    )


async def on_midwatch_error(_: Request, error: Exception) -> Response:
    """Starlette's handler for our own errors."""
    assert isinstance(error, MidwatchError)
    return response_to(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    what = {
        404: f"There is nothing at {request.url.path[:200]}.",
        405: f"{request.method[:20]} is not allowed at {request.url.path[:200]}.",
    }.get(error.status_code, str(error.detail))
    next_step = "See /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings, /health and /metrics."
    response = response_to(RequestError(what, next_step, status=error.status_code))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def on_surprise(_: Request, error: Exception) -> Response:
    """Starlette's handler for a fault of ours: the log gets the trace, the caller a sentence."""
    message = f"The server made a mistake ({type(error).__name__}); its log says more."
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": "internal_error"}}
    return Response(orjson.dumps(body), status_code=500, media_type="application/json")


def _code_of(error: MidwatchError) -> str | None:
    if isinstance(error, UnknownModelError):
        return "model_not_found"
    if isinstance(error, PromptTooLongError):
        return "context_length_exceeded"
    if isinstance(error, LoadingError):
        return "loading"
    if isinstance(error, DeadEndError):
        return "dead_end"
    if isinstance(error, DrainingError):
        return "draining"
    if isinstance(error, DeadlineError):
        return "deadline_exceeded"
    if isinstance(error, RequestError):
        return {403: "forbidden", 413: "request_too_large", 429: "rate_limit_exceeded"}.get(error.status)
    return "engine_unavailable"
