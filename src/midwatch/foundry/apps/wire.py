"""A TCP connection as drivers open one: errors say whom they could not reach, lines and blocks are read whole."""

from __future__ import annotations

import socket
import ssl


class ConnectionFailed(Exception):
    """The server cannot be reached, or went away."""


class Wire:
    """A connection to `address`, called `host` in errors.

    `ca` makes it TLS, checked against that authority: at once, or, if `later`, when `secure` is called.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        address: str = "127.0.0.1",
        timeout_s: float = 2.0,
        ca: str = "",
        shown: int = 0,
        later: bool = False,
    ) -> None:
        self.name = f"{host}:{shown or port}"
        try:
            self._socket = socket.create_connection((address, port), timeout_s)
        except OSError as error:
            raise ConnectionFailed(f"Error {error.errno} connecting to {self.name}. {error.strerror}.") from None
        self._host = host
        self._stream = self._socket.makefile("rb", buffering=0 if later else -1)
        if ca and not later:
            self.secure(ca)

    def secure(self, ca: str) -> None:
        """Go on by TLS."""
        try:
            self._socket = ssl.create_default_context(cafile=ca).wrap_socket(self._socket, server_hostname=self._host)
        except OSError as error:
            raise ConnectionFailed(f"TLS handshake with {self.name} failed: {error}") from None
        self._stream = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send bytes."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionFailed(f"Error while writing to {self.name}: {error.strerror or error}") from None

    def line(self) -> bytes:
        """A line without its end."""
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise ConnectionFailed(f"Timeout reading from {self.name}") from None
        except OSError as error:
            raise ConnectionFailed(f"Error while reading from {self.name}: {error.strerror or error}") from None
        if not line:
            raise ConnectionFailed(f"Connection closed by server {self.name}")
        return line.rstrip(b"\r\n")

    def block(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        try:
            data = bytes(self._stream.read(size) or b"")
        except TimeoutError:
            raise ConnectionFailed(f"Timeout reading from {self.name}") from None
        except OSError as error:
            raise ConnectionFailed(f"Error while reading from {self.name}: {error.strerror or error}") from None
        if len(data) < size:
            raise ConnectionFailed(f"Connection closed by server {self.name}")
        return data

    def close(self) -> None:
        """Close it."""
        self._stream.close()
        self._socket.close()
