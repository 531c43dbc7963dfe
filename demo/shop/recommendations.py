"""Precomputes what to recommend to each customer, and keeps it in Redis."""

from __future__ import annotations

import random
import threading

from shop import resp, service

log = service.logger("recommendations")


def main() -> None:
    """One list per customer, about 2 kB."""
    redis, rng, pace = resp.Redis("cache.shop.internal"), random.Random(10), threading.Event()
    log.info("warm-up for 60000 customers started")
    for customer in range(60000):
        items = ",".join(f"P-{rng.randrange(100000):05d}" for _ in range(250))
        while True:
            try:
                redis.command("SET", f"recommend:{customer}", items)
                break
            except resp.RedisError as error:
                log.warning("customer %d: %s; trying again in 1 s", customer, error)
                pace.wait(1)
        if customer % 1000 == 999:
            log.info("%d customers done", customer + 1)
        if customer % 20 == 19:
            pace.wait(0.02)


if __name__ == "__main__":
    main()
