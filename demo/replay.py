#!/usr/bin/env python3
"""Replay the recorded incidents over HTTP to a running Midwatch, and see what it makes of them.

    python demo/replay.py --app http://127.0.0.1:8010 [--once] [--json]

Logs go to Loki's push API with their times moved to now, alerts to the Alertmanager hook, one log to the text hook;
then the page's JSON is read until every incident is diagnosed. Exit code 1 if one never is, 2 if no Midwatch answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recordings import Recording, load_all, renamed

BATCH_LINES = 100
POLL_S = 0.2
_MARKS = {"right": "[green]✓[/]", "accepted": "[yellow]≈[/]", "wrong": "[red]✗[/]", "abstained": "[yellow]?[/]"}


class ReplayError(Exception):
    """The app does not answer, or refuses what it is sent; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one incident. `seconds` is from its first delivery to its diagnosis as read over HTTP.

    `verdict` is right, accepted (an alternative where the taxonomy is ambiguous), wrong, abstained (`unknown`) or
    never.
    `cites_cause` is True if a cited line is one of those that show the cause. The model's own time is `latency_ms`.
    """

    name: str
    service: str
    truth: str
    verdict: str
    category: str = ""
    confidence: float = 0.0
    calibrated: bool = False
    action: str = ""
    cites_cause: bool = False
    seconds: float = 0.0
    latency_ms: float = 0.0
    cost_usd: float = 0.0
    incident_id: int | None = None


def loki_bodies(recording: Recording, *, now_ns: int) -> list[dict[str, Any]]:
    """Bodies of Loki's push API, in batches, with the last line at `now_ns`."""
    shift = now_ns - recording.times_ns[-1]
    labels = {"service_name": recording.service, "job": "syslog", "host": recording.lines[0].split(" ")[1]}
    values = [[str(at + shift), line] for at, line in zip(recording.times_ns, recording.lines, strict=True)]
    batches = [values[start : start + BATCH_LINES] for start in range(0, len(values), BATCH_LINES)]
    return [{"streams": [{"stream": labels, "values": batch}]} for batch in batches]


def alert_body(recording: Recording, *, now_ns: int) -> dict[str, Any]:
    """The recorded Alertmanager body with its start moved as far as the log's lines are."""
    body = copy.deepcopy(recording.alert)
    assert body is not None, f"{recording.name} has no alert"
    shift = timedelta(microseconds=(now_ns - recording.times_ns[-1]) // 1000)
    for alert in body["alerts"]:
        alert["startsAt"] = (datetime.fromisoformat(alert["startsAt"]) + shift).isoformat().replace("+00:00", "Z")
    return body


def judge(recording: Recording, view: dict[str, Any], *, seconds: float) -> Outcome:
    """Compare an incident's diagnosis, as the page's JSON gives it, with the truth."""
    diagnosis = view["finding"]["diagnosis"]
    category = diagnosis["category"]
    cause = {recording.lines[number - 1].strip() for number in recording.cause_lines}
    verdict = "abstained" if category == "unknown" else "wrong"
    if category == recording.category:
        verdict = "right"
    elif category in recording.alternatives:
        verdict = "accepted"
    return Outcome(
        name=recording.name,
        service=recording.service,
        truth=recording.category,
        verdict=verdict,
        category=category,
        confidence=diagnosis["confidence"],
        calibrated=diagnosis["calibrated"],
        action=diagnosis["action"],
        cites_cause=any(citation["text"].strip() in cause for citation in diagnosis["citations"]),
        seconds=seconds,
        latency_ms=diagnosis["latency_ms"],
        cost_usd=diagnosis["cost_usd"],
        incident_id=view["id"],
    )


def never(recording: Recording) -> Outcome:
    """The outcome of an incident that nobody diagnosed."""
    return Outcome(name=recording.name, service=recording.service, truth=recording.category, verdict="never")


def new_to(known: set[str], recordings: list[Recording]) -> list[Recording]:
    """The recordings under service names that an app has not met, or it would join them to the incidents it knows."""
    names = {recording.service for recording in recordings}
    run = next(n for n in itertools.count(1) if not known & {f"{name}-{n}" if n > 1 else name for name in names})
    return recordings if run == 1 else [renamed(recording, f"{recording.service}-{run}") for recording in recordings]


class Replay:
    """One replay against one app. `tell` is called with each outcome as it is read."""

    def __init__(self, session: aiohttp.ClientSession, app: str, *, patience_s: float) -> None:
        self._session = session
        self._app = app.rstrip("/")
        self._patience_s = patience_s
        self.first_s: float | None = None
        self.first_at: float | None = None

    async def run(self, recordings: list[Recording], tell: Callable[[Outcome], None]) -> list[Outcome]:
        """Send everything, then read until all are diagnosed or none has been for `patience_s` seconds."""
        known = {item["service"] for item in await self._incidents()}
        recordings = new_to(known, recordings)
        started = progress = time.monotonic()
        sent: dict[str, float] = {}
        for recording in recordings:
            sent[recording.service] = time.monotonic()
            await self._deliver(recording)
        done: dict[str, Outcome] = {}
        waiting = {recording.service: recording for recording in recordings}
        while waiting and time.monotonic() - progress < self._patience_s:
            for item in await self._incidents():
                if item["state"] != "diagnosed" or item["service"] not in waiting:
                    continue
                progress = time.monotonic()
                self.first_s = self.first_s or progress - started
                self.first_at = self.first_at or time.time()
                recording = waiting.pop(item["service"])
                view = await self._get(f"/api/incidents/{item['id']}")
                done[recording.name] = judge(recording, view, seconds=progress - sent[recording.service])
                tell(done[recording.name])
            await asyncio.sleep(POLL_S)
        return [done.get(recording.name) or never(recording) for recording in recordings]

    async def follow(self) -> None:
        """Return when the app no longer answers."""
        while True:
            try:
                await self._incidents()
            except ReplayError:
                return
            await asyncio.sleep(5)

    async def _deliver(self, recording: Recording) -> None:
        now_ns = time.time_ns()
        for hook in recording.delivery.split("+"):
            if hook == "loki":
                for body in loki_bodies(recording, now_ns=now_ns):
                    await self._post("/loki/api/v1/push", json=body)
            elif hook == "alertmanager":
                await self._post("/hooks/alertmanager", json=alert_body(recording, now_ns=now_ns))
            else:
                text = "\n".join(recording.lines) + "\n"
                query = {"service": recording.service, "title": recording.title}
                plain = {"Content-Type": "text/plain"}
                await self._post("/hooks/text", data=text.encode(), params=query, headers=plain)

    async def _post(self, path: str, **arguments: Any) -> None:
        try:
            async with self._session.post(self._app + path, **arguments) as response:
                if response.status not in (202, 204):
                    said = (await response.text())[:500]
                    raise ReplayError(f"{path} answered {response.status}: {said}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ReplayError(f"{path} did not answer ({type(error).__name__}). Is Midwatch still running?") from error

    async def _incidents(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = (await self._get("/api/incidents?limit=50"))["incidents"]
        return listed

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            async with self._session.get(self._app + path) as response:
                if response.status != 200:
                    raise ReplayError(f"{path} answered {response.status}; is {self._app} a Midwatch app?")
                answer: dict[str, Any] = await response.json()
                return answer
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            what = f"No Midwatch answers at {self._app} ({type(error).__name__})."
            raise ReplayError(f"{what} Start one with `midwatch up`, or name it with --app URL.") from error


def totals(outcomes: list[Outcome], *, first_s: float | None) -> dict[str, Any]:
    """Counts per verdict, the first diagnosis' time, and the bill."""
    verdicts = [outcome.verdict for outcome in outcomes]
    return {
        "incidents": len(outcomes),
        **{verdict: verdicts.count(verdict) for verdict in ("right", "accepted", "wrong", "abstained", "never")},
        "cites_cause": sum(outcome.cites_cause for outcome in outcomes),
        "first_diagnosis_s": first_s,
        "last_diagnosis_s": max((outcome.seconds for outcome in outcomes), default=0.0),
        "cost_usd": sum(outcome.cost_usd for outcome in outcomes),
    }


def table(outcomes: list[Outcome], summed: dict[str, Any]) -> Table:
    """The outcomes as people read them."""
    diagnosed = f"{summed['incidents'] - summed['never']} of {summed['incidents']} diagnosed"
    uncalibrated = any(not outcome.calibrated for outcome in outcomes if outcome.verdict != "never")
    shown = Table(box=box.SIMPLE_HEAD, show_footer=True)
    shown.add_column("incident", footer=diagnosed, no_wrap=True)
    shown.add_column("category", footer=f"{summed['right']} right, {summed['accepted']} accepted", no_wrap=True)
    shown.add_column("")
    shown.add_column("confidence", justify="right", footer="uncalibrated" if uncalibrated else "")
    shown.add_column("cites", justify="center", footer=str(summed["cites_cause"]))
    shown.add_column("seconds", justify="right", footer=f"{summed['last_diagnosis_s']:.1f}")
    shown.add_column("of it model", justify="right")
    shown.add_column("dollars", justify="right", footer=f"{summed['cost_usd']:.6f}")
    for outcome in outcomes:
        if outcome.verdict == "never":
            shown.add_row(outcome.name, "never diagnosed", "[red]✗[/]")
            continue
        truth = "" if outcome.verdict == "right" else f"\n[dim]truth: {outcome.truth}[/]"
        shown.add_row(
            outcome.name,
            outcome.category + truth,
            _MARKS[outcome.verdict],
            f"{outcome.confidence:.2f}",
            "[green]✓[/]" if outcome.cites_cause else "[red]✗[/]",
            f"{outcome.seconds:.1f}",
            f"{outcome.latency_ms / 1000:.1f}",
            f"{outcome.cost_usd:.6f}",
        )
    return shown


async def replay(
    app: str, *, patience_s: float, token: str, once: bool, as_json: bool, since: float | None = None
) -> int:
    """Replay everything, print, and stay until the app ends unless `once`. Gives the exit code.

    With `since` (seconds since the epoch) it also says how long after that the first diagnosis stood.
    """
    piped = not (sys.stderr if as_json else sys.stdout).isatty()
    people = Console(stderr=as_json, width=110 if piped else None, highlight=False)
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def tell(outcome: Outcome) -> None:
        people.print(f"{_MARKS[outcome.verdict]} {outcome.name}: {outcome.category} after {outcome.seconds:.1f} s")

    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
        run = Replay(session, app, patience_s=patience_s)
        outcomes = await run.run(load_all(), tell)
        summed = totals(outcomes, first_s=run.first_s)
        if as_json:
            print(json.dumps({"app": app, "incidents": [asdict(outcome) for outcome in outcomes], "totals": summed}))
        else:
            people.print(table(outcomes, summed))
            if run.first_s is not None:
                people.print(f"First diagnosis after {run.first_s:.1f} s, {summed['cost_usd']:.6f} dollars in all.")
        if since is not None and run.first_at is not None:
            people.print(f"From the start of everything to the first diagnosis: {run.first_at - since:.1f} s.")
        if not once:
            people.print(f"The page is at {app}. Ctrl-C ends this; it also ends when the app does.")
            with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
                await run.follow()
    return 1 if summed["never"] else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Replay the recorded incidents to a running Midwatch.")
    parser.add_argument("--app", default="http://127.0.0.1:8010", help="address of the app (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="end after the replay instead of staying with the app")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--token", default="", help="bearer token, where the hooks ask for one")
    parser.add_argument(
        "--patience",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="give up when no incident has been diagnosed for so long (default: %(default)s)",
    )
    parser.add_argument(
        "--since", type=float, metavar="EPOCH", help="also print how long after this time the first diagnosis stood"
    )
    asked = parser.parse_args()
    try:
        return asyncio.run(
            replay(
                asked.app,
                patience_s=asked.patience,
                token=asked.token,
                once=asked.once,
                as_json=asked.json,
                since=asked.since,
            )
        )
    except ReplayError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
