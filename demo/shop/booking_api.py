"""Delivery slots. Loads its calendar before it listens; on SIGTERM it finishes what it has and goes."""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
import time

from shop import service

log = service.logger("booking-api")


def load_calendar() -> sqlite3.Connection:
    """Every slot of the coming year."""
    calendar = sqlite3.connect(":memory:", check_same_thread=False)
    calendar.execute("CREATE TABLE slots (day INTEGER, minute INTEGER, van INTEGER, PRIMARY KEY (day, minute, van))")
    rows = ((day, minute, van) for day in range(365) for minute in range(0, 1440, 10) for van in range(24))
    calendar.executemany("INSERT INTO slots VALUES (?, ?, ?)", rows)
    return calendar


def main(version: str) -> None:
    """Serve until told to stop."""
    started = time.monotonic()
    log.info("booking-api %s starting, loading the calendar", version)
    calendar, lock = load_calendar(), threading.Lock()

    def handle(method: str, path: str, body: bytes) -> service.Answer:
        if path == "/healthz":
            return 200, {"status": "ok", "version": version}
        day = int(path.split("/")[2])
        with lock:
            free = calendar.execute("SELECT count(*) FROM slots WHERE day = ?", (day,)).fetchone()[0]
        return 200, {"day": day, "free": free}

    server = service.Server(("10.20.0.20", 8080), handle, log)

    def stop(*_: object) -> None:
        log.info("SIGTERM received, finishing open requests")
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    log.info("booking-api %s ready after %.1f s", version, time.monotonic() - started)
    server.serve_forever()
    server.server_close()
    log.info("booking-api %s stopped cleanly", version)


if __name__ == "__main__":
    main(sys.argv[1])
