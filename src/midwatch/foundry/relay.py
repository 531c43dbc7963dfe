"""A wire between two programs that can be cut: a TCP relay that passes bytes on, refuses, or falls silent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

_CHUNK = 65536


class Relay:
    """Listens on `port` and passes what comes on to `host:target`, until it is cut. Close it by `with`."""

    def __init__(self, host: str, target: int) -> None:
        self._to = (host, target)
        self._listener = _listening(0)
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent = False
        self._open = True
        self._accept_in_background()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._open = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._pairs.clear()

    def go_silent(self) -> None:
        """Keep connections and take new ones, but pass nothing on."""
        self._silent = True

    def mend(self) -> None:
        """Pass on again. Connections that fell silent are broken, as after a timeout."""
        self.cut()
        self._silent, self._open = False, True
        self._listener = _listening(self.port)
        self._accept_in_background()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.cut()

    def _accept_in_background(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while self._open:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket()
            try:
                if not self._silent:
                    far.connect(self._to)
            except OSError:
                near.close()
                far.close()
                continue
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if not self._silent:
                    sink.sendall(data)
            if not self._silent:
                sink.shutdown(socket.SHUT_WR)


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    return listener
