"""A port for a server that a bench starts."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
