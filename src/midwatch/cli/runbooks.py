"""`midwatch runbooks add`, `list`, `search` and `remove`: what people wrote for the next time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import RequestError

if TYPE_CHECKING:
    from midwatch.copilot.model import Recalled

JSON_OPTION = typer.Option("--json", help="Print one JSON value for machines.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Keep runbooks, so that a diagnosis can point to the one that fits.")
    group.command("add", help="Add a Markdown file, or every one in a folder; changed ones are replaced.")(add)
    group.command("list", help="Show the runbooks that are kept.")(list_runbooks)
    group.command("search", help="Show the runbooks and past incidents that look similar to a text.")(search)
    group.command("remove", help="Forget a runbook, or all those of a folder.")(remove)
    app.add_typer(group, name="runbooks")


def add(
    path: Annotated[Path, typer.Argument(help="A Markdown or text file, or a folder of them.", metavar="DIR|FILE")],
    url: Annotated[
        str, typer.Option(help="Where people read them: the path of each file is put behind it, to link to it.")
    ] = "",
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Read, keep, and encode if an encoder is set."""
    from midwatch.cli import remembering
    from midwatch.copilot.runbooks import read_runbooks

    found = read_runbooks(path, base_url=url)
    with remembering.open_store() as (settings, store):
        recall = remembering.recall(settings, store)
        added = asyncio.run(store.add_runbooks(found))
        encoded = recall.warm() if settings.copilot.embeddings else 0
    if as_json:
        typer.echo(json.dumps(asdict(added)))
        return
    typer.echo(f"{added.new} added, {added.changed} replaced, {added.unchanged} unchanged.")
    if encoded:
        typer.echo(f"{encoded} texts encoded by {settings.copilot.embeddings}.")


def list_runbooks(as_json: Annotated[bool, JSON_OPTION] = False) -> None:
    """Name, title and sections of each."""
    from midwatch.cli import remembering

    with remembering.open_store() as (_, store):
        runbooks = store.runbooks()
    if as_json:
        shown = [
            {"name": item.name, "title": item.title, "url": item.url, "sections": len(item.sections)}
            for item in runbooks
        ]
        typer.echo(json.dumps(shown))
        return
    if not runbooks:
        typer.echo("No runbooks are kept yet. Add some with: midwatch runbooks add DIR")
    for item in runbooks:
        sections = f"{len(item.sections)} section{'' if len(item.sections) == 1 else 's'}"
        typer.echo(f"{item.name}  ({sections})" + (f"  {item.title}" if item.title != item.name else ""))


def search(
    text: Annotated[str, typer.Argument(help="An alert, a log line, or a question.", metavar="TEXT")],
    k: Annotated[int, typer.Option("-k", help="How many to show at most.", min=1, max=50)] = 5,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """What a diagnosis of this text would be shown beside."""
    from midwatch.cli import remembering
    from midwatch.copilot.findable import Question

    with remembering.open_store() as (settings, store):
        found = remembering.recall(settings, store).search(Question(alert=text), k)
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found]))
        return
    if not found:
        typer.echo("Nothing looks similar.")
    for item in found:
        _show(item)


def _show(item: Recalled) -> None:
    from midwatch.copilot.parsing import clean

    where = f"runbook {item.ref}" if item.kind == "runbook" else f"incident {item.ref}, {item.category}"
    section = f", section {item.section}" if item.section else ""
    typer.echo(f"{item.similarity:.2f}  {clean(item.title)}  ({clean(where + section)})")
    typer.echo(f"      {clean(item.excerpt)}")
    if item.url:
        typer.echo(f"      {clean(item.url)}")


def remove(
    name: Annotated[str, typer.Argument(help="As `midwatch runbooks list` names it, or a folder of such names.")],
) -> None:
    """Forget them."""
    from midwatch.cli import remembering

    with remembering.open_store() as (_, store):
        count = asyncio.run(store.remove_runbooks(name))
    if not count:
        raise RequestError(f"There is no runbook {name}.", "Show those there are with: midwatch runbooks list")
    typer.echo(f"{count} removed.")
