"""The weekly rotation of a database password: a new one in the database and in the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shop import pq, service

log = service.logger("secret-rotation")


def main() -> None:
    """Rotate the credential of `inventory`."""
    file = Path("/srv/shop/secrets/inventory-db")
    new = hashlib.sha256(file.read_bytes()).hexdigest()[:24]
    admin = pq.Connection("host=db.shop.internal user=postgres dbname=shop application_name=secret-rotation")
    admin.execute(f"ALTER ROLE inventory PASSWORD '{new}'")
    file.write_text(new + "\n")
    log.info("rotated the database credential of role inventory (version 8, file secrets/inventory-db)")


if __name__ == "__main__":
    main()
