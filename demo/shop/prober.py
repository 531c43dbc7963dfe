"""Asks a health check twice a second, as a monitoring system does."""

from __future__ import annotations

import http.client
import threading

from shop import service

log = service.logger("prober", "logfmt")


def main() -> None:
    """Probe until stopped; a change of state is a line, and so is every tenth success."""
    pace, successes, was_up = threading.Event(), 0, True
    while not pace.wait(0.5):
        connection = http.client.HTTPConnection("10.20.0.20", 8080, timeout=1)
        try:
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            response.read()
        except OSError as error:
            log.warning("target=booking-api probe_success=0 error=%s", error)
            successes, was_up = 0, False
            continue
        finally:
            connection.close()
        successes += 1
        if not was_up or successes % 10 == 0:
            log.info("target=booking-api probe_success=1 status=%d in_a_row=%d", response.status, successes)
        was_up = True


if __name__ == "__main__":
    main()
