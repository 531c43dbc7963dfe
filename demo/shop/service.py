"""What the shop's programs share: three log styles and a small HTTP server. Standard library only."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]
Handle = Callable[[str, str, bytes], Answer]


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"level": record.levelname.lower(), "logger": record.name, "msg": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def logger(name: str, style: str = "plain") -> logging.Logger:
    """A logger to stdout. `style` is plain, logfmt or json."""
    formatters = {
        "plain": logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"),
        "logfmt": logging.Formatter('level=%(levelname)s component=%(name)s msg="%(message)s"'),
        "json": _JsonLines(),
    }
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatters[style])
    log = logging.getLogger(name)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return log


class Server(ThreadingHTTPServer):
    """Answers with `handle(method, path, body)`; logs one line per request and a traceback per failure."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handle: Handle, log: logging.Logger) -> None:
        self.handle = handle
        self.log = log
        super().__init__(address, Handler)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        started = time.perf_counter()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, reply = self.server.handle(self.command, self.path, body)
        except Exception:
            self.server.log.exception("%s %s failed", self.command, self.path)
            status, reply = 500, {"error": "internal server error"}
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        if self.path != "/healthz":
            took_ms = (time.perf_counter() - started) * 1000
            self.server.log.info("%s %s %d %.1fms", self.command, self.path, status, took_ms)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        """The server's own logger writes the line."""


def serve(host: str, port: int, handle: Handle, log: logging.Logger) -> None:
    """Serve until stopped."""
    server = Server((host, port), handle, log)
    log.info("listening on %s:%d", host, port)
    server.serve_forever()
