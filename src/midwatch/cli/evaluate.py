"""`midwatch eval triage`: how often is it right, and does it know when it is not?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.evaluation.judge import Diagnoser
    from midwatch.evaluation.measures import Measure
    from midwatch.evaluation.verdict import Verdict
    from midwatch.foundry.incident import Incident
    from midwatch.settings import Settings

SET = typer.Argument(metavar="SET", help="A set by name, or a file of labelled incidents; --sets lists the names.")
COLUMN = typer.Option(help="Who is judged; give it several times for several.")
DATA = typer.Option(envvar="MIDWATCH_DATA", help="Folder that has the public incidents in its incidents folder.")


class Column(StrEnum):
    """Who answers."""

    rules = "rules"
    local = "local"
    escalated = "escalated"


def register(app: typer.Typer) -> None:
    """Add the group of verbs."""
    group = typer.Typer(no_args_is_help=True, help="Measure how good the answers are.")
    group.command("triage", help="Judge diagnoses of incidents whose cause is known.")(triage)
    app.add_typer(group, name="eval")


def triage(
    set_: Annotated[str, SET],
    *,
    column: Annotated[list[Column] | None, COLUMN] = None,
    count: Annotated[int | None, typer.Option(help="How many incidents to make or to read.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a set that the foundry makes.", min=0)] = None,
    out: Annotated[Path, typer.Option(help="Folder of verdicts and rows.")] = Path("results/triage"),
    data: Annotated[Path, DATA] = Path("../shared/data"),
    concurrency: Annotated[int, typer.Option(help="Incidents asked about at once.", min=1)] = 1,
) -> None:
    """Judge each column on the set, then print the table."""
    from midwatch import settings as settings_module
    from midwatch.evaluation import sets

    settings = settings_module.load()
    incidents = list(sets.load(set_, count=count, seed=seed, data=data))
    judging = _Judging(name=Path(set_).stem, incidents=incidents, settings=settings, out=out, concurrency=concurrency)
    _show(asyncio.run(judging.run(column or [Column.rules, Column.local])))


@dataclass(frozen=True, kw_only=True)
class _Judging:
    """A set that is judged column by column. Verdicts are kept below `out`."""

    name: str
    incidents: Sequence[Incident]
    settings: Settings
    out: Path
    concurrency: int

    async def run(self, columns: Sequence[Column]) -> dict[str, list[Verdict]]:
        """The verdicts of each column."""
        return {column.value: await self._column(column) for column in columns}

    async def _column(self, column: Column) -> list[Verdict]:
        from rich.console import Console

        from midwatch.evaluation.judge import Run, fingerprint, judge

        copilot = self.settings.copilot
        facts = {
            "evidence_tokens": str(copilot.evidence_tokens),
            "threshold": f"{copilot.confidence_threshold:g}",
            **({} if column is Column.rules else {"model": self.settings.engine.model}),
        }
        run = Run(set=self.name, column=column.value, facts=facts, code=fingerprint())
        console = Console(stderr=True, highlight=False)
        with console.status(f"{column}: 0 of {len(self.incidents)}") as status:

            def tell(done: int, _: Verdict) -> None:
                status.update(f"{column}: {done} of {len(self.incidents)}")

            async with _open(column, self.settings) as diagnoser:
                return await judge(
                    run,
                    self.incidents,
                    diagnoser,
                    record=self.out / "verdicts" / f"{run.set}-{run.column}.jsonl",
                    concurrency=self.concurrency,
                    tell=tell,
                )


@asynccontextmanager
async def _open(column: Column, settings: Settings) -> AsyncIterator[Diagnoser]:
    """What is judged in a column, with its model loaded, closed at the end."""
    from midwatch.cli import embedded
    from midwatch.copilot.triage import Triage
    from midwatch.engine import hub
    from midwatch.gateway.providers import OpenAIProvider

    if column is Column.rules:
        yield Triage(None, None, settings.copilot)
        return
    bigger = settings.copilot.escalation
    if column is Column.escalated and bigger is None:
        raise SettingsError("No host to escalate to is set.", "Give --host URL and --model NAME.")
    path = hub.resolve(settings.engine.model, settings.cache_dir)
    loading = embedded.load_in_thread(path, settings.engine, settings.kernel_dir)
    local = await embedded.start(loading, model=settings.engine.model, usd_per_hour=settings.copilot.local_usd_per_hour)
    host = None
    if column is Column.escalated and bigger is not None:
        host = OpenAIProvider(bigger, name="host", remote=True)
    try:
        yield Triage(local, host, settings.copilot)
    finally:
        await local.aclose()
        if host is not None:
            await host.aclose()


def _show(found: Mapping[str, Sequence[Verdict]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from midwatch.evaluation.measures import measure

    columns = {name: measure(verdicts) for name, verdicts in found.items()}
    table = Table(title_justify="left")
    table.add_column("measure")
    for name in columns:
        table.add_column(name, justify="right")
    for key, first in next(iter(columns.values())).items():
        table.add_row(first.name, *(_cell(measures[key]) for measures in columns.values()))
    Console().print(table)


def _cell(measure: Measure) -> str:
    from midwatch.results import figure

    found = measure.interval
    if found is None:
        return "–"
    if found.low == found.high:
        return figure(found.value)
    return f"{figure(found.value)} [{figure(found.low)}, {figure(found.high)}] n={measure.cases}"
