"""AMQP 0-9-1, as far as a small service needs it: declare, publish with confirms, get one message."""

from __future__ import annotations

import importlib
import struct
from typing import Any

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_CLOSE = ((10, 50), (20, 40))
_BLOCKED = (10, 60)


class ConnectionClosed(Exception):
    """The broker closed the connection; its code and words."""


class ChannelClosed(Exception):
    """The broker closed the channel; its code and words."""


class ConnectionBlocked(Exception):
    """The broker takes no messages now; its reason."""


class Session:
    """One connection with one channel. Commands: `declare QUEUE`, `transient QUEUE`, `pub QUEUE TEXT`, `get QUEUE`,
    `depth QUEUE`."""

    def __init__(self, *, user: str, password: str, vhost: str, heartbeat_s: int, **options: Any) -> None:
        self._wire = importlib.import_module("wire").Wire(**options)
        self._wire.send(b"AMQP\x00\x00\x09\x01")
        self._wait((10, 10))
        abilities = b"".join(_short(name) + b"t\x01" for name in ("connection.blocked", "authentication_failure_close"))
        properties = _short("product") + b"S" + _long(b"orders") + _short("capabilities") + b"F" + _long(abilities)
        login = b"\x00" + user.encode() + b"\x00" + password.encode()
        self._method(0, (10, 11), _long(properties) + _short("PLAIN") + _long(login) + _short("en_US"))
        tune = self._wait((10, 30))
        self._method(0, (10, 31), tune[:6] + struct.pack(">H", heartbeat_s))
        self._method(0, (10, 40), _short(vhost) + _short("") + b"\x00")
        self._wait((10, 41))
        self._method(1, (20, 10), _short(""))
        self._wait((20, 11))
        self._method(1, (85, 10), b"\x00")
        self._wait((85, 11))

    def run(self, command: str) -> Any:
        """Run a command; `depth` returns the messages that wait, `get` a message or none."""
        verb, queue, *rest = command.split(" ", 2)
        if verb in ("declare", "transient", "depth"):
            flags = {"declare": 2, "transient": 0, "depth": 1}[verb]
            self._method(1, (50, 10), b"\x00\x00" + _short(queue) + bytes([flags]) + _long(b""))
            answer = self._wait((50, 11))
            return int.from_bytes(answer[1 + answer[0] :][:4], "big")
        if verb == "pub":
            body = rest[0].encode()
            self._method(1, (60, 40), b"\x00\x00" + _short("") + _short(queue) + b"\x00")
            self._frame(_HEADER, 1, struct.pack(">HHQHB", 60, 0, len(body), 0x1000, 2))
            self._frame(_BODY, 1, body)
            return self._wait((60, 80))
        self._method(1, (60, 70), b"\x00\x00" + _short(queue) + b"\x01")
        return self._wait((60, 71), (60, 72))

    def _wait(self, *wanted: tuple[int, int]) -> bytes:
        while True:
            kind, body = self._read()
            if kind != _METHOD:
                continue
            method = struct.unpack(">HH", body[:4])
            if method in wanted:
                return body[4:]
            if method in _CLOSE:
                code, size = struct.unpack(">HB", body[4:7])
                text = f"({code}, '{body[7 : 7 + size].decode('utf-8', 'replace')}')"
                raise (ConnectionClosed if method[0] == 10 else ChannelClosed)(text)
            if method == _BLOCKED:
                raise ConnectionBlocked(body[5:].decode("utf-8", "replace"))

    def _read(self) -> tuple[int, bytes]:
        kind, _, size = struct.unpack(">BHI", self._wire.block(7))
        body: bytes = self._wire.block(size)
        self._wire.block(1)
        return kind, body

    def _method(self, channel: int, method: tuple[int, int], arguments: bytes) -> None:
        self._frame(_METHOD, channel, struct.pack(">HH", *method) + arguments)

    def _frame(self, kind: int, channel: int, body: bytes) -> None:
        self._wire.send(struct.pack(">BHI", kind, channel, len(body)) + body + b"\xce")

    def close(self) -> None:
        """Close the connection without a word."""
        self._wire.close()


def _short(text: str) -> bytes:
    return bytes([len(text.encode())]) + text.encode()


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def connect(*, user: str, password: str, vhost: str = "/", heartbeat_s: int = 0, **options: Any) -> Session:
    """A connection."""
    return Session(user=user, password=password, vhost=vhost, heartbeat_s=heartbeat_s, **options)
