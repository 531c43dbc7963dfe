"""The node's own report every few seconds: load, and how full a volume is."""

from __future__ import annotations

import os
import shutil
import sys
import threading

from shop import service

log = service.logger("node-agent", "logfmt")


def main(folder: str, every_s: float) -> None:
    """Report until stopped."""
    pace = threading.Event()
    while not pace.wait(every_s):
        usage = shutil.disk_usage(folder)
        log.info("load1=%.2f volume=%s used_percent=%.0f", os.getloadavg()[0], folder, 100 * usage.used / usage.total)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
