"""Redis by its own protocol (RESP 2)."""

from __future__ import annotations

import importlib
import shlex
from typing import Any


class ResponseError(Exception):
    """The server refused a command."""


class Session:
    """One connection, logged in if there is a password."""

    def __init__(self, host: str, port: int, password: str, user: str, **options: Any) -> None:
        self._wire = importlib.import_module("wire").Wire(host, port, **options)
        if password:
            try:
                self.run(f"AUTH {user} {password}" if user else f"AUTH {password}")
            except ResponseError:
                self.close()
                raise

    def run(self, command: str) -> Any:
        """Run a command; its answer. Raises `ResponseError` with the server's words."""
        words = [word.encode() for word in shlex.split(command)]
        sent = b"".join((b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)))
        self._wire.send(sent)
        return self._answer()

    def _answer(self) -> Any:
        line = self._wire.line()
        kind, rest = line[:1], line[1:].decode("utf-8", "replace")
        if kind == b"-":
            raise ResponseError(rest)
        if kind == b"$":
            return None if rest == "-1" else self._wire.block(int(rest) + 2)[:-2].decode("utf-8", "replace")
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        return rest

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


def connect(*, host: str, port: int, password: str = "", user: str = "", **options: Any) -> Session:
    """A connection."""
    return Session(host, port, password, user, **options)
