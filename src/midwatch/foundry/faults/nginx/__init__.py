"""nginx: what stands behind it (`upstreams.py`), and nginx itself (`itself.py`); `server.py` runs one."""

from __future__ import annotations

from midwatch.foundry.faults.nginx import itself, upstreams
from midwatch.foundry.stage import staged

_NEEDS = {"disk_full": ("unshare",), "own_certificate": ("openssl",), "upstream_certificate": ("openssl",)}
FAULTS = (
    *(
        staged("nginx", category, ("nginx", *_NEEDS.get(body.__name__, ())), body)
        for category, body in (*upstreams.ALL, *itself.ALL)
    ),
    staged("nginx", "benign_false_alarm", ("nginx",), itself.planned_reload, kind="false_alarm"),
    staged("nginx", "benign_false_alarm", ("nginx",), itself.blip, kind="false_alarm"),
    staged("nginx", "", ("nginx",), itself.quiet, kind="healthy"),
)
