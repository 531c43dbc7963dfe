"""PostgreSQL on a good day: start, load, checkpoints, vacuum, and warnings that mean nothing."""

from __future__ import annotations

import random

from midwatch.foundry.faults.postgresql.server import Cluster, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, let_run


def _good(cluster: Cluster, what: str) -> Told:
    return cluster.told(cause=f"nothing is wrong: {what}", entity="", severity="info")


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start, services that read and write, checkpoints and vacuum in between."""
    who = cast(rng)
    settings = {
        "log_checkpoints": "on",
        "log_autovacuum_min_duration": rng.choice(("0", "20ms", "-1")),
        "autovacuum_naptime": "1s",
        "log_connections": rng.choice(("on", "off")),
        "log_disconnections": rng.choice(("on", "off")),
        "log_temp_files": rng.choice(("0", "-1")),
        "autovacuum_vacuum_threshold": "20",
        "autovacuum_vacuum_scale_factor": "0.01",
    }
    cluster = make(place, rng, who, settings=settings)
    cluster.start()
    cluster.serve(rng, pause_s=rng.uniform(0.15, 0.4), pooled=rng.random() < 0.7)
    if rng.random() < 0.6:
        sort = "SELECT * FROM generate_series(1, 200000) n ORDER BY md5(n::text) LIMIT 3"
        cluster.serve(rng, service=who.other, routes=(Route(name="GET /stats/daily", steps=(sort,)),), pause_s=1.2)
    for _ in range(rng.randint(2, 4)):
        let_run(rng, 0.8, 1.6)
        cluster.sql(rng.choice(("CHECKPOINT", f"VACUUM {who.table}", f"ANALYZE {who.table}")), database=who.database)
    return _good(cluster, "PostgreSQL serves, makes checkpoints and vacuums")


def harmless_errors(place: Place, rng: random.Random) -> Told:
    """Refused duplicates, a cancelled query, warnings about transactions: what applications do every day."""
    who = cast(rng)
    cluster = make(place, rng, who)
    cluster.start()
    cluster.serve(rng, pause_s=0.25)
    path = f"/{who.table}"
    routes = (
        Route(
            name=f"POST {path}/import",
            steps=(f"INSERT INTO {who.table} (id, note) VALUES ({{id}}, '{{word}}')",),
            refused=409,
        ),
        Route(name="POST /jobs", steps=("BEGIN", "BEGIN", "COMMIT", "COMMIT"), ok=201),
        Route(name="GET /health", steps=("SELECT 1",), weight=4),
        Route(name=f"PUT {path}/schema", steps=(f"CREATE TABLE IF NOT EXISTS {who.table} (id int)",)),
    )
    cluster.serve(rng, service=who.other, routes=routes, pause_s=0.4)
    let_run(rng, 4.0, 6.5)
    return _good(cluster, "an application meets duplicates, which PostgreSQL refuses as it should")


def quiet_start(place: Place, rng: random.Random) -> Told:
    """A start and a few requests, then a planned stop at the end of a shift."""
    who = cast(rng)
    cluster = make(place, rng, who)
    server = cluster.start()
    service = cluster.serve(rng, pause_s=rng.uniform(0.4, 0.9))
    let_run(rng, 2.5, 5.0)
    place.stop(service)
    if rng.random() < 0.5:
        place.stop(server)
    return _good(cluster, "a short run of PostgreSQL with one service")
