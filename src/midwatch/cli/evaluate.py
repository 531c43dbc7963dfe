"""`midwatch eval triage`: how often is it right, and does it know when it is not?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.copilot.triage import Options
    from midwatch.copilot.workflow import Diagnoser
    from midwatch.evaluation.cost import Price
    from midwatch.evaluation.report import Evaluated
    from midwatch.evaluation.verdict import Verdict
    from midwatch.foundry.incident import Incident
    from midwatch.gateway.providers import Provider
    from midwatch.settings import ProviderSettings, Settings

SETS = typer.Argument(
    metavar="SET...",
    help="foundry-seeds, foundry-programs, foundry-calibrate, incidents, one public source, demo, or a file of "
    "labelled incidents.",
)
COLUMN = typer.Option(help="Who is judged; give it several times for several. Default: rules and local.")
ABLATION = typer.Option("--ablation", help="Judge the local column without each of its parts as well.")
COUNT = typer.Option(help="How many incidents the foundry makes.", min=1)
LIMIT = typer.Option(help="Judge only the first so many of each set.", min=1)
OUT = typer.Option(help="Folder of rows and pictures.")
RECORD = typer.Option(help="Folder of verdicts (a run that was ended goes on from them) and, without --page, the page.")
DATA = typer.Option(envvar="MIDWATCH_DATA", help="Folder that has the public incidents in its incidents folder.")
CONCURRENCY = typer.Option(
    help="Incidents asked about at once. More than one is sooner done and slower for each.", min=1
)
HOST = typer.Option(help="Base URL of the bigger host; what is set for escalation if absent.")
MODEL = typer.Option(help="Model to ask the bigger host for.")
KEY_ENV = typer.Option(help="Environment variable that holds the host's key.")
USD_IN = typer.Option(help="The host's price of a million prompt tokens, US dollars.", min=0)
USD_OUT = typer.Option(help="The host's price of a million answer tokens, US dollars.", min=0)


class Column(StrEnum):
    """Who answers. The last four are `local` without a part."""

    rules = "rules"
    local = "local"
    escalated = "escalated"
    bigger = "bigger"
    no_adapter = "no-adapter"
    no_rules = "no-rules"
    no_samples = "no-samples"
    no_calibration = "no-calibration"


def register(app: typer.Typer) -> None:
    """Add the group of verbs."""
    group = typer.Typer(no_args_is_help=True, help="Measure how good the answers are.")
    group.command("triage", help="Judge diagnoses of incidents whose cause is known.")(triage)
    app.add_typer(group, name="eval")


def triage(
    sets: Annotated[list[str], SETS],
    *,
    column: Annotated[list[Column] | None, COLUMN] = None,
    ablation: Annotated[bool, ABLATION] = False,
    count: Annotated[int | None, COUNT] = None,
    limit: Annotated[int | None, LIMIT] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what the foundry makes.", min=0)] = None,
    out: Annotated[Path, OUT] = Path("results/triage"),
    record: Annotated[Path, RECORD] = Path(".midwatch/eval"),
    page: Annotated[Path | None, typer.Option(help="Write the page there.")] = None,
    data: Annotated[Path, DATA] = Path("../shared/data"),
    concurrency: Annotated[int, CONCURRENCY] = 1,
    host: Annotated[str | None, HOST] = None,
    model: Annotated[str | None, MODEL] = None,
    key_env: Annotated[str | None, KEY_ENV] = None,
    usd_in: Annotated[float, USD_IN] = 0.0,
    usd_out: Annotated[float, USD_OUT] = 0.0,
) -> None:
    """Judge each column on each set; write rows, pictures and the page; print the tables."""
    from midwatch import settings as settings_module
    from midwatch.evaluation import page as page_module
    from midwatch.evaluation import report
    from midwatch.evaluation import sets as sets_module

    settings = settings_module.load()
    bigger = _host(settings, host, model, key_env, (usd_in, usd_out))
    columns = _columns(column, ablation)
    found = []
    for name in sets:
        incidents = list(sets_module.load(name, count=count, seed=seed, data=data))[:limit]
        judging = _Judging(
            name=Path(name).name.partition(".")[0],
            incidents=incidents,
            settings=settings,
            bigger=bigger,
            record=record,
            concurrency=concurrency,
        )
        evaluated = asyncio.run(judging.run(columns))
        paths = report.write(evaluated, out, seed=seed)
        _show(evaluated)
        found.append(evaluated)
        for path in paths:
            typer.echo(str(path))
    typer.echo(str(page_module.write(found, page or record / "eval.html")))


def _columns(column: Sequence[Column] | None, ablation: bool) -> list[Column]:
    from midwatch.evaluation.ablation import PARTS

    chosen = list(column or (Column.rules, Column.local))
    if ablation:
        chosen += [part for part in map(Column, PARTS) if part not in chosen]
    return chosen


def _host(
    settings: Settings, url: str | None, model: str | None, key_env: str | None, prices: tuple[float, float]
) -> ProviderSettings | None:
    from midwatch.settings import ProviderSettings, key_from

    if url is None:
        return settings.copilot.escalation
    if model is None:
        raise SettingsError("--host needs a model to ask for.", "Give --model NAME.")
    key = key_from(key_env) if key_env is not None else None
    return ProviderSettings(
        base_url=url, model=model, api_key=key, usd_per_mtok_in=prices[0], usd_per_mtok_out=prices[1]
    )


@dataclass(frozen=True, kw_only=True)
class _Judging:
    """A set that is judged column by column. Verdicts, which hold lines of the logs, are kept below `record`."""

    name: str
    incidents: Sequence[Incident]
    settings: Settings
    bigger: ProviderSettings | None
    record: Path
    concurrency: int

    async def run(self, columns: Sequence[Column]) -> Evaluated:
        """The verdicts of each column."""
        from midwatch.evaluation import cost
        from midwatch.evaluation.report import AT_ONCE, Evaluated

        found = {column.value: await self._column(column) for column in columns}
        facts = {AT_ONCE: str(self.concurrency)}
        return Evaluated(name=self.name, columns=found, facts=facts, price=self._price() or cost.REFERENCE)

    def _price(self) -> Price | None:
        from datetime import UTC, datetime

        from midwatch.evaluation.cost import Price

        if self.bigger is None or not self.bigger.usd_per_mtok_in:
            return None
        return Price(
            name=f"price given for {self.bigger.model}",
            usd_per_mtok_in=self.bigger.usd_per_mtok_in,
            usd_per_mtok_out=self.bigger.usd_per_mtok_out,
            date=datetime.now(UTC).date().isoformat(),
        )

    async def _column(self, column: Column) -> list[Verdict]:
        from rich.console import Console

        from midwatch.evaluation.judge import Run, fingerprint, judge

        console = Console(stderr=True, highlight=False)
        with console.status(f"{self.name}, {column}: 0 of {len(self.incidents)}") as status:

            def tell(done: int, _: Verdict) -> None:
                status.update(f"{self.name}, {column}: {done} of {len(self.incidents)}")

            async with _open(column, self.settings, self.bigger) as (diagnoser, facts):
                run = Run(set=self.name, column=column.value, facts=facts, code=fingerprint())
                return await judge(
                    run,
                    self.incidents,
                    diagnoser,
                    record=self.record / f"{self.name}-{column}.jsonl",
                    concurrency=self.concurrency,
                    tell=tell,
                )


@asynccontextmanager
async def _open(
    column: Column, settings: Settings, bigger: ProviderSettings | None
) -> AsyncIterator[tuple[Diagnoser, dict[str, str]]]:
    """What is judged in a column, with its model loaded, and the settings that change an answer; closed at the end."""
    from midwatch.cli import local_model
    from midwatch.copilot.triage import Triage
    from midwatch.evaluation.ablation import PARTS
    from midwatch.gateway.providers import OpenAIProvider

    part = PARTS.get(column.value)
    options = local_model.options(settings)
    local: Provider | None = None
    host: Provider | None = None
    copilot = settings.copilot
    if column in (Column.escalated, Column.bigger):
        if bigger is None:
            raise SettingsError(f"The column {column} needs a bigger host.", "Give --host URL and --model NAME.")
        host = OpenAIProvider(bigger, name="host", remote=True)
    if column is Column.bigger:  # nothing is sure enough, so everything goes up
        copilot = copilot.model_copy(update={"confidence_threshold": 1.0})
    if column not in (Column.rules, Column.bigger):
        local = await _embedded(settings, adapter=part is None or part.adapter)
    options = part.without(options) if part is not None else options
    facts = _facts(settings, options, model=local is not None, host=bigger if host is not None else None)
    try:
        yield Triage(local, host, copilot, options), facts
    finally:
        for provider in (local, host):
            if provider is not None:
                await provider.aclose()


async def _embedded(settings: Settings, *, adapter: bool) -> Provider:
    from midwatch.cli import embedded, local_model
    from midwatch.engine import hub

    path = hub.resolve(settings.engine.model, settings.cache_dir)
    engine = local_model.with_adapter(settings.engine) if adapter else settings.engine
    loading = embedded.load_in_thread(path, engine, settings.kernel_dir)
    model = local_model.asked_for(settings) if adapter else settings.engine.model
    return await embedded.start(loading, model=model, usd_per_hour=settings.copilot.local_usd_per_hour)


def _facts(settings: Settings, options: Options, *, model: bool, host: ProviderSettings | None) -> dict[str, str]:
    copilot = settings.copilot
    fitted = {name: f"{item.fitted_on}, {item.date}" for name, item in options.calibrations.items()}
    return {
        "evidence_tokens": str(copilot.evidence_tokens),
        "alpha": f"{copilot.alpha:g}",
        "threshold": str(copilot.confidence_threshold),
        "options": repr(replace(options, calibrations={})),
        "fitted": repr(sorted(fitted.items())),
        **({"model": settings.engine.model, "adapter": copilot.adapter} if model else {}),
        **({"host": host.base_url, "host_model": host.model} if host is not None else {}),
    }


def _show(evaluated: Evaluated) -> None:
    from rich.console import Console
    from rich.table import Table

    from midwatch.evaluation.page import reach
    from midwatch.results import figure

    count = len(next(iter(evaluated.columns.values())))
    Console().print(f"\n{evaluated.name}: {count} incident{'' if count == 1 else 's'}")
    table = Table()
    table.add_column("measure")
    for name in evaluated.columns:
        table.add_column(name, justify="right")
    for key, first in next(iter(evaluated.measures.values())).items():
        cells = []
        for measures in evaluated.measures.values():
            found = measures[key].interval
            wide = found is not None and found.low < found.high and len(evaluated.columns) <= 3
            cells.append("–" if found is None else figure(found.value) + (f" ({reach(found)})" if wide else ""))
        table.add_row(f"{first.name}, {first.unit}", *cells)
    for name in ("share_kept", "mean_wrong"):
        title = "halves that keep the promise" if name == "share_kept" else "accepted and wrong, mean of the halves"
        table.add_row(title, *(_half(evaluated, column, name) for column in evaluated.columns))
    Console().print(table)


def _half(evaluated: Evaluated, column: str, name: str) -> str:
    from midwatch.results import figure

    kept = evaluated.promises.get(column)
    return "–" if kept is None else figure(getattr(kept, name))
