"""The monthly report: one export per warehouse, each with its own session, all open until the report is whole."""

from __future__ import annotations

import concurrent.futures
import threading

from shop import pq, service

log = service.logger("report-export")
DSN = "host=db.shop.internal user=reporting dbname=shop connect_timeout=5 application_name=report-export"
WAREHOUSES = 60
sessions: list[pq.Connection] = []
pace = threading.Event()


def export(warehouse: int) -> None:
    """Read one warehouse; its session stays open for the totals."""
    sql = f"SELECT count(*), sum(cents) FROM payments WHERE order_id % {WAREHOUSES} = {warehouse - 1}"
    while True:
        try:
            session = pq.Connection(DSN)
            rows = session.execute(sql)
            sessions.append(session)
            log.info("warehouse %d: %s payments", warehouse, rows[0][0])
            return
        except pq.DatabaseError as error:
            log.warning("warehouse %d: no session, trying again: %s", warehouse, error)
            pace.wait(2)


def main() -> None:
    """Four warehouses at a time."""
    log.info("monthly report started: %d warehouses, 1 session each", WAREHOUSES)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(export, range(1, WAREHOUSES + 1)))


if __name__ == "__main__":
    main()
