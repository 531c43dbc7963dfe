"""`midwatch triage`: one log in, one cited diagnosis out, with no server running."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midwatch.errors import ModelError, ProviderError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from midwatch.copilot.model import Case, Diagnosis, Evidence, Finding
    from midwatch.engine.engine import Engine
    from midwatch.gateway.providers import Provider
    from midwatch.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("triage", help="Say what is wrong in a log, and cite the lines that show it.")(triage)


def triage(  # noqa: PLR0917 - these are options of a command
    file: Annotated[str, typer.Argument(help="A log file (also .gz), or - for standard input.", metavar="FILE|-")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    service: Annotated[str, typer.Option(help="The service that the log is about.")] = "",
    title: Annotated[str, typer.Option(help="The alert's title, if there is one.")] = "",
    engine_url: Annotated[
        str | None, typer.Option(help="Ask an engine that runs (http://127.0.0.1:8011) instead of loading one.")
    ] = None,
    rules_only: Annotated[bool, typer.Option("--rules-only", help="Ask no model: signature rules alone.")] = False,
) -> None:
    """Read the log, choose the evidence while the model loads, ask once, check, print."""
    from midwatch import settings as settings_module
    from midwatch.cli import logfile

    started = time.perf_counter()
    settings = settings_module.load()
    with logfile.open_log(file) as stream:
        loading = None if rules_only or engine_url else _begin_loading(settings)
        from midwatch.copilot.evidence import read_evidence
        from midwatch.copilot.model import Case

        log = logfile.Log(stream)
        case = Case(service=service, title=title)
        evidence = read_evidence(case, log.blocks(), settings.copilot.evidence_tokens)
    finding = asyncio.run(_explain(case, evidence, settings, loading=loading, engine_url=engine_url, started=started))
    finding = _with_note(finding, log.note)
    if as_json:
        sys.stdout.write(json.dumps(as_object(finding.diagnosis), ensure_ascii=True) + "\n")
    else:
        from midwatch.cli.diagnosis import show

        show(finding)


def as_object(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as `--json` prints it."""
    return {
        "category": diagnosis.category,
        "severity": diagnosis.severity,
        "entity": diagnosis.entity,
        "summary": diagnosis.summary,
        "confidence": diagnosis.confidence,
        "calibrated": diagnosis.calibrated,
        "action": diagnosis.action,
        "citations": [
            {"id": item.id, "line_number": item.line_number, "text": item.text} for item in diagnosis.citations
        ],
        "next_steps": list(diagnosis.next_steps),
        "model": diagnosis.model,
        "latency_ms": round(diagnosis.latency_ms, 1),
        "tokens": diagnosis.prompt_tokens + diagnosis.completion_tokens,
        "cost_usd": diagnosis.cost_usd,
    }


def _begin_loading(settings: Settings) -> Future[Engine]:
    from midwatch.cli import local_model
    from midwatch.cli.embedded import load_in_thread
    from midwatch.engine import hub

    try:
        path = hub.resolve(settings.engine.model, settings.cache_dir)
    except ModelError as error:
        raise ModelError(
            error.what, f"{error.next_step} Or ask no model: midwatch triage --rules-only.".strip()
        ) from None
    return load_in_thread(path, local_model.with_adapter(settings.engine), settings.kernel_dir)


async def _explain(
    case: Case,
    evidence: Evidence,
    settings: Settings,
    *,
    loading: Future[Engine] | None,
    engine_url: str | None,
    started: float,
) -> Finding:
    from midwatch.cli import local_model
    from midwatch.copilot.triage import Triage
    from midwatch.gateway.providers import OpenAIProvider, engine_at

    local: Provider | None = None
    model = local_model.asked_for(settings)
    if engine_url is not None:
        local = engine_at(engine_url, model, usd_per_hour=settings.copilot.local_usd_per_hour)
    elif loading is not None:
        from midwatch.cli import embedded

        local = await embedded.start(loading, model=model, usd_per_hour=settings.copilot.local_usd_per_hour)
    bigger = settings.copilot.escalation
    escalation = None if bigger is None else OpenAIProvider(bigger, name=_host_of(bigger.base_url), remote=True)
    diagnoser = Triage(local, escalation, settings.copilot, local_model.options(settings))
    try:
        return await diagnoser.explain(case, evidence, started=started)
    except ProviderError as error:
        reason = f"The model did not answer ({error.what}); the rules alone decided."
        return await diagnoser.explain_by_rules(case, evidence, reason, started=started)
    finally:
        for provider in (local, escalation):
            if provider is not None:
                await provider.aclose()


def _host_of(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or "escalation"


def _with_note(finding: Finding, note: str) -> Finding:
    """The finding with a note of what was left out of the log."""
    if not note:
        return finding
    diagnosis = finding.diagnosis
    return replace(finding, diagnosis=replace(diagnosis, note=f"{diagnosis.note} {note}".strip()))
