"""Shipping quotes. Fails fast: what is not understood ends the process, and the supervisor starts it anew."""

from __future__ import annotations

import json
import socketserver
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from shop import service

log = service.logger("quote-api")
ZONES = {"north": 4.9, "south": 5.9, "islands": 11.5}
PRODUCTS: dict[str, dict[str, Any]] = {
    f"P-{number}": {"weight_kg": round(0.2 + number % 17 * 0.35, 2), "zone": list(ZONES)[number % 3]}
    for number in range(400)
}
PRODUCTS["GIFT-CARD"] = {"weight_kg": None, "zone": "north"}


def shipping_cost(product: dict[str, Any], quantity: int) -> float:
    """Euros for a parcel."""
    weight: float = product["weight_kg"] * quantity
    return round(ZONES[product["zone"]] + 0.8 * weight, 2)


def quote(path: str) -> dict[str, Any]:
    """GET /quote/PRODUCT/QUANTITY."""
    _, _, name, quantity = path.split("/")
    return {"product": name, "eur": shipping_cost(PRODUCTS[name], int(quantity))}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """Answer a quote."""
        reply = json.dumps(quote(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
        log.info("%s 200", self.path)

    def log_message(self, *_: object) -> None:
        """`do_GET` logs."""


class Server(HTTPServer):
    """Ends the process on an unexpected error."""

    def handle_error(self, request: socketserver._RequestType, client_address: Any) -> None:
        """Fail fast."""
        error = sys.exc_info()[1]
        assert error is not None
        raise error


if __name__ == "__main__":
    server = Server(("10.20.0.20", 8080), Handler)
    log.info("quote-api 5.3.0 listening, %d products", len(PRODUCTS))
    server.serve_forever()
