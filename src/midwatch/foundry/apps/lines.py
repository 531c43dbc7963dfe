"""Stores that speak in lines: memcached's text protocol, and NATS."""

from __future__ import annotations

import importlib
import json
from typing import Any


class ServerError(Exception):
    """The server refused, in its own words."""


class Memcached:
    """One connection to memcached. Commands: `set KEY VALUE`, `get KEY`, `delete KEY`, `incr KEY`, `stats NAME`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._wire = importlib.import_module("wire").Wire(**options)

    def run(self, command: str) -> Any:
        """Run a command. Raises `ServerError` for an answer that is an error."""
        verb, key, *rest = command.split(" ", 2)
        if verb == "set":
            value = rest[0].encode()
            self._wire.send(f"set {key} 0 600 {len(value)}\r\n".encode() + value + b"\r\n")
        elif verb == "stats":
            self._wire.send(b"stats\r\n")
        else:
            self._wire.send(f"{verb} {key}{' 1' if verb == 'incr' else ''}\r\n".encode())
        answer = self._line()
        value_of = None
        while answer.startswith(("VALUE", "STAT")):
            words = answer.split(" ")
            if words[0] == "VALUE":
                value_of = self._wire.block(int(words[3]) + 2)[:-2].decode()
            elif words[1] == key:
                value_of = words[2]
            answer = self._line()
        return value_of or answer

    def _line(self) -> str:
        text: str = self._wire.line().decode("utf-8", "replace")
        if text.startswith(("SERVER_ERROR", "CLIENT_ERROR", "ERROR")):
            raise ServerError(text)
        return text

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


class Nats:
    """One connection to NATS. Commands: `pub SUBJECT TEXT`, `sub SUBJECT`, `next`, `ask SUBJECT TEXT`, `stall`."""

    def __init__(self, options: dict[str, Any], login: dict[str, str], name: str) -> None:
        ca = options.get("ca", "")
        self._wire = importlib.import_module("wire").Wire(**options, later=bool(ca))
        self._wire.line()
        if ca:
            self._wire.secure(ca)
        hello = {"verbose": False, "pedantic": False, "lang": "python", "version": "1.0", "name": name, **login}
        self._inbox = f"_INBOX.{id(self):x}"
        self._wire.send(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
        self._until("PONG")

    def run(self, command: str) -> Any:
        """Run a command. `ask` returns a number of a JetStream answer, if one is in it."""
        verb, *rest = command.split(" ", 2)
        if verb == "pub":
            self._publish(rest[0], rest[1] if len(rest) > 1 else "")
            self._wire.send(b"PING\r\n")
            return self._until("PONG")
        if verb == "sub":
            self._wire.send(f"SUB {rest[0]} 1\r\nPING\r\n".encode())
            return self._until("PONG")
        if verb == "ask":
            self._wire.send(f"SUB {self._inbox} 9\r\n".encode())
            self._publish(rest[0], rest[1] if len(rest) > 1 else "", self._inbox)
            answer = json.loads(self._message() or "{}")
            self._wire.send(b"UNSUB 9\r\n")
            if "error" in answer:
                error = answer["error"]
                raise ServerError(f"nats: {error.get('description')} (code {error.get('code')})")
            return answer.get("state", {}).get("messages", answer.get("num_pending"))
        return self._message()

    def _publish(self, subject: str, text: str, reply: str = "") -> None:
        data = text.encode()
        self._wire.send(f"PUB {subject} {reply + ' ' if reply else ''}{len(data)}\r\n".encode() + data + b"\r\n")

    def _until(self, wanted: str) -> None:
        while (line := self._wire.line().decode()) != wanted:
            self._other(line)

    def _message(self) -> str:
        while not (line := self._wire.line().decode()).startswith("MSG"):
            self._other(line)
        return str(self._wire.block(int(line.rsplit(" ", 1)[-1]) + 2)[:-2].decode("utf-8", "replace"))

    def _other(self, line: str) -> None:
        if line.startswith("-ERR"):
            raise ServerError("nats: " + line.removeprefix("-ERR ").strip("'"))
        if line.startswith("MSG"):
            self._wire.block(int(line.rsplit(" ", 1)[-1]) + 2)
        elif line == "PING":
            self._wire.send(b"PONG\r\n")

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


def connect(*, kind: str, login: dict[str, str] | None = None, name: str = "", **options: Any) -> Memcached | Nats:
    """A connection to `memcached` or `nats`; `options` are those of a `Wire`."""
    return Memcached(options) if kind == "memcached" else Nats(options, login or {}, name)
