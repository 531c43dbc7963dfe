"""`midwatch up`: the engine and the app as two supervised processes, and one address to open."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("up", help="Start the engine and the app, keep both alive, and print where the page is.")(up)


def up(
    host: Annotated[str | None, typer.Option(help="Address of the page and the hooks.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the page and the hooks.")] = None,
    engine_port: Annotated[int | None, typer.Option(help="Port of the engine, on this machine only.")] = None,
) -> None:
    """Start both processes and stay until CTRL-C or SIGTERM."""
    from midwatch import settings as settings_module
    from midwatch.engine import hub

    settings = settings_module.load()
    hub.resolve(settings.engine.model, settings.cache_dir)  # fail here, with the command that fetches it
    page_host, page_port = host or settings.app.host, settings.app.port if port is None else port
    engine_host, engine_port = settings.engine.host, settings.engine.port if engine_port is None else engine_port
    for name, where, number in (("page", page_host, page_port), ("engine", engine_host, engine_port)):
        _check_free(name, where, number)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    asyncio.run(_supervise(settings, (page_host, page_port), (engine_host, engine_port)))


async def _supervise(settings: Settings, page: tuple[str, int], engine: tuple[str, int]) -> None:
    from midwatch.resilience.supervisor import ChildSpec, Supervisor

    started = time.monotonic()
    engine_url, page_url = f"http://{engine[0]}:{engine[1]}", f"http://{page[0]}:{page[1]}"
    python = (sys.executable, "-m", "midwatch")
    specs = [
        ChildSpec(
            name="engine",
            health_url=f"{engine_url}/health",
            argv=(*python, "serve", "--host", engine[0], "--port", str(engine[1])),
        ),
        ChildSpec(
            name="app",
            health_url=f"{page_url}/healthz",
            argv=(*python, "app", "--host", page[0], "--port", str(page[1]), "--engine-url", engine_url),
        ),
    ]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Supervisor(specs, report=lambda sentence: typer.echo(f"midwatch: {sentence}", err=True)) as supervisor:
        ready = asyncio.create_task(supervisor.ready())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            _say_ready(settings, page_url, engine_url, time.monotonic() - started)
        await stopped
        ready.cancel()


def _say_ready(settings: Settings, page_url: str, engine_url: str, seconds: float) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]Midwatch is on watch.[/bold] Ready after {seconds:.1f} s. CTRL-C ends the watch.\n")
    console.print(f"  page     [link={page_url}]{page_url}[/link]")
    console.print(f"  hooks    {page_url}/hooks/alertmanager  /hooks/text  /loki/api/v1/push")
    console.print(f"  engine   {engine_url}/v1  ({settings.engine.model})")
    hook = f"{page_url}/hooks/text?service=this-machine"
    console.print(f"  try it   journalctl -n 500 | curl --data-binary @- '{hook}'\n")


def _check_free(name: str, host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            option = "--port" if name == "page" else "--engine-port"
            raise SettingsError(
                f"The {name} cannot listen on {host}:{port} ({error.strerror}).",
                f"Another midwatch may be up already; stop it, or choose another port with {option}.",
            ) from None
