"""Sends every open invoice through the mail relay, over verified TLS."""

from __future__ import annotations

import json
import random
import ssl
import threading
import urllib.error
import urllib.request

from shop import service

log = service.logger("invoice-mailer")
URL = "https://mail.shop.internal:8443/messages"


def main() -> None:
    """One invoice about every third of a second."""
    context = ssl.create_default_context(cafile="/srv/shop/pki/ca.pem")
    pace, rng, invoice = threading.Event(), random.Random(3), 70311
    while not pace.wait(rng.uniform(0.1, 0.5)):
        invoice += 1
        body = json.dumps({"to": f"customer-{rng.randrange(9000)}@example.com", "invoice": invoice}).encode()
        try:
            with urllib.request.urlopen(URL, body, timeout=5, context=context) as answer:
                log.info("invoice %d sent, relay id %s", invoice, json.load(answer)["queued"])
        except urllib.error.URLError as error:
            log.error("invoice %d not sent: %s", invoice, error)


if __name__ == "__main__":
    main()
