"""The replayer against a small real app: what it sends, what it waits for, and how it judges."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import recordings  # noqa: E402
import replay  # noqa: E402

RECORDINGS = {recording.service: recording for recording in recordings.load_all()}


class App:
    """Takes deliveries, and diagnoses an incident once all of its deliveries are there; `deaf` services never are."""

    def __init__(self, *, answers: dict[str, str] | None = None, deaf: frozenset[str] = frozenset()) -> None:
        self.answers = answers or {}
        self.deaf = deaf
        self.got: dict[str, list[str]] = {}
        self.bodies: dict[str, list[Any]] = {}
        self.rows: dict[int, dict[str, Any]] = {}

    def routes(self) -> web.Application:
        app = web.Application(client_max_size=10_000_000)
        app.router.add_post("/loki/api/v1/push", self.loki)
        app.router.add_post("/hooks/alertmanager", self.alertmanager)
        app.router.add_post("/hooks/text", self.text)
        app.router.add_get("/api/incidents", self.listed)
        app.router.add_get("/api/incidents/{id}", self.one)
        return app

    def take(self, service: str, hook: str, body: Any) -> None:
        self.got.setdefault(service, []).append(hook)
        self.bodies.setdefault(service, []).append(body)
        number = list(self.got).index(service) + 1
        wanted = RECORDINGS[service.removesuffix("-2")].delivery.split("+")
        complete = set(wanted) <= set(self.got[service]) and service not in self.deaf
        self.rows[number] = {
            "id": number,
            "service": service,
            "state": "diagnosed" if complete else "waiting",
            "diagnosed_at": time.time() if complete else None,
        }

    async def loki(self, request: web.Request) -> web.Response:
        body = await request.json()
        (stream,) = body["streams"]
        self.take(stream["stream"]["service_name"], "loki", stream["values"])
        return web.Response(status=204)

    async def alertmanager(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.take(body["groupLabels"]["service"], "alertmanager", body)
        return web.Response(status=202)

    async def text(self, request: web.Request) -> web.Response:
        self.take(request.query["service"], "text", await request.text())
        return web.Response(status=202)

    async def listed(self, request: web.Request) -> web.Response:
        return web.json_response({"incidents": list(reversed(self.rows.values()))})

    async def one(self, request: web.Request) -> web.Response:
        row = self.rows[int(request.match_info["id"])]
        recording = RECORDINGS[row["service"].removesuffix("-2")]
        number = recording.cause_lines[0]
        diagnosis = {
            "category": self.answers.get(recording.name, recording.category),
            "confidence": 0.8,
            "calibrated": False,
            "action": "accept",
            "latency_ms": 1500.0,
            "cost_usd": 0.00004,
            "citations": [{"id": "L1", "line_number": number, "text": recording.lines[number - 1]}],
        }
        return web.json_response(row | {"finding": {"diagnosis": diagnosis}})


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> Any:
    app: App = request.param
    runner = web.AppRunner(app.routes())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield app, f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def run(url: str, *, patience_s: float = 20) -> list[replay.Outcome]:
    async with aiohttp.ClientSession() as session:
        return await replay.Replay(session, url, patience_s=patience_s).run(recordings.load_all(), lambda _: None)


@pytest.mark.parametrize("served", [App()], indirect=True)
async def test_every_incident_is_sent_in_its_own_way_and_in_its_own_order(served: tuple[App, str]) -> None:
    app, url = served
    outcomes = await run(url)
    assert [outcome.verdict for outcome in outcomes] == ["right"] * 12
    assert all(outcome.cites_cause for outcome in outcomes)
    for service, recording in RECORDINGS.items():
        assert list(dict.fromkeys(app.got[service])) == recording.delivery.split("+")


@pytest.mark.parametrize("served", [App()], indirect=True)
async def test_pushed_lines_are_whole_in_order_and_moved_to_now(served: tuple[App, str]) -> None:
    app, url = served
    before_ns = time.time_ns()
    await run(url)
    after_ns = time.time_ns()
    pushed = [pair for batch in app.bodies["fx-rates"] for pair in batch]
    recording = RECORDINGS["fx-rates"]
    assert [text for _, text in pushed] == list(recording.lines)
    assert all(isinstance(at, str) for at, _ in pushed)
    assert before_ns <= int(pushed[-1][0]) <= after_ns
    shift = int(pushed[0][0]) - recording.times_ns[0]
    assert [int(at) - shift for at, _ in pushed] == list(recording.times_ns), "the gaps between lines stay"
    (alert,) = next(body for body in app.bodies["checkout-api"] if isinstance(body, dict))["alerts"]
    assert before_ns - 60 * 10**9 < recordings.time_ns(alert["startsAt"] + " ") < after_ns
    assert app.bodies["quote-api"] == ["\n".join(RECORDINGS["quote-api"].lines) + "\n"]


WRONG = App(
    answers={"dns-failure": "oom_memory", "migration-lock": "database_slow_or_locked", "false-alarm": "unknown"},
    deaf=frozenset({"thumbnailer"}),
)


@pytest.mark.parametrize("served", [WRONG], indirect=True)
async def test_wrong_accepted_abstained_and_never_are_told_apart(served: tuple[App, str]) -> None:
    _, url = served
    verdicts = {outcome.name: outcome.verdict for outcome in await run(url, patience_s=1.5)}
    assert verdicts["dns-failure"] == "wrong"
    assert verdicts["migration-lock"] == "accepted"
    assert verdicts["false-alarm"] == "abstained"
    assert verdicts["oom-kill"] == "never"
    assert sum(verdict == "right" for verdict in verdicts.values()) == 8


@pytest.mark.parametrize("served", [App()], indirect=True)
async def test_a_second_replay_is_of_services_that_the_app_has_not_met(served: tuple[App, str]) -> None:
    app, url = served
    await run(url)
    again = await run(url)
    assert [outcome.verdict for outcome in again] == ["right"] * 12
    assert {outcome.service for outcome in again} == {f"{service}-2" for service in RECORDINGS}
    body = next(body for body in app.bodies["checkout-api-2"] if isinstance(body, dict))
    (alert,) = body["alerts"]
    assert alert["fingerprint"] == recordings.fingerprint(alert["labels"])
    assert body["groupKey"] == '{}:{alertname="HighErrorRate", service="checkout-api-2"}'
    assert app.bodies["checkout-api"] != app.bodies["checkout-api-2"]


async def command(*arguments: str) -> tuple[int, str, str]:
    import asyncio

    process = await asyncio.create_subprocess_exec(
        sys.executable, str(DEMO / "replay.py"), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("served", [App()], indirect=True)
async def test_the_command_prints_one_json_object_and_ends_well(served: tuple[App, str]) -> None:
    code, out, err = await command("--app", served[1], "--once", "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["totals"]["right"] == answer["totals"]["incidents"] == 12
    assert answer["totals"]["cost_usd"] == pytest.approx(12 * 0.00004)
    assert 0 < answer["totals"]["first_diagnosis_s"] <= answer["totals"]["last_diagnosis_s"]


@pytest.mark.parametrize("served", [App(deaf=frozenset({"quote-api"}))], indirect=True)
async def test_the_table_says_what_was_never_diagnosed_and_the_exit_code_too(served: tuple[App, str]) -> None:
    code, out, err = await command("--app", served[1], "--once", "--patience", "1")
    assert code == 1, err
    assert "never diagnosed" in out and "11 of 12" in out and "uncalibrated" in out


async def test_no_app_is_answered_with_how_to_start_one() -> None:
    code, _, err = await command("--app", "http://127.0.0.1:9", "--once")
    assert code == 2
    assert "midwatch up" in err and "Traceback" not in err
