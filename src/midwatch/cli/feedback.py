"""`midwatch feedback`: what a person says of a diagnosis. The next incident that looks similar is shown with it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("feedback", help="Say whether an incident's diagnosis was right, and what the cause was.")(feedback)


def feedback(
    incident: Annotated[int, typer.Argument(help="The incident's number, as the page shows it.", min=1)],
    verdict: Annotated[Literal["right", "wrong"], typer.Argument(help="Whether the named cause was the true one.")],
    category: Annotated[str, typer.Option(help="The true category, where the diagnosis was wrong.")] = "",
    note: Annotated[str, typer.Option(help="What was found, or what helped: one or two sentences.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Keep it; the last word on an incident counts."""
    from midwatch.cli import remembering
    from midwatch.copilot.model import Feedback

    said = Feedback(incident_id=incident, verdict=verdict, category=category, note=note)
    with remembering.open_store() as (_, store):
        kept = asyncio.run(store.add_feedback(said))
    if as_json:
        typer.echo(json.dumps(asdict(kept)))
        return
    cause = f"; the cause was {kept.category}" if kept.category else ""
    typer.echo(f"Incident {kept.incident_id}: diagnosis {kept.version} was {kept.verdict}{cause}.")
    if kept.verdict == "wrong" and not kept.category:
        typer.echo("Without --category it is counted, but not recalled: nobody knows yet what it was.")
