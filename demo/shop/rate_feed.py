"""The partner's side: today's exchange rates."""

from __future__ import annotations

import random

from shop import service

log = service.logger("rate-feed")
rng = random.Random(5)


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """GET /latest?base=CURRENCY."""
    return 200, {"rate": round(rng.uniform(0.6, 1.7), 4)}


if __name__ == "__main__":
    service.serve("10.20.0.40", 80, handle, log)
