"""`midwatch app`: the hooks, the workflow and the page, in one process over one store."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    import asyncio
    from types import FrameType

    from starlette.applications import Starlette

    from midwatch.copilot.metrics import Metrics
    from midwatch.copilot.recall import Recall
    from midwatch.copilot.store import Store
    from midwatch.copilot.workflow import Diagnoser
    from midwatch.gateway.providers import Provider
    from midwatch.gateway.wire import ChatRequest, Completion
    from midwatch.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("app", help="Take alerts and logs in, diagnose them with an engine that runs, show the page.")(run_app)


def run_app(
    engine_url: Annotated[str | None, typer.Option(help="Where the engine serves, without /v1.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the hooks and the page.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the hooks and the page.", min=1, max=65535)] = None,
) -> None:
    """Serve until SIGTERM or CTRL-C."""
    import asyncio

    from midwatch import settings as settings_module
    from midwatch.cli import local_model, remembering
    from midwatch.copilot.metrics import Metrics
    from midwatch.copilot.store import Store
    from midwatch.copilot.triage import Triage

    settings = settings_module.load()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"app": settings.app.model_copy(update=given)})
    url = engine_url or f"http://{settings.engine.host}:{settings.engine.port}"
    metrics = Metrics()
    with _one_app_per_store(settings.resolved_database_url):
        store = Store(settings.resolved_database_url, settings.copilot)
        try:
            local, escalation = _providers(settings, url, metrics)
            recall = remembering.recall(settings, store)
            triage = Triage(local, escalation, settings.copilot, local_model.options(settings), recall)
            providers = [provider for provider in (local, escalation) if provider is not None]
            stopping = asyncio.Event()
            app = build_app(
                settings, store, triage, metrics=metrics, providers=providers, stopping=stopping, recall=recall
            )
            _serve(app, settings, stopping)
        finally:
            store.close()


def build_app(
    settings: Settings,
    store: Store,
    diagnoser: Diagnoser,
    *,
    metrics: Metrics | None = None,
    providers: list[Provider] | None = None,
    stopping: asyncio.Event | None = None,
    recall: Recall | None = None,
) -> Starlette:
    """The whole app over a store that its caller opens and closes: hooks, workflow, outbox, page.

    The workflow starts and ends with the app's lifespan, which also closes `providers`. Setting `stopping`
    ends what would keep connections open for ever. `recall` is made ready on a thread meanwhile.
    """
    import asyncio

    from starlette.applications import Starlette

    from midwatch.cli import remembering
    from midwatch.copilot.metrics import Metrics
    from midwatch.copilot.notify import Notifier
    from midwatch.copilot.server import feedback_routes, health_routes, hook_routes
    from midwatch.copilot.workflow import Workflow
    from midwatch.dashboard.app import routes as page_routes

    metrics = metrics or Metrics()
    notifier = Notifier(store, settings.notify)
    page_url = settings.app.public_url or f"http://{settings.app.host}:{settings.app.port}"
    workflow = Workflow(
        store, diagnoser, page_url=page_url.rstrip("/"), channels=notifier.channels, on_finding=metrics.count_finding
    )
    tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await workflow.recover()
        tasks.append(asyncio.create_task(workflow.run(), name="workflow"))
        if notifier.channels:
            tasks.append(asyncio.create_task(notifier.run(), name="notifier"))
        try:
            with remembering.warming(recall):
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await notifier.aclose()
            for provider in providers or []:
                await provider.aclose()

    def is_working() -> bool:
        return bool(tasks) and not any(task.done() for task in tasks)

    return Starlette(
        routes=[
            *hook_routes(store, settings, metrics),
            *feedback_routes(store, settings),
            *health_routes(store, metrics, is_working),
            *page_routes(store, settings, stopping),
        ],
        lifespan=lifespan,
    )


class MeteredProvider:
    """A provider whose calls are counted."""

    def __init__(self, provider: Provider, metrics: Metrics) -> None:
        self._provider = provider
        self._metrics = metrics

    @property
    def name(self) -> str:
        """The name of the host behind it."""
        return self._provider.name

    @property
    def remote(self) -> bool:
        """Whether bytes leave this machine."""
        return self._provider.remote

    async def complete(self, request: ChatRequest) -> Completion:
        """Ask, and count the call and its failure."""
        self._metrics.model_calls.labels(self.name).inc()
        try:
            return await self._provider.complete(request)
        except Exception:
            self._metrics.model_failures.labels(self.name).inc()
            raise

    async def aclose(self) -> None:
        """Close the host's connections."""
        await self._provider.aclose()


def _providers(settings: Settings, engine_url: str, metrics: Metrics) -> tuple[Provider, Provider | None]:
    from midwatch.cli import local_model
    from midwatch.gateway.providers import OpenAIProvider, engine_at

    model = local_model.asked_for(settings)
    local = engine_at(engine_url, model, usd_per_hour=settings.copilot.local_usd_per_hour)
    if settings.copilot.escalation is None:
        return MeteredProvider(local, metrics), None
    bigger = OpenAIProvider(settings.copilot.escalation, name="escalation", remote=True)
    return MeteredProvider(local, metrics), MeteredProvider(bigger, metrics)


@contextlib.contextmanager
def _one_app_per_store(database_url: str) -> Iterator[None]:
    """Hold a lock beside an SQLite file: two apps must not work on the same incidents. It ends with the process."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(database_url)
    except ArgumentError:
        yield  # the store says what is wrong with it
        return
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        yield
        return
    path = Path(url.database + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise SettingsError(
            f"The folder {path.parent} cannot be written ({error.strerror}).", "Set state_dir or database_url."
        ) from None
    with lock:
        if not _lock(lock.fileno()):
            raise SettingsError(
                f"Another midwatch app is using {url.database}.",
                "Stop it, or give this one another MIDWATCH_STATE_DIR.",
            )
        yield


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _serve(app: Starlette, settings: Settings, stopping: asyncio.Event) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            stopping.set()  # on the loop's own thread; the open streams see it before uvicorn waits for them
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        host=settings.app.host,
        port=settings.app.port,
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    server = Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn takes them over, and raises them again when it has drained
    server.run()
