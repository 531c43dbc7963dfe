"""Open the socket, serve, and drain: what `midwatch serve` does."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn

from midwatch.engine import hub
from midwatch.engine.cores import spin_briefly
from midwatch.errors import MidwatchError, SettingsError
from midwatch.serving.app import create_app
from midwatch.serving.host import Host, Served
from midwatch.settings import EngineSettings

if TYPE_CHECKING:
    from midwatch.engine.engine import Engine

DRAIN_S = 7
"""How long answers in flight may go on after SIGTERM, seconds; shorter than a supervisor's patience."""


def run(settings: EngineSettings, cache_dir: Path, *, json_logs: bool, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or CTRL-C, then let answers in flight end. `announce` hears the address once it is open.

    Raises `ModelError` or another `MidwatchError` if the model cannot be loaded or the engine dies, `SettingsError` if
    the port is taken.
    """
    hub.resolve(settings.model, cache_dir)  # a missing model is said before the socket opens
    failures: list[MidwatchError] = []

    def on_failed(error: MidwatchError) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(
        settings.model,
        lambda: open_engine(settings, cache_dir),
        on_failed=on_failed,
    )
    listener = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        log_config=_log_config(json_logs=json_logs),
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = DrainingServer(config, app.state.host, drain_s=DRAIN_S)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)  # uvicorn takes them over, and raises them again once it has drained
    host, port = listener.getsockname()[:2]
    announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run(sockets=[listener])
    if failures:
        raise failures[0]


class DrainingServer(uvicorn.Server):
    """Drain before the door closes: at the first signal new requests hear 503, and what runs is finished.

    uvicorn alone closes the socket at once, so that a caller hears nothing. A second signal is uvicorn's.
    """

    def __init__(self, config: uvicorn.Config, host: Host, *, drain_s: float) -> None:
        super().__init__(config)
        self._host = host
        self._drain_s = drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop, which signals must wake."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._loop is None or self._host.draining:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._host.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def run() -> None:
            await self._host.drain(self._drain_s)
            self.should_exit = True

        self._draining = asyncio.ensure_future(run())


@asynccontextmanager
async def open_engine(settings: EngineSettings, cache_dir: Path) -> AsyncIterator[Served]:
    """The embedded engine, loaded on a thread and started; closed at the end."""
    from midwatch.engine.async_engine import AsyncEngine

    def load() -> Engine:
        spin_briefly()
        from midwatch.engine.engine import Engine  # takes a second, in which /health should answer

        return Engine.load(hub.resolve(settings.model, cache_dir), settings, kernel_dir=cache_dir / "kernels")

    engine = await asyncio.to_thread(load)
    running = AsyncEngine(engine)
    await running.start()
    try:
        yield Served(
            engine=running,
            tokenizer=engine.tokenizer,
            max_model_len=engine.max_model_len,
            adapter_dir=settings.adapter_dir,
        )
    finally:
        await running.aclose()


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a newline or a quote in a message cannot break out of it."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"{host} port {port} cannot be listened on ({error}).",
            "Choose another with --port, or stop what uses it.",
        ) from None


def _log_config(*, json_logs: bool) -> dict[str, Any]:
    """Warnings and faults on stderr; requests and the life of the server too where logs are for machines."""
    plain = {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": JsonFormatter} if json_logs else plain},
        "handlers": {
            "default": {"class": "logging.StreamHandler", "formatter": "default", "stream": "ext://sys.stderr"}
        },
        "loggers": {
            "uvicorn": {"handlers": ["default"], "level": "INFO" if json_logs else "WARNING", "propagate": False},
            "uvicorn.access": {"level": "INFO" if json_logs else "WARNING"},
        },
    }
