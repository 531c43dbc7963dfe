"""`midwatch foundry list`, `record`, `make` and `show`: break real programs, and make labelled incidents out of it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import FoundryError

if TYPE_CHECKING:
    from midwatch.foundry.faults import Fault
    from midwatch.foundry.incident import Incident
    from midwatch.foundry.recording import Recording


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Break real programs on purpose, and make labelled incidents.")
    group.command("list", help="Show the faults: program, category, what each needs, and whether it is here.")(listing)
    group.command("record", help="Break programs here, and keep what they printed.")(record)
    group.command("make", help="Make labelled incidents by a seed.")(make)
    group.command("show", help="Print an incident with its true lines marked.")(show)
    app.add_typer(group, name="foundry")


def listing(program: Annotated[str, typer.Option(help="Only the faults of this family.")] = "") -> None:
    """Every fault that this version knows."""
    from rich.console import Console
    from rich.table import Table

    from midwatch.foundry.split import part_of

    table = Table("fault", "program", "category", "part", "needs", "here", box=None, pad_edge=False)
    for fault in _chosen(program, ""):
        here = "yes" if _is_here(fault) else "no"
        table.add_row(
            fault.name, fault.program, fault.category, part_of(fault.program), " ".join(fault.needs) or "-", here
        )
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)


def record(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where PROGRAM.jsonl.gz files are written.")],
    program: Annotated[str, typer.Option(help="Only the faults of this family.")] = "",
    fault: Annotated[str, typer.Option(help="Only this fault.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How often each fault is recorded, each time by another seed.")] = 4,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="How many faults run at the same time.")] = 2,
) -> None:
    """Record faults. One that fails is reported and does not stop the others; then the exit code is 1."""
    from midwatch.foundry import recording, run

    faults = _chosen(program, fault)
    ready = [item for item in faults if _is_here(item)]
    for item in faults:
        if item not in ready:
            typer.echo(f"left out {item.name}: {', '.join(_missing(item))} not installed", err=True)
    if not ready:
        raise FoundryError("None of these faults can run here.", "midwatch foundry list shows what each needs.")
    _make_folder(out)
    failed = 0
    done: dict[str, list[recording.Recording]] = {}
    total = len(ready) * seeds
    for number, result in enumerate(run.record_all(ready, range(seeds), jobs), start=1):
        if result.recording is None:
            failed += 1
            typer.echo(f"[{number}/{total}] {result.fault} seed {result.seed} failed: {result.error}", err=True)
            continue
        done.setdefault(result.recording.program, []).append(result.recording)
        typer.echo(
            f"[{number}/{total}] {result.fault} seed {result.seed}: {len(result.recording.lines)} lines", err=True
        )
    for name, recordings in sorted(done.items()):
        path = out / f"{name}.jsonl.gz"
        kept = _others_of(path, {item.fault for item in recordings})
        count = recording.write(path, sorted([*kept, *recordings], key=lambda item: item.id))
        typer.echo(f"{path}: {count} recordings")
    if failed:
        typer.echo(f"{failed} of {total} runs failed; their reasons are above.", err=True)
        raise typer.Exit(1)


def make(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .jsonl or .jsonl.gz file to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same incidents.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many incidents.")] = 2000,
    part: Annotated[str, typer.Option(help="Only programs of train, calibrate or test; all if absent.")] = "",
    recordings: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Recordings to use; those that Midwatch carries if absent.")
    ] = None,
) -> None:
    """Make incidents, say how long it took and how many there are of each category."""
    from midwatch.foundry import bank, compose, incident
    from midwatch.foundry.split import part_named

    began = time.perf_counter()
    counts: Counter[str] = Counter()
    chosen, heard, entries = part_named(part), compose.recorded(recordings), bank.load()

    def counted() -> Iterator[Incident]:
        for item in compose.make(seed, count, part=chosen, recordings=heard, bank=entries):
            counts[item.truth.category] += 1
            if counts.total() % 500 == 0:
                typer.echo(f"{counts.total()} of {count}", err=True)
            yield item

    if out.parent != Path():
        _make_folder(out.parent)
    incident.write(out, counted())
    for category, number in sorted(counts.items()):
        typer.echo(f"{number:6d}  {category}")
    typer.echo(f"{out}: {counts.total()} incidents in {time.perf_counter() - began:.1f} s")


def show(
    file: Annotated[Path, typer.Argument(help="A file that midwatch foundry make wrote.")],
    incident_id: Annotated[str, typer.Argument(metavar="ID", help="Which incident: its id, as in 7-00042.")],
) -> None:
    """Print one incident: what is true, the alert, and the log with the true lines marked."""
    from midwatch.copilot.parsing import clean
    from midwatch.foundry import incident as incidents

    found = next((item for item in incidents.read(file) if item.id == incident_id), None)
    if found is None:
        raise FoundryError(f"{file} has no incident {incident_id}.", f"Ids are such as {_some_id(file)}.")
    truth, case = found.truth, found.case
    typer.secho(f"{found.id}  {truth.category}", bold=True)
    for name, value in (
        ("also right", ", ".join(truth.accepted)),
        ("entities", ", ".join(truth.entities)),
        ("severity", truth.severity),
        ("cause", truth.cause),
        ("made of", f"{truth.fault}{' (templated)' if truth.templated else ''}"),
        ("traits", ", ".join(truth.traits)),
        ("alert", f"{case.title} [{case.severity}] {case.message}".strip() if case.title else "none"),
        ("service", case.service),
    ):
        if value:
            typer.echo(f"  {name:<11} {value}")
    for number, text in enumerate(case.lines, start=1):
        telling = number in truth.lines
        typer.secho(f"{'>' if telling else ' '} {number:5d}  {clean(text)}", fg="yellow" if telling else None)


def _chosen(program: str, name: str) -> list[Fault]:
    from midwatch.foundry.faults import all_faults

    faults = [item for item in all_faults() if program in ("", item.program) and name in ("", item.name)]
    if not faults:
        what = f"fault {name}" if name else f"program {program}" if program else "fault"
        raise FoundryError(f"There is no {what}.", "midwatch foundry list shows them all.")
    return faults


def _missing(fault: Fault) -> list[str]:
    return [command for command in fault.needs if shutil.which(command) is None]


def _is_here(fault: Fault) -> bool:
    return not _missing(fault)


def _others_of(path: Path, faults: set[str]) -> list[Recording]:
    """What a file holds of other faults than those just recorded, so that one fault can be recorded anew."""
    from midwatch.foundry import recording

    return [item for item in recording.read(path) if item.fault not in faults] if path.exists() else []


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FoundryError(f"The folder {folder} cannot be made ({error}).", "Name another with --out.") from error


def _some_id(file: Path) -> str:
    from midwatch.foundry import incident as incidents

    return next((item.id for item in incidents.read(file)), "none: the file is empty")
