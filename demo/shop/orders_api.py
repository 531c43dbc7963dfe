"""The shop's orders: read one, change its state. Statements may take 2 s at most."""

from __future__ import annotations

from shop import pq, service

log = service.logger("orders-api")
DSN = "host=db.shop.internal user=orders dbname=shop connect_timeout=5 application_name=orders-api"
pool = pq.Pool(f"{DSN} options='-c statement_timeout=2000'", max_age_s=600)


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """GET /orders/ID, POST /orders/ID (set packed)."""
    order = int(path.split("/")[2])
    try:
        if method == "POST":
            pool.execute(f"UPDATE orders SET state = 'packed' WHERE id = {order}")
            return 200, {"order": order}
        rows = pool.execute(f"SELECT id, state FROM orders WHERE id = {order}")
        return 200, {"order": rows[0][0], "state": rows[0][1]}
    except pq.DatabaseError as error:
        log.error("order %d: %s", order, str(error).splitlines()[0])
        return 503, {"error": "try again"}


if __name__ == "__main__":
    service.serve("10.20.0.20", 8080, handle, log)
