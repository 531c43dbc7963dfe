"""`midwatch serve`: the embedded engine behind an OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve", help="Serve a model over HTTP, in OpenAI's words.")(serve)


def serve(
    model: Annotated[str | None, typer.Option(help="pypi:NAME, hf:ORG/NAME or the path of a GGUF file.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log every request as a JSON line.")] = False,
) -> None:
    """Open the port at once, load the model, and serve until SIGTERM or CTRL-C."""
    from midwatch import settings as settings_module
    from midwatch.cli import local_model
    from midwatch.serving import server

    settings = settings_module.load()
    given = {"model": model, "host": host, "port": port}
    given = {name: value for name, value in given.items() if value is not None}
    engine = local_model.with_adapter(settings.engine.model_copy(update=given))
    server.run(
        engine,
        settings.cache_dir,
        json_logs=json_logs,
        announce=lambda url: typer.echo(
            f"midwatch: serving {engine.model} at {url}/v1 (loading; {url}/health says when)"
        ),
    )
