"""The release tool: runs a service, and on SIGUSR1 carries out the planned restart with the next version."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import threading

from shop import service

log = service.logger("release")
COMMAND = [sys.executable, "/srv/shop/lib/shop/booking_api.py"]


def healthy() -> bool:
    """True if the service answers its health check."""
    connection = http.client.HTTPConnection("10.20.0.20", 8080, timeout=1)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except OSError:
        return False
    finally:
        connection.close()


def wait_healthy() -> None:
    """Ask until it answers."""
    pace = threading.Event()
    while not healthy():
        pace.wait(0.1)


def main() -> None:
    """Start, restart when asked, then keep watch."""
    asked = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())
    child = subprocess.Popen([*COMMAND, "3.2.0"])
    wait_healthy()
    log.info("booking-api 3.2.0 is healthy")
    while not asked.wait(0.2):
        pass
    log.info("change CHG-2231 (planned restart): replacing booking-api 3.2.0 with 3.2.1")
    child.terminate()
    log.info("booking-api 3.2.0 exited with code %d", child.wait())
    subprocess.Popen([*COMMAND, "3.2.1"])
    wait_healthy()
    log.info("booking-api 3.2.1 is healthy, CHG-2231 done")
    threading.Event().wait()


if __name__ == "__main__":
    main()
