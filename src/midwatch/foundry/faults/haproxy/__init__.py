"""HAProxy: `server.py` runs one, `troubles.py` breaks it or what stands behind it."""

from __future__ import annotations

from midwatch.foundry.faults.haproxy import troubles
from midwatch.foundry.stage import staged

_NEEDS = {"handshake_refused": ("haproxy", "openssl")}
FAULTS = (
    *(staged("haproxy", category, _NEEDS.get(body.__name__, ("haproxy",)), body) for category, body in troubles.ALL),
    *(
        staged("haproxy", "benign_false_alarm", ("haproxy",), body, kind="false_alarm")
        for body in (troubles.maintenance, troubles.server_back)
    ),
    staged("haproxy", "", ("haproxy",), troubles.quiet, kind="healthy"),
)
