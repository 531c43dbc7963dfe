"""Prices of products, for the shop and for partners."""

from __future__ import annotations

from shop import service

log = service.logger("pricing-api")


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """GET /prices/ID."""
    number = int(path.split("/")[2])
    return 200, {"product": number, "cents": 99 + number * 7 % 4000}


if __name__ == "__main__":
    service.serve("127.0.0.1", 8080, handle, log)
