"""Fetches exchange rates from a partner and from the bank's mirror, and serves the last good ones."""

from __future__ import annotations

import json
import random
import threading
import urllib.error
import urllib.request

from shop import service

log = service.logger("fx-rates", "logfmt")
FEEDS = {"partner": "http://api.ratefeed.example/latest", "mirror": "http://rates-mirror.shop.internal/latest"}


def main() -> None:
    """Ask one feed for one currency, then the next."""
    pace, rng = threading.Event(), random.Random(5)
    age = dict.fromkeys(FEEDS, 0)
    while not pace.wait(rng.uniform(0.1, 0.35)):
        feed = rng.choice(list(FEEDS))
        currency = rng.choice(["EUR", "GBP", "JPY", "CHF", "SEK"])
        try:
            with urllib.request.urlopen(f"{FEEDS[feed]}?base={currency}", timeout=5) as reply:
                rate = json.load(reply)["rate"]
            age[feed] = 0
            log.info("feed=%s base=%s rate=%s", feed, currency, rate)
        except (urllib.error.URLError, TimeoutError) as error:
            age[feed] += 1
            log.error("feed=%s base=%s fetch failed: %s", feed, currency, error)
            if age[feed] % 5 == 0:
                log.warning("feed=%s rates are stale, serving the last good ones (%d fetches failed)", feed, age[feed])


if __name__ == "__main__":
    main()
