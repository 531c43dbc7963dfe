"""The shop's stock counts. The database password is read from a file once, at start."""

from __future__ import annotations

from pathlib import Path

from shop import pq, service

log = service.logger("inventory-api", "json")
PASSWORD = Path("/srv/shop/secrets/inventory-db").read_text().strip()
DSN = "host=db.shop.internal user=inventory dbname=shop connect_timeout=5 application_name=inventory-api"
pool = pq.Pool(f"{DSN} password={PASSWORD}", max_age_s=5)


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """GET /stock/SKU, POST /stock/SKU (one less)."""
    sku = int(path.split("/")[2])
    try:
        if method == "POST":
            pool.execute(f"UPDATE stock SET count = count - 1 WHERE sku = {sku}")
        rows = pool.execute(f"SELECT count FROM stock WHERE sku = {sku}")
    except pq.DatabaseError as error:
        log.error("stock of %d not read: %s", sku, error)
        return 500, {"error": "no stock count"}
    return 200, {"sku": sku, "count": rows[0][0]}


if __name__ == "__main__":
    service.serve("10.20.0.20", 8080, handle, log)
