"""A batch client: copies prices from the pricing API, a few at a time. More workers make it faster."""

from __future__ import annotations

import concurrent.futures
import http.client
import sys
import threading

from shop import service

log = service.logger("price-importer")
pace = threading.Event()
HOST = "pricing.shop.internal"


def fetch(product: int) -> bool:
    """One price; three attempts."""
    for attempt in range(1, 4):
        connection = http.client.HTTPConnection(HOST, 80, timeout=5, source_address=("10.20.0.61", 0))
        try:
            connection.request("GET", f"/prices/{product}", headers={"User-Agent": "price-importer/1.8"})
            response = connection.getresponse()
            response.read()
        finally:
            connection.close()
        if response.status == 200:
            return True
        log.warning("GET /prices/%d: HTTP %d %s, attempt %d of 3", product, response.status, response.reason, attempt)
        pace.wait(0.2 * attempt)
    return False


def main(workers: int) -> None:
    """Import batch after batch of 20 products."""
    log.info("import started with workers=%d", workers)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for batch in range(1, 1000):
            products = range(batch * 20, batch * 20 + 20)
            done = sum(pool.map(fetch, products))
            if done == len(products):
                log.info("batch %d imported, %d prices", batch, done)
            else:
                log.error("batch %d incomplete: %d of %d prices", batch, done, len(products))
            pace.wait(0.5)


if __name__ == "__main__":
    main(int(sys.argv[1]))
