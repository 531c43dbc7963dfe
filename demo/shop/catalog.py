"""The product catalogue: a page per product."""

from __future__ import annotations

from shop import service

log = service.logger("catalog")


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """GET /products/ID."""
    number = int(path.split("/")[2].split("?", maxsplit=1)[0])
    return (200, {"product": number}) if number < 900 else (404, {"error": "no such product"})


if __name__ == "__main__":
    service.serve("10.20.0.21", 8080, handle, log)
