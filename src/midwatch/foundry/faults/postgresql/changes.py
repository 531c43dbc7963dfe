"""PostgreSQL after a change: a migration that does not fit the service, a configuration that the server refuses."""

from __future__ import annotations

import random

from midwatch.foundry.faults.postgresql.server import make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, let_run


def missing_column(place: Place, rng: random.Random) -> Told:
    """A new version of a service asks for a column, a table or a function that the schema has not."""
    who = cast(rng)
    cluster = make(place, rng, who)
    cluster.start()
    old = cluster.serve(rng, pause_s=0.3)
    let_run(rng, 1.5, 3.0)
    broke = place.now
    place.stop(old)
    major, minor, patch = who.version.split(".")
    version = rng.choice((f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.0.0", f"{major}.{minor}.{int(patch) + 1}"))
    column = rng.choice(("loyalty_tier", "currency_code", "deleted_at", "region_id", "tax_rate"))
    table = rng.choice(("feature_flags", "order_events_v2", "customer_consents", "price_rules"))
    path = f"/{who.table}"
    broken = rng.choice(
        (
            f"SELECT id, note, {column} FROM {who.table} WHERE id = {{id}}",
            f"INSERT INTO {who.table} (note, {column}) VALUES ('{{word}}', '{{id}}')",
            f"SELECT t.id FROM {who.table} t JOIN {table} x ON x.ref_id = t.id WHERE t.id = {{id}}",
            f"INSERT INTO {table} (ref_id, kind) VALUES ({{id}}, '{{word}}')",
            f"SELECT {column}_of({{id}}), note FROM {who.table} WHERE id = {{id}}",
        )
    )
    routes = (
        Route(name=f"GET {path}", steps=(broken,), weight=3),
        Route(name=f"PUT {path}", steps=(f"UPDATE {who.table} SET state = '{{word}}' WHERE id = {{id}}",)),
    )
    cluster.serve(rng, routes=routes, version=version, pause_s=0.35)
    place.wait_for("does not exist", source="postgres", since=broke)
    let_run(rng, 2.0, 4.0)
    return cluster.told(
        cause=f"{who.service} {version} asks for what the schema of {who.database} has not: its migration did not run",
        entity=who.service,
        truth=(
            r"column .* does not exist",
            r"relation .* does not exist",
            r"function .* does not exist",
            f"starting {who.service} {version}",
        ),
        broke_at=broke,
        alert=rng.choice(
            (
                ("HighErrorRate", f"{who.service} answers 5xx to more than 5% of requests"),
                (f"{who.service} error rate", f"errors since the rollout of {version}"),
            )
        ),
    )


def dropped_column(place: Place, rng: random.Random) -> Told:
    """A migration drops or renames what the version that still runs asks for."""
    who = cast(rng)
    cluster = make(place, rng, who, settings={"log_statement": rng.choice(("ddl", "ddl", "none"))})
    cluster.start()
    cluster.serve(rng, pause_s=0.3)
    let_run(rng, 1.5, 3.0)
    broke = place.now
    number = rng.randint(12, 240)
    change = rng.choice(
        (
            f"ALTER TABLE {who.table} DROP COLUMN state",
            f"ALTER TABLE {who.table} RENAME COLUMN state TO status",
            f"ALTER TABLE {who.table} RENAME TO {who.table}_old",
            f"ALTER TABLE {who.table} RENAME COLUMN note TO description",
        )
    )
    migrate = Route(name=f"migration {number:04d}", steps=(change, "sleep 30"), ok=0)
    cluster.serve(
        rng,
        service="migrate",
        routes=(migrate,),
        threads=1,
        pause_s=0.05,
        greeting=(f"applying migration {number:04d}: {change}",),
        style="plain",
    )
    place.wait_for("does not exist", source="postgres", since=broke)
    let_run(rng, 2.0, 4.0)
    return cluster.told(
        cause=f"migration {number:04d} changed {who.table} under {who.service}, which still asks for the old schema",
        entity=who.service,
        truth=(
            r"column .* does not exist",
            r"relation .* does not exist",
            f"applying migration {number:04d}",
            f"statement: {change.split(' ')[0]} ",
        ),
        broke_at=broke,
        alert=("HighErrorRate", f"{who.service} answers 5xx to more than 5% of requests"),
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """An edit of postgresql.conf is refused: at the next start the server stays down, at a reload it says so."""
    who = cast(rng)
    cluster = make(place, rng, who)
    server = cluster.start()
    cluster.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    wrong = rng.choice(
        (
            "max_conections = 200",
            "shared_buffers = 128MBB",
            "work_mem = lots",
            "wal_level = archive_all",
            "log_min_duration_statment = 500",
            "max_connections = -5",
            "effective_cache_size = 4 GiB",
            "ssl = maybe",
            "listen_addresses = '*",
            "shared_preload_libraries = 'pg_stat_statments'",
        )
    )
    path = cluster.data / "postgresql.conf"
    path.write_text(path.read_text(encoding="utf-8") + wrong + "\n", encoding="utf-8")
    if rng.random() < 0.25 and "preload" not in wrong:
        cluster.reload()
        let_run(rng, 2.5, 4.0)
    else:
        place.stop(server)
        for _ in range(rng.randint(1, 3)):
            again = cluster.start(ready=False)
            again.wait(20)
            let_run(rng, 0.8, 1.2)
    return cluster.told(
        cause=f"postgresql.conf of {who.host} has a line that PostgreSQL refuses: {wrong}",
        entity=(wrong.split(" ")[0], wrong.split(" ")[-1].strip("'"), who.host),
        truth=(
            "unrecognized configuration parameter",
            "invalid value for parameter",
            r"parameter \"\w+\" requires a",
            r"is outside the valid range for parameter",
            r"syntax error in file",
            r"configuration file .* contains errors",
            r"could not access file \"pg_stat_statments\"",
            r"Valid units for this parameter",
            r"Available values:",
        ),
        broke_at=broke,
        alert=rng.choice((("PostgresqlDown", f"PostgreSQL instance {who.host} is down"), ("HighErrorRate", ""))),
        severity="critical",
    )
