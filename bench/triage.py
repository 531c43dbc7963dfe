"""How good and how fast is a diagnosis? `midwatch triage` as a process, and the rules alone on logs with a known cause.

    python bench/triage.py [--runs 5] [--data ../shared/data]

The speed row is wall time from starting the process to its exit, on a log of 2,000 lines: the healthy traffic of one of
our recordings repeated, then the recording itself. The accuracy rows ask no model. They use the public development half
of third-party failure logs, which the rules were improved on, so they say what was reached there and not what to expect
elsewhere; only cases whose published cause maps to one of our categories take part (`evaluation/public.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from midwatch import results, settings
from midwatch.cli import embedded, local_model
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Evidence
from midwatch.copilot.triage import Triage
from midwatch.engine import hub
from midwatch.evaluation import public, sets
from midwatch.evaluation.verdict import wording
from midwatch.foundry.incident import Incident
from midwatch.results import Row

ROOT = Path(__file__).resolve().parent.parent
LOG_LINES = 2_000
CITED = 3


def hits(incident: Incident, evidence: Evidence, cited_only: bool) -> bool:
    """Whether one of the lines shown (or cited first by the rules) is a telling one, or says the same."""
    ids = set(evidence.ranking[0].line_ids[:CITED]) if evidence.ranking else set()
    numbers = [line.line_number for line in evidence.lines if not cited_only or line.id in ids]
    lines, telling = incident.case.lines, incident.truth.lines
    said = {wording(lines[number - 1]) for number in telling if number <= len(lines)}
    return any(number in telling or wording(lines[number - 1]) in said for number in numbers)


def accuracy_rows(folder: Path | None) -> list[Row]:
    """Share of right categories, and of cases whose telling lines were shown and cited, by source."""
    gathered: dict[str, list[tuple[Incident, Evidence]]] = {}
    cases = [("own recordings", sets.recordings(ROOT / sets.DEMO))]
    cases += [(source, public.read(folder, source)) for source in public.SOURCES] if folder is not None else []
    for name, incidents in cases:
        gathered[name] = [(incident, build_evidence(incident.case)) for incident in incidents]
    rows = []
    for source, pairs in gathered.items():
        judged = [
            (incident, evidence.ranking[0].category if evidence.ranking else "unknown")
            for incident, evidence in pairs
            if incident.truth.category
        ]
        if judged:
            wrong = {incident.id: said for incident, said in judged if not incident.truth.right(said)}
            right = len(judged) - len(wrong)
            extra: dict[str, float | str] = {"right": right, "cases": len(judged), **wrong}
            rows.append(
                results.row(f"category right, rules only: {source}", [right / len(judged)], "share", extra=extra)
            )
        marked = [(incident, evidence) for incident, evidence in pairs if incident.truth.lines]
        if marked:
            for what, cited_only in (("shown", False), (f"among the first {CITED} cited", True)):
                found = sum(hits(incident, evidence, cited_only) for incident, evidence in marked)
                extra = {"found": found, "cases": len(marked)}
                rows.append(
                    results.row(f"a telling line {what}: {source}", [found / len(marked)], "share", extra=extra)
                )
    return rows


def long_log() -> str:
    """2,000 lines: healthy traffic, then an incident."""
    lines = (ROOT / "demo" / "incidents" / "postgres-connections" / "log.txt").read_text(encoding="utf-8").splitlines()
    healthy = [line for line in lines[:100] if "ERROR" not in line and "FATAL" not in line]
    padding = (healthy * (LOG_LINES // len(healthy) + 1))[: LOG_LINES - len(lines)]
    return "\n".join([*padding, *lines]) + "\n"


def process_rows(runs: int) -> list[Row]:
    """Wall time of the whole command, with the embedded model and with the rules alone."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "app.log"
        path.write_text(long_log(), encoding="utf-8")
        for name, flags, target in (("with the embedded model", [], 6.0), ("rules only", ["--rules-only"], None)):
            seconds, tokens = [], []
            for _ in range(runs):
                started = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "midwatch", "triage", str(path), "--json", *flags],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds.append(time.perf_counter() - started)
                found = json.loads(done.stdout)
                tokens.append(found["tokens"])
            rows.append(
                results.row(
                    f"midwatch triage of {LOG_LINES} lines, {name}",
                    seconds,
                    "s",
                    target=target,
                    direction="at_most" if target else None,
                    note="whole process, start to exit",
                    extra={"category": found["category"], "tokens": tokens[-1]},
                )
            )
    return rows


def watched_rows(count: int) -> list[Row]:
    """Seconds for one incident of 2,000 lines with the engine loaded: evidence, answer, draws, weighing."""

    async def measure() -> list[float]:
        chosen = settings.load()
        path = hub.resolve(chosen.engine.model, chosen.cache_dir)
        loading = embedded.load_in_thread(path, local_model.with_adapter(chosen.engine), chosen.kernel_dir)
        provider = await embedded.start(loading, model=local_model.asked_for(chosen), usd_per_hour=0.0)
        triage = Triage(provider, None, chosen.copilot, local_model.options(chosen))
        healthy = long_log().splitlines()[:LOG_LINES]
        seconds = []
        for incident in sets.load("foundry-programs", count=count):
            lines = incident.case.lines[:LOG_LINES]
            padded = replace(incident.case, lines=(*healthy[: LOG_LINES - len(lines)], *lines))
            started = time.perf_counter()
            await triage.diagnose(padded)
            seconds.append(time.perf_counter() - started)
        await provider.aclose()
        return sorted(seconds)

    seconds = asyncio.run(measure())
    extra: dict[str, float | str] = {"incidents": count}
    return [
        results.row(
            f"one incident of {LOG_LINES} lines on watch, {name}",
            [seconds[min(int(len(seconds) * share), len(seconds) - 1)]],
            "s",
            target=target,
            direction="at_most",
            extra=extra,
        )
        for name, share, target in (("p50", 0.5, 3.0), ("p95", 0.95, 8.0))
    ]


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Measure midwatch triage and the rules behind it.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    incidents = arguments.data / "incidents"
    rows = [*process_rows(arguments.runs), *watched_rows(40), *accuracy_rows(incidents if incidents.exists() else None)]
    print(results.table(rows))
    results.write(ROOT / "results" / "triage" / "triage.json", rows)


if __name__ == "__main__":
    main()
