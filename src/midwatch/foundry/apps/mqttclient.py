"""MQTT 3.1.1, as far as a small service needs it."""

from __future__ import annotations

import importlib
import random
import struct
from typing import Any

_REFUSED = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "broker unavailable",
    4: "bad user name or password",
    5: "not authorised",
}


class Refused(Exception):
    """The broker refused the connection or a subscription."""


class Session:
    """One connection. Commands: `pub TOPIC TEXT`, `sub TOPIC`, `next`."""

    def __init__(self, client: str, user: str, password: str, *, keep: bool, alive_s: int, **options: Any) -> None:
        self._wire = importlib.import_module("wire").Wire(**options)
        flags = (0 if keep else 2) | (0xC0 if user else 0)
        login = _text(user) + _text(password) if user else b""
        head = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", alive_s)
        self._packet(0x10, head + _text(client) + login)
        kind, body = self._read()
        if kind != 0x20 or body[1]:
            self.close()
            raise Refused(f"Connection Refused: {_REFUSED.get(body[1], 'unknown reason')} (rc={body[1]})")

    def run(self, command: str) -> Any:
        """Run a command; `next` waits for a message and returns its text."""
        verb, *rest = command.split(" ", 2)
        if verb == "pub":
            self._packet(0x32, _text(rest[0]) + b"\x00\x01" + rest[1].encode())
            self._until(0x40)
        elif verb == "sub":
            self._packet(0x82, b"\x00\x01" + _text(rest[0]) + b"\x01")
            if self._until(0x90)[-1] == 0x80:
                raise Refused(f"Subscription to {rest[0]} refused (rc=128)")
        else:
            body = self._until(0x30)
            return body[2 + int.from_bytes(body[:2], "big") + 2 :].decode("utf-8", "replace")
        return None

    def _until(self, wanted: int) -> bytes:
        while True:
            kind, body = self._read()
            if kind & 0xF0 == 0x30:
                at = 2 + int.from_bytes(body[:2], "big")
                self._packet(0x40, body[at : at + 2])
            if kind & 0xF0 == wanted:
                return body

    def _packet(self, kind: int, body: bytes) -> None:
        size, left = b"", len(body)
        while True:
            left, digit = divmod(left, 128)
            size += bytes([digit | (0x80 if left else 0)])
            if not left:
                break
        self._wire.send(bytes([kind]) + size + body)

    def _read(self) -> tuple[int, bytes]:
        kind = self._wire.block(1)[0]
        size, shift = 0, 0
        while True:
            digit = self._wire.block(1)[0]
            size |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                return kind, self._wire.block(size)

    def close(self) -> None:
        """Close the connection without a word."""
        self._wire.close()


def _text(value: str) -> bytes:
    return struct.pack(">H", len(value.encode())) + value.encode()


def connect(
    *, client: str, user: str = "", password: str = "", keep: bool = False, alive_s: int = 60, **options: Any
) -> Session:
    """A connection; a `*` at the end of the client's name stands for a number of its own."""
    if client.endswith("*"):
        client = f"{client[:-1]}{random.getrandbits(24):06x}"
    return Session(client, user, password, keep=keep, alive_s=alive_s, **options)
