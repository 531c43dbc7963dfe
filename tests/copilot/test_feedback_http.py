"""A verdict as a page or a script sends it: who may, in which form, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from intake_kit import finding, post, serving
from pydantic import SecretStr
from recall_kit import diagnosed, new_store
from starlette.applications import Starlette

from midwatch.copilot.metrics import Metrics
from midwatch.copilot.server import MAX_FEEDBACK_BYTES, feedback_routes, hook_routes
from midwatch.settings import Settings, SourceSettings

WRONG = {"verdict": "wrong", "category": "dns_resolution", "note": "The resolver was down."}


async def say(
    folder: Path, body: Any, *, incident: object = 1, settings: dict[str, Any] | None = None, **headers: str
) -> tuple[int, dict[str, Any], list[Any]]:
    """Status, answer, and what is kept afterwards, for a store with one diagnosed incident."""
    store = new_store(folder)
    await diagnosed(store, finding("disk_storage_full"))
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with serving(Starlette(routes=feedback_routes(store, Settings(**(settings or {}))))) as url:
        headers = {"Content-Type": "application/json", **headers}
        status, answer, _ = await post(f"{url}/api/incidents/{incident}/feedback", raw, **headers)
    kept = store.feedback()
    store.close()
    return status, answer, kept


async def test_a_verdict_is_kept_and_said_back(tmp_path: Path) -> None:
    status, answer, kept = await say(tmp_path, WRONG)
    assert status == 201
    assert answer["feedback"]["category"] == "dns_resolution"
    assert [(item.verdict, item.note, item.version) for item in kept] == [("wrong", "The resolver was down.", 1)]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        ([], 422, "not an object"),
        ({}, 422, "right or wrong"),
        ({"verdict": "maybe"}, 422, "right or wrong"),
        ({"verdict": "right", "note": 7}, 422, "right or wrong"),
        ({"verdict": "wrong", "category": "gremlins"}, 400, "no category"),
        ({"verdict": "right", "note": "x" * MAX_FEEDBACK_BYTES}, 413, "larger than"),
    ],
)
async def test_what_is_no_verdict_is_refused_in_words(tmp_path: Path, body: Any, status: int, words: str) -> None:
    found, answer, kept = await say(tmp_path, body)
    assert (found, kept) == (status, [])
    assert words in answer["error"]["message"]


async def test_an_unknown_incident_is_404(tmp_path: Path) -> None:
    status, answer, _ = await say(tmp_path, WRONG, incident=99)
    assert (status, answer["error"]["message"]) == (404, "There is no incident 99.")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"X-Forwarded-For": "203.0.113.9"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://127.0.0.1:8010"}, 201),
    ],
)
async def test_a_page_from_elsewhere_cannot_write_into_the_memory(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    found, _, kept = await say(tmp_path, WRONG, **headers)
    assert (found, len(kept)) == (status, int(status == 201))


@pytest.mark.parametrize(("token", "status"), [("right-one", 201), ("wrong-one", 401), ("", 401)])
async def test_a_token_is_wanted_where_one_is_set(tmp_path: Path, token: str, status: int) -> None:
    settings = {"sources": {"feedback": SourceSettings(tokens=(SecretStr("right-one"),))}}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    found, _, kept = await say(tmp_path, WRONG, settings=settings, **headers)
    assert (found, len(kept)) == (status, int(status == 201))


def test_a_secret_for_feedback_is_a_secret_of_something(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    assert hook_routes(store, Settings(sources={"feedback": SourceSettings()}), Metrics())
    store.close()
