"""`midwatch schedule`: what the engine's scheduler would do with these requests, step by step, in words."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("schedule", help="Say step by step how the engine would schedule requests; loads no model.")(schedule)


def schedule(
    requests: Annotated[list[str], typer.Argument(help="PROMPT+ANSWER[@STEP][:PRIORITY] tokens, such as 500+20@3:-1.")],
    blocks: Annotated[int, typer.Option(help="KV blocks in the pool.", min=1, max=1_000_000)] = 256,
    block_size: Annotated[int | None, typer.Option(help="Tokens of a block.", min=1, max=1024)] = None,
    seats: Annotated[int | None, typer.Option(help="Sequences that may run together.", min=1, max=1024)] = None,
    budget: Annotated[int | None, typer.Option(help="Tokens of one step.", min=16)] = None,
) -> None:
    """Print every decision of every step."""
    from midwatch import settings as settings_module
    from midwatch.engine.dry_run import dry_run, parse

    given = {"block_size": block_size, "max_num_seqs": seats, "max_num_batched_tokens": budget}
    engine = settings_module.load().engine.model_copy(update={key: it for key, it in given.items() if it is not None})
    for line in dry_run([parse(spec) for spec in requests], engine, blocks):
        typer.echo(line)
