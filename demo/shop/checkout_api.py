"""The shop's checkout: takes a payment for an order, one short transaction each."""

from __future__ import annotations

import random
import threading

from shop import pq, service

log = service.logger("checkout-api", "logfmt")
DSN = "host=db.shop.internal user=checkout dbname=shop connect_timeout=5 application_name=checkout-api"
pool = pq.Pool(DSN, max_age_s=3)
rng = random.Random(1)
card_network = threading.Event()


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """POST /orders/ID/pay."""
    order = int(path.split("/")[2])
    try:
        with pool.connection() as session:
            session.execute("BEGIN")
            session.execute(f"INSERT INTO payments (order_id, cents) VALUES ({order}, {len(body) * 100})")
            card_network.wait(rng.uniform(0.05, 0.35))  # the card network takes its time, and the transaction waits
            session.execute("COMMIT")
    except pq.DatabaseError as error:
        log.error("payment of order %d not taken: %s", order, str(error).replace('"', "'"))
        return 503, {"error": "payment not taken"}
    return 200, {"order": order, "paid": True}


if __name__ == "__main__":
    service.serve("10.20.0.20", 8080, handle, log)
