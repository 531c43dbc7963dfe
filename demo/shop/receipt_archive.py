"""Keeps every receipt as a file on the data volume, with an SQLite index beside them."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from shop import service

log = service.logger("receipt-archive")
DATA = Path("/srv/shop/data")
lock = threading.Lock()
index = sqlite3.connect(DATA / "index.db", check_same_thread=False)
index.execute("CREATE TABLE IF NOT EXISTS receipts (id INTEGER PRIMARY KEY, bytes INTEGER, path TEXT)")


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """PUT /receipts/ID, GET /receipts/ID."""
    number = int(path.split("/")[2])
    file = DATA / "receipts" / f"{number:08d}.pdf"
    with lock:
        if method == "GET":
            row = index.execute("SELECT bytes FROM receipts WHERE id = ?", (number,)).fetchone()
            return (200, {"bytes": row[0]}) if row else (404, {"error": "no such receipt"})
        file.parent.mkdir(exist_ok=True)
        with index:
            index.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?)", (number, len(body), str(file)))
            file.write_bytes(body)
    return 201, {"id": number}


if __name__ == "__main__":
    service.serve("10.20.0.20", 8080, handle, log)
