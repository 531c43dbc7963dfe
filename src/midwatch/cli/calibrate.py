"""`midwatch calibrate`: make confidence tell the truth here, and say whether the promise about it still holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.copilot.confidence import Calibration
    from midwatch.copilot.model import Diagnosis, Feedback
    from midwatch.copilot.store import Store
    from midwatch.settings import Settings

Column = Literal["rules", "local"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("calibrate", help="Refit confidence on what people said of diagnoses, or on labelled incidents.")(
        calibrate
    )


def calibrate(
    source: Annotated[
        str, typer.Option("--set", help="Fit on a set of labelled incidents instead of feedback (foundry-calibrate).")
    ] = "",
    column: Annotated[Column, typer.Option(help="The way of answering: with the local model, or by rules alone.")] = (
        "local"
    ),
    count: Annotated[int | None, typer.Option(min=1, help="So many incidents of the set.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write the calibration there instead of where it is used.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the promise holds; exit 1 if not.")] = False,
) -> None:
    """Fit, write, and print what changed."""
    from midwatch import settings as settings_module
    from midwatch.cli import local_model
    from midwatch.copilot import calibration as calibrations

    settings = settings_module.load()
    if check:
        raise typer.Exit(_check(settings))
    before = local_model.calibration(settings, column)
    made = _of_set(settings, source, column, count) if source else _of_feedback(settings, column, before)
    path = to or local_model.refitted(settings, column)
    calibrations.save(made, path)
    right = sum(good for _, good in made.scores)
    typer.echo(f"{path}: fitted on {len(made.scores)} answers, {right} right ({made.fitted_on}).")
    alpha = settings.copilot.alpha
    was = f" (was {before.threshold(alpha):.2f})" if before is not None else ""
    typer.echo(f"Answers are accepted from {made.threshold(alpha):.2f}{was} for a promise of {alpha:.0%}.")


def _check(settings: Settings) -> int:
    from midwatch.cli import remembering
    from midwatch.copilot.standing import standing

    with remembering.open_store() as (_, store):
        found = standing(judged(store), settings.copilot.alpha)
    typer.echo(found.sentence)
    return int(found.broken)


def judged(store: Store) -> list[tuple[Diagnosis, Feedback]]:
    """Diagnoses that people judged, each with the last word on it."""
    last = {said.incident_id: said for said in store.feedback()}
    found = []
    for number, said in sorted(last.items()):
        view = store.incident(number)
        if view is not None and view.finding is not None:
            found.append((view.finding.diagnosis, said))
    return found


def _of_feedback(settings: Settings, column: str, before: Calibration | None) -> Calibration:
    from midwatch.cli import remembering
    from midwatch.copilot import calibration as calibrations
    from midwatch.copilot import standing

    if before is None:
        raise SettingsError(
            f"There is no calibration for {column} with this model yet, so feedback cannot refine one.",
            "Fit one on labelled incidents first: midwatch calibrate --set foundry-calibrate.",
        )
    with remembering.open_store() as (_, store):
        outcomes = standing.outcomes(judged(store), column)
    return calibrations.calibrate(
        outcomes,
        column=column,
        model=before.model,
        choice=before.choice,
        fitted_on=f"feedback on {len(outcomes)} diagnoses",
        date=_today(),
        words=before.words,
    )


def _of_set(settings: Settings, name: str, column: str, count: int | None) -> Calibration:
    from midwatch.cli import embedded, local_model
    from midwatch.copilot.triage import Options, Triage
    from midwatch.engine import hub
    from midwatch.evaluation import fitting, sets

    incidents = [item for item in sets.load(name, count=count) if item.truth.category]
    words = fitting.known_words(settings.copilot.evidence_tokens)
    model = local_model.asked_for(settings)
    options = Options(taught=model == settings.copilot.adapter, samples=settings.copilot.samples)

    async def find() -> list[fitting.Judged]:
        provider = None
        if column == "local":
            path = hub.resolve(settings.engine.model, settings.cache_dir)
            engine = local_model.with_adapter(settings.engine)
            loading = embedded.load_in_thread(path, engine, settings.kernel_dir)
            provider = await embedded.start(loading, model=model, usd_per_hour=0.0)
        try:
            triage = Triage(provider, None, settings.copilot, options)
            return await fitting.find_all(triage, incidents, tell=_tell(len(incidents)))
        finally:
            if provider is not None:
                await provider.aclose()

    return fitting.fit(
        asyncio.run(find()),
        column=column,
        model=model if column == "local" else "signature rules",
        fitted_on=f"{len(incidents)} incidents of {name}",
        date=_today(),
        words=words,
    )


def _tell(total: int) -> Callable[[int], None]:
    def tell(count: int) -> None:
        if count % 50 == 0 or count == total:
            typer.echo(f"{count} of {total} incidents", err=True)

    return tell


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
