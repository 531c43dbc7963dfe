"""PostgreSQL is slow because statements wait for one another, or read far too much."""

from __future__ import annotations

import random

from midwatch.foundry.faults.postgresql.server import Cluster, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, let_run, perhaps_mended

_ALERTS = ("PostgresqlSlowQueries", "HighLatency", "ApiLatencyHigh", "PostgresqlLocks")


def _alert(rng: random.Random, cluster: Cluster) -> tuple[str, str]:
    who = cluster.cast
    return rng.choice(_ALERTS), rng.choice(
        ("", f"p99 latency of {who.service} is above {rng.choice((1, 2, 5))}s", f"check {who.database} on {who.host}")
    )


def deadlock(place: Place, rng: random.Random) -> Told:
    """Two routes take the same two rows in opposite order."""
    who = cast(rng)
    settings = {
        "deadlock_timeout": f"{rng.choice((150, 300, 500))}ms",
        "log_lock_waits": rng.choice(("on", "off")),
    }
    cluster = make(place, rng, who, settings=settings)
    cluster.start()
    cluster.serve(rng, pause_s=0.3, threads=1)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    low, high = sorted(rng.sample(range(1, 90), 2))
    first, second = (f"UPDATE {who.table} SET amount = amount + 1 WHERE id = {row}" for row in (low, high))
    name = f"/{who.table}"
    gap = f"sleep {rng.uniform(0.15, 0.3):.2f}"
    routes = (
        Route(name=f"POST {name}/transfer", steps=("BEGIN", first, gap, second, "COMMIT"), ok=201),
        Route(name=f"POST {name}/settle", steps=("BEGIN", second, gap, first, "COMMIT"), ok=201),
    )
    cluster.serve(rng, service=who.other, routes=routes, threads=rng.randint(3, 4), pause_s=0.25)
    place.wait_for("deadlock detected", source="postgres", timeout_s=20)
    let_run(rng, 2.0, 4.0)
    return cluster.told(
        cause=f"transactions of {who.other} take rows of {who.table} in opposite order and deadlock",
        entity=who.database,
        truth=(
            "deadlock detected",
            r"waits for \w+Lock on",
            r"still waiting for \w+Lock",
            "detected deadlock while waiting",
        ),
        broke_at=broke,
        alert=_alert(rng, cluster),
    )


def _long_lock(place: Place, rng: random.Random, setting: str) -> Told:
    who = cast(rng)
    patience_ms = rng.choice((300, 500, 800))
    settings = {"deadlock_timeout": f"{rng.choice((100, 200))}ms", "log_lock_waits": rng.choice(("on", "on", "off"))}
    cluster = make(place, rng, who, settings=settings)
    cluster.start()
    cluster.sql(f"ALTER ROLE {who.user} SET {setting} = '{patience_ms}ms'")
    cluster.serve(rng, pause_s=0.3)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    held_s = rng.uniform(2.5, 4.0)
    lock = rng.choice(
        (
            f"LOCK TABLE {who.table} IN ACCESS EXCLUSIVE MODE",
            f"ALTER TABLE {who.table} ADD COLUMN IF NOT EXISTS legacy_ref text",
            f"UPDATE {who.table} SET state = 'archived'",
            f"TRUNCATE {who.table}",
        )
    )
    holder = Route(name="job nightly-maintenance", steps=("BEGIN", f"{lock}", f"sleep {held_s:.2f}", "ROLLBACK"), ok=0)
    patient = {"options": f"'-c {setting}=0'"}
    job = cluster.serve(
        rng, service=who.other, routes=(holder,), threads=1, pause_s=0.1, parameters=patient, quiet=rng.random() < 0.5
    )
    place.wait_for("canceling statement due to", source="postgres", timeout_s=20)
    let_run(rng, held_s - 0.5, held_s)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(job), (0.8, 1.5))
    what = setting.replace("_", " ")
    return cluster.told(
        cause=f"a long transaction of {who.other} holds {who.table} locked, so statements end by {what}",
        entity=who.database,
        truth=("canceling statement due to", r"still waiting for \w+Lock", r"acquired \w+Lock on .* after \d{3,}"),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, cluster),
    )


def lock_timeout(place: Place, rng: random.Random) -> Told:
    """A transaction holds a table; others give up by lock_timeout."""
    return _long_lock(place, rng, "lock_timeout")


def statement_timeout(place: Place, rng: random.Random) -> Told:
    """A transaction holds a table; others give up by statement_timeout."""
    return _long_lock(place, rng, "statement_timeout")


def slow_scans(place: Place, rng: random.Random) -> Told:
    """An index is dropped, and what was a look-up reads the whole table."""
    who = cast(rng)
    limit_ms = rng.choice((30, 40, 50))
    explained = rng.random() < 0.4
    settings: dict[str, object] = {"max_parallel_workers_per_gather": 0, "jit": "off"}
    if explained:
        settings |= {"shared_preload_libraries": "auto_explain", "auto_explain.log_min_duration": f"{limit_ms}ms"}
        settings |= {"auto_explain.log_analyze": rng.choice(("on", "off"))}
    else:
        settings |= {"log_min_duration_statement": f"{limit_ms}ms"}
    column = rng.choice(("customer_email", "external_ref", "tracking_code", "sku"))
    table = (
        f"CREATE TABLE {who.table}_lines AS SELECT n AS line_id, md5(n::text) AS {column}, n % 50 AS qty, "
        f"repeat(md5(n::text), 3) AS detail FROM generate_series(1, {rng.randint(260, 340)}000) n;\n"
        f"CREATE INDEX {who.table}_lines_idx ON {who.table}_lines ({column});\n"
    )
    cluster = make(place, rng, who, settings=settings, also=table)
    cluster.start()
    find = f"SELECT * FROM {who.table}_lines WHERE {column} = md5('{{id}}') ORDER BY detail"
    look_up = Route(name=f"GET /{column.replace('_', '-')}/lines", steps=(find,), weight=3)
    total = Route(
        name="GET /totals", steps=(f"SELECT sum(qty) FROM {who.table}_lines WHERE {column} = md5('{{other}}')",)
    )
    cluster.serve(rng, routes=(look_up, total), pause_s=0.4, threads=2)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    cluster.sql(f"DROP INDEX {who.table}_lines_idx", database=who.database)
    place.wait_for(r"duration: \d", source="postgres", since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return cluster.told(
        cause=f"queries of {who.service} read all of {who.table}_lines, since no index on {column} serves them",
        entity=who.database,
        truth=(r"duration: \d+\.\d+ ms +(statement|execute|plan)", r"^\s*(->)?\s*Seq Scan on"),
        broke_at=broke,
        alert=_alert(rng, cluster),
        severity="medium",
    )
