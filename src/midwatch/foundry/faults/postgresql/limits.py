"""PostgreSQL runs out of something: connections, disk, memory, shared memory."""

from __future__ import annotations

import random
import shutil

from midwatch.foundry.faults.postgresql.server import Cluster, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, let_run, perhaps_mended, small_disk, user_if_root


def connection_slots(place: Place, rng: random.Random) -> Told:
    """Another service opens connections and keeps them, until the server, the role or the database has no more."""
    who = cast(rng)
    limit = rng.randint(9, 24)
    where = rng.choice(("server", "server", "server", "role", "database"))
    cluster = make(place, rng, who, settings={"max_connections": limit if where == "server" else 60})
    cluster.start()
    if where == "role":
        cluster.sql(f"ALTER ROLE {who.user} CONNECTION LIMIT {limit}")
    elif where == "database":
        cluster.sql(f"ALTER DATABASE {who.database} CONNECTION LIMIT {limit}")
    cluster.serve(rng, pooled=rng.random() < 0.4, pause_s=rng.uniform(0.3, 0.6))
    let_run(rng, 1.5, 3.0)
    broke = place.now
    holding = Route(name="POST /reports", steps=("BEGIN", f"SELECT count(*) FROM {who.table}", "sleep 30", "COMMIT"))
    leak = cluster.serve(
        rng, service=who.other, routes=(holding,), threads=limit + rng.randint(2, 4), pause_s=0.5, quiet=True
    )
    let_run(rng, 2.5, 4.0)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(leak), (1.0, 2.0))
    what = {"server": f"all {limit} connections", "role": "the role's connections", "database": "its connections"}[
        where
    ]
    return cluster.told(
        cause=f"{what} of PostgreSQL at {who.host} are in use, held by {who.other}, so new clients are refused",
        entity=who.user if where == "role" else who.database,
        truth=("sorry, too many clients already", "remaining connection slots are", "too many connections for"),
        broke_at=broke,
        mended_at=mended,
        alert=rng.choice(
            (
                ("PostgresqlTooManyConnections", f"PostgreSQL instance {who.host} has too many connections (> 80%)"),
                ("HighErrorRate", f"{who.service} answers 5xx to more than 5% of requests"),
                (f"{who.service} error rate", ""),
            )
        ),
        severity="critical",
    )


def _fill_disk(place: Place, rng: random.Random, cluster: Cluster, mount: str) -> float:
    """Rows are written until the disk of a table, or of the whole server, is full."""
    who = cluster.cast
    cluster.start()
    if mount == "tablespace":
        cluster.sql(f"CREATE TABLESPACE bulk LOCATION '{place.folder / 'volume'}'")
        cluster.sql(f"ALTER TABLE {who.table} SET TABLESPACE bulk", database=who.database)
    cluster.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    path = f"/{who.table}"
    load = Route(
        name=f"POST {path}/import",
        steps=(f"INSERT INTO {who.table} (note) SELECT repeat('x', 900) || n FROM generate_series(1, 6000) n",),
        ok=202,
    )
    cluster.serve(rng, service=who.other, routes=(load,), pause_s=0.25, threads=2)
    place.wait_for("No space left on device|Check free disk space", source="postgres", timeout_s=20)
    let_run(rng, 1.5, 3.0)
    return broke


def disk_full(place: Place, rng: random.Random) -> Told:
    """The volume of a table, or of the whole data folder, runs full under an import."""
    who = cast(rng)
    user = user_if_root("postgres")
    mount = rng.choice(("tablespace", "data", "data"))
    volume = rng.choice(("/var/lib/postgresql", "/mnt/pgdata", "/data/postgres", "/pgvol"))
    with small_disk(place, "volume", mb=24 if mount == "tablespace" else rng.randint(68, 90), user=user) as disk:
        cluster = make(place, rng, who, data=disk / "pgdata" if mount == "data" else None, wal_mb=4)
        broke = _fill_disk(place, rng, cluster, mount)
        ended = place.now
    return cluster.told(
        cause=f"the disk of PostgreSQL at {who.host} is full, so files cannot grow and writes fail",
        entity=who.database,
        truth=("No space left on device", "could not extend file", "Check free disk space"),
        broke_at=broke,
        ended_at=ended,
        hide={"/srv/volume/pgdata": f"{volume}/15/main", "/srv/volume": volume},
        alert=rng.choice(
            (
                ("NodeFilesystemAlmostOutOfSpace", f"Filesystem {volume} on {who.host} has only 1.2% space left"),
                ("HighErrorRate", f"{who.service} answers 5xx to more than 5% of requests"),
                ("PostgresqlDown", f"PostgreSQL instance {who.host} is failing writes"),
            )
        ),
        severity="critical",
    )


def memory_exhausted(place: Place, rng: random.Random) -> Told:
    """A report asks for more memory than the server's limit on its address space."""
    who = cast(rng)
    cluster = make(place, rng, who, settings={"max_parallel_workers_per_gather": 0, "work_mem": "1GB"})
    limit_mb = rng.randint(330, 480)
    cluster.start(command=(shutil.which("prlimit") or "prlimit", f"--as={limit_mb * 2**20}"))
    cluster.serve(rng, pause_s=0.35)
    let_run(rng, 1.5, 3.0)
    broke = place.now
    query = rng.choice(
        (
            "SELECT array_agg(n || repeat('x', 500)) FROM generate_series(1, 900000) n",
            "SELECT string_agg(md5(n::text) || repeat('y', 700), ',') FROM generate_series(1, 900000) n",
            "SELECT count(*) FROM (SELECT n, repeat('z', 900) FROM generate_series(1, 900000) n ORDER BY 2, 1 DESC) q",
        )
    )
    cluster.serve(
        rng, service=who.other, routes=(Route(name="GET /reports/export", steps=(query,)),), threads=1, pause_s=0.5
    )
    place.wait_for("out of memory", source="postgres", timeout_s=20)
    let_run(rng, 0.5, 1.5)
    return cluster.told(
        cause=f"a query of {who.other} needs more memory than PostgreSQL at {who.host} may take, so it fails",
        entity=who.database,
        truth=("out of memory", "Failed on request of size"),
        broke_at=broke,
        alert=rng.choice((("HighErrorRate", f"{who.other} fails"), ("PostgresqlErrors", f"Errors on {who.host}"))),
        severity="high",
    )


def shared_memory(place: Place, rng: random.Random) -> Told:
    """A query over too many partitions fills the lock table in shared memory."""
    who = cast(rng)
    settings = {"max_locks_per_transaction": 10, "max_connections": rng.randint(8, 12), "max_prepared_transactions": 0}
    parts = rng.randint(1000, 1400)
    partitions = (
        "CREATE TABLE events (at int, note text) PARTITION BY RANGE (at);\n"
        f"DO $$ BEGIN FOR n IN 1..{parts} LOOP EXECUTE format("
        "'CREATE TABLE events_p%s PARTITION OF events FOR VALUES FROM (%s) TO (%s)', n, n, n + 1); "
        "END LOOP; END $$;\n"
    )
    cluster = make(place, rng, who, settings=settings, also=partitions)
    cluster.start()
    cluster.serve(rng, pause_s=0.35, threads=1)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    count = Route(name="GET /events/summary", steps=("SELECT count(*) FROM events",))
    cluster.serve(rng, service=who.other, routes=(count,), threads=2, pause_s=0.5)
    place.wait_for("out of shared memory", timeout_s=20)
    let_run(rng, 1.5, 3.0)
    return cluster.told(
        cause=f"the lock table in shared memory of PostgreSQL at {who.host} is full: a query locks {parts} partitions",
        entity=who.database,
        truth=("out of shared memory", "You might need to increase max_locks_per_transaction"),
        broke_at=broke,
        accepted=("config_env_error",),
        alert=rng.choice((("HighErrorRate", f"{who.other} fails"), ("PostgresqlErrors", f"Errors on {who.host}"))),
    )
