"""The hooks: verify, parse, keep, answer. And verdicts on incidents, `/healthz`, `/metrics`.

A hook answers 202 (Loki: 204) only after the commit. Every refusal is
`{"error": {"message": ..., "next_step": ...}}` with a status that says who is to act.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from midwatch.copilot.intake import SOURCES, Source
from midwatch.copilot.intake.auth import check_caller, check_signature
from midwatch.copilot.intake.body import decompress, read_bounded
from midwatch.copilot.intake.source import json_object
from midwatch.copilot.metrics import Metrics
from midwatch.copilot.model import Feedback
from midwatch.copilot.placing import Prepared, prepare
from midwatch.copilot.store import Store, StoreError
from midwatch.errors import MidwatchError, RequestError, SettingsError
from midwatch.settings import Settings

BODY_DEADLINE_S = 30.0
RETRY_AFTER_S = 5
FEEDBACK = "feedback"
MAX_FEEDBACK_BYTES = 20_000
_FEEDBACK_EXAMPLE = '{"verdict": "wrong", "category": "dns_resolution", "note": "The resolver was down."}'
MAX_BODIES_IN_FLIGHT = 8
"""Bodies of the largest allowed size that may be in memory at once; more are told to come back."""
_SMALL_BYTES = 65_536  # a smaller body is parsed sooner than a thread is asked
_UNPACKED_RATIO = 16
_log = logging.getLogger("midwatch.copilot")


def hook_routes(store: Store, settings: Settings, metrics: Metrics) -> list[Route]:
    """One route per source, and one that names them all for a path that is none of them.

    Raises `SettingsError` where secrets are set for a hook that there is not.
    """
    names = {source.name for source in SOURCES} | {FEEDBACK}
    if wrong := sorted(set(settings.sources) - names):
        raise SettingsError(
            f"sources.{wrong[0]} is the secret of no hook, so that hook would stay without one.",
            f"The hooks are {', '.join(sorted(names))}.",
        )
    gate = _Gate(settings.app.max_body_bytes * MAX_BODIES_IN_FLIGHT)
    routes = [Route(source.path, _hook(source, store, settings, metrics, gate), methods=["POST"]) for source in SOURCES]
    return [*routes, Route("/hooks/{source}", _no_such_hook, methods=["GET", "POST", "PUT"])]


def feedback_routes(store: Store, settings: Settings) -> list[Route]:
    """`POST /api/incidents/{id}/feedback`: a person's verdict, as JSON (which no page from elsewhere can send).

    Who may is set by `sources.feedback`, as for a hook.
    """

    async def say(request: Request) -> Response:
        try:
            feedback = await _read_feedback(request, settings)
            kept = await store.add_feedback(feedback)
        except RequestError as error:
            return error_response(error, error.status)
        except StoreError as error:
            return error_response(error, 503)
        except ClientDisconnect:
            return Response(status_code=499)
        return _json({"feedback": asdict(kept)}, 201)

    return [Route("/api/incidents/{id:int}/feedback", say, methods=["POST"])]


async def _read_feedback(request: Request, settings: Settings) -> Feedback:
    """The verdict that a caller sends. Raises `RequestError`."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.raw}
    secrets = settings.sources.get(FEEDBACK)
    check_caller(secrets, FEEDBACK, headers, request.client.host if request.client else None)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("A verdict is sent as application/json.", f"Send {_FEEDBACK_EXAMPLE}.", status=415)
    raw = await read_bounded(request.stream(), headers.get("content-length"), MAX_FEEDBACK_BYTES)
    check_signature(secrets, FEEDBACK, headers, raw)
    document = json_object(raw, example=_FEEDBACK_EXAMPLE)
    verdict, category, note = (document.get(key, "") for key in ("verdict", "category", "note"))
    if verdict not in ("right", "wrong") or not isinstance(category, str) or not isinstance(note, str):
        raise RequestError("`verdict` must be right or wrong, the rest text.", f"Send {_FEEDBACK_EXAMPLE}.", status=422)
    return Feedback(incident_id=request.path_params["id"], verdict=verdict, category=category, note=note)


def health_routes(store: Store, metrics: Metrics, is_working: Callable[[], bool]) -> list[Route]:
    """`/healthz` (503 once the writer or the workflow has ended) and `/metrics`."""

    async def healthz(request: Request) -> Response:
        parts = {"store": store.writable, "workflow": is_working()}
        good = all(parts.values())
        body = {"status": "ok" if good else "failing", **parts}
        return _json(body, 200 if good else 503)

    async def scrape(request: Request) -> Response:
        text = await run_in_threadpool(metrics.scrape, store)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return [Route("/healthz", healthz), Route("/metrics", scrape)]


def error_response(error: MidwatchError, status: int) -> Response:
    """The body that every refusal has."""
    body = {"error": {"message": error.what, "next_step": error.next_step}}
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in {429, 503} else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(body, status, headers)


class _Gate:
    """How many bytes of bodies may be in memory at once."""

    def __init__(self, free_bytes: int) -> None:
        self._free_bytes = free_bytes

    def take(self, amount: int) -> None:
        if amount > self._free_bytes:
            raise StoreError("Too many large bodies are coming in at once.", "Send it again in a moment.")
        self._free_bytes -= amount

    def give_back(self, amount: int) -> None:
        self._free_bytes += amount


def _hook(
    source: Source, store: Store, settings: Settings, metrics: Metrics, gate: _Gate
) -> Callable[[Request], Awaitable[Response]]:
    async def hook(request: Request) -> Response:
        started = time.perf_counter()
        try:
            prepared = await _read(source, request, settings, gate)
            receipt = await store.accept(prepared)
        except RequestError as error:
            metrics.refused.labels(source.name, str(error.status)).inc()
            return error_response(error, error.status)
        except StoreError as error:
            metrics.refused.labels(source.name, "503").inc()
            return error_response(error, 503)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            _log.exception("hook %s: a delivery could not be kept", source.name)
            metrics.refused.labels(source.name, "500").inc()
            fault = MidwatchError("A fault of Midwatch itself; nothing was accepted.", "Its log has the details.")
            return error_response(fault, 500)
        metrics.count_receipt(source.name, receipt)
        metrics.intake_s.labels(source.name).observe(time.perf_counter() - started)
        if source.accepted_status == 204:
            return Response(status_code=204)
        body = {"accepted": receipt.events, "duplicates": receipt.duplicates, "incidents": receipt.incidents}
        return _json(body, source.accepted_status)

    return hook


async def _read(source: Source, request: Request, settings: Settings, gate: _Gate) -> Prepared:
    """The verified, parsed delivery. Raises `RequestError`, or `StoreError` where memory is short."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.raw}
    secrets = settings.sources.get(source.name)
    check_caller(secrets, source.name, headers, request.client.host if request.client else None)
    source.check_media_type(headers.get("content-type", "").partition(";")[0].strip().lower())
    limit = settings.app.max_body_bytes
    declared = headers.get("content-length")
    packed = "content-encoding" in headers
    held = _held_bytes(declared, packed, limit)
    gate.take(held)
    try:
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                raw = await read_bounded(request.stream(), declared, limit)
        except TimeoutError:
            raise RequestError(
                f"The body did not come within {BODY_DEADLINE_S:g} s.", "Send it again.", status=408
            ) from None
        check_signature(secrets, source.name, headers, raw)

        def parse() -> Prepared:
            body = decompress(raw, headers.get("content-encoding", ""), limit)
            return prepare(source.parse(body, request.query_params))

        return parse() if len(raw) < _SMALL_BYTES and not packed else await run_in_threadpool(parse)
    finally:
        gate.give_back(held)


def _held_bytes(declared: str | None, packed: bool, limit: int) -> int:
    """How much memory a body will likely take; logs shrink about tenfold, so a packed one counts for more."""
    if declared is None or not declared.isdecimal() or len(declared) > 15:
        return limit
    return min(limit, int(declared) * (_UNPACKED_RATIO if packed else 1))


async def _no_such_hook(request: Request) -> Response:
    paths = ", ".join(f"POST {source.path}" for source in SOURCES)
    if any(source.path == request.url.path for source in SOURCES):
        return error_response(RequestError(f"This hook takes POST, not {request.method}.", f"There are: {paths}."), 405)
    return error_response(RequestError("There is no such hook.", f"There are: {paths}."), 404)


def _json(body: object, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")
