"""Makes thumbnails: takes the next photo of the queue, decodes it whole in memory, scales it, saves it."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

from shop import service

log = service.logger("thumbnailer")
QUEUE = Path("/srv/shop/photos")


def decode(width: int, height: int) -> bytearray:
    """The photo's pixels, 4 bytes each."""
    row = hashlib.sha256(f"{width}x{height}".encode()).digest() * (width * 4 // 32 + 1)
    pixels = bytearray()
    for _ in range(height):
        pixels += row[: width * 4]
    return pixels


def main() -> None:
    """Work the queue in order; a photo leaves it when its thumbnail is saved."""
    idle = threading.Event()
    log.info("%d photos waiting", len(list(QUEUE.iterdir())))
    while True:
        for job in sorted(QUEUE.iterdir()):
            width, height = (int(side) for side in job.read_text().split("x"))
            log.info("photo %s: decoding %dx%d", job.name, width, height)
            started = time.perf_counter()
            pixels = decode(width, height)
            thumbnail = pixels[:: max(1, len(pixels) // 4096)]
            job.unlink()
            took_ms = 1000 * (time.perf_counter() - started)
            log.info("photo %s: thumbnail of %d bytes saved in %.0f ms", job.name, len(thumbnail), took_ms)
            idle.wait(0.1)
        idle.wait(0.2)


if __name__ == "__main__":
    main()
