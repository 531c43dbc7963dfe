"""The nightly export: reads every order through one cursor, slowly, in a single transaction."""

from __future__ import annotations

import threading

from shop import pq, service

log = service.logger("nightly-export")


def main() -> None:
    """Copy 50 rows at a time to the partner, who takes half a second for each."""
    connection = pq.Connection("host=db.shop.internal user=reporting dbname=shop application_name=nightly-export")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    connection.execute("DECLARE every_order CURSOR FOR SELECT * FROM orders ORDER BY id")
    log.info("export started in one transaction")
    partner = threading.Event()
    sent = 0
    while rows := connection.execute("FETCH 50 FROM every_order"):
        partner.wait(0.5)
        sent += len(rows)
        if sent % 500 == 0:
            log.info("%d orders sent to the partner", sent)
    connection.execute("COMMIT")


if __name__ == "__main__":
    main()
