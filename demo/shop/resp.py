"""A thin Redis client (RESP2). Standard library only."""

from __future__ import annotations

import socket
import threading


class RedisError(Exception):
    """Redis said no; the text is its own."""


class Redis:
    """One connection, shared by threads."""

    def __init__(self, host: str, port: int = 6379) -> None:
        self._file = socket.create_connection((host, port), timeout=5).makefile("rwb")
        self._lock = threading.Lock()

    def command(self, *parts: str) -> str | None:
        """Send one command; a simple string, number or bulk string back."""
        with self._lock:
            words = [part.encode() for part in parts]
            self._file.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
            self._file.flush()
            line = self._file.readline().rstrip(b"\r\n").decode()
            if line.startswith("-"):
                raise RedisError(line[1:])
            if not line.startswith("$"):
                return line[1:]
            length = int(line[1:])
            return None if length < 0 else self._file.read(length + 2)[:-2].decode()
