"""The rollout's migration step: applies the schema changes of the new version before it starts."""

from __future__ import annotations

import sys
import time

from shop import pq, service

log = service.logger("rollout")
CHANGE = "ALTER TABLE orders ADD COLUMN gift_note text NOT NULL DEFAULT ''"


def main() -> int:
    """Apply the change; give up after two attempts."""
    log.info("deploying orders-api 2.14.0 (was 2.13.2): 1 migration to apply before the new version starts")
    connection = pq.Connection("host=db.shop.internal user=orders_owner dbname=shop application_name=rollout")
    connection.execute("SET lock_timeout = '6s'")
    for attempt in range(1, 3):
        log.info("applying 0042_add_gift_note, attempt %d of 2: %s", attempt, CHANGE)
        started = time.monotonic()
        try:
            connection.execute(CHANGE)
        except pq.DatabaseError as error:
            said = str(error).splitlines()[0]
            log.error("0042_add_gift_note failed after %.1f s: %s", time.monotonic() - started, said)
        else:
            log.info("0042_add_gift_note applied in %.1f s", time.monotonic() - started)
            return 0
    log.error("deploy of orders-api 2.14.0 aborted: migrations did not finish")
    return 1


if __name__ == "__main__":
    sys.exit(main())
