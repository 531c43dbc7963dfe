"""MariaDB runs out of something, is locked, or slow."""

from __future__ import annotations

import random

from midwatch.foundry.faults.mariadb.server import alert, healthy, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, let_run, perhaps_mended, small_disk, user_if_root


def too_many_connections(place: Place, rng: random.Random) -> Told:
    """A service opens connections and keeps them, until the server or its user has no more."""
    limit = rng.randint(10, 20)
    of_user = rng.random() < 0.3
    server = healthy(place, rng, settings={"max_connections": 200 if of_user else limit}, pooled=False, pause_s=0.45)
    who = server.cast
    if of_user:
        server.sql(f"ALTER USER '{who.user}'@'127.0.0.1' WITH MAX_USER_CONNECTIONS {limit}")
    broke = place.now
    keep = (Route(name="POST /reports", steps=(f"SELECT count(*) FROM {who.table}", "sleep 30")),)
    leak = server.serve(rng, service=who.other, routes=keep, threads=limit + 3, pause_s=0.5, quiet=True)
    place.wait_for("Too many connections|max_user_connections", since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(leak), (1.0, 2.0))
    return server.told(
        cause=f"all {limit} connections of MariaDB on {who.host} are in use, held by {who.other}",
        truth=("Too many connections", "max_user_connections"),
        broke_at=broke,
        mended_at=mended,
        alert=alert(rng, server, "MysqlTooManyConnections"),
        severity="critical",
    )


def disk_full(place: Place, rng: random.Random) -> Told:
    """The volume of a table runs full under an import."""
    who = cast(rng)
    user = user_if_root("mysql")
    volume = rng.choice(("/mnt/mysql-data", "/data/mysql", "/var/lib/mysql-volumes/a"))
    engine = rng.choice(("InnoDB", "InnoDB", "MyISAM", "Aria"))
    with small_disk(place, "volume", mb=rng.randint(6, 12), user=user) as disk:
        inside = engine != "Aria"
        server = make(place, rng, who, engine=engine if inside else "MyISAM", table_folder=disk)
        server.start()
        server.serve(rng, pause_s=0.4)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        bulk = f"INSERT INTO {who.table} (note) SELECT repeat('x', 900) FROM seq_1_to_600"
        load = Route(name=f"POST /{who.table}/import", steps=(bulk,), ok=202)
        server.serve(rng, service=who.other, routes=(load,), threads=2, pause_s=0.2)
        place.wait_for("No space left on device|is full|Disk is full|failed with error 28", since=broke, timeout_s=25)
        let_run(rng, 2.0, 4.0)
        return server.told(
            cause=f"the disk of {who.table} of MariaDB on {who.host} is full, so writes fail",
            truth=(
                "No space left on device",
                r"The table '[\w./]+' is full",
                "Disk is full writing",
                r"failed with error 28",
                r"Operating system error number 28",
                r"Error number 28 means",
                "Retry attempts for writing partial data failed",
                "Check that the disk is not full",
                "The disk is full",
            ),
            broke_at=broke,
            hide={"/srv/volume": volume},
            alert=alert(rng, server, "NodeFilesystemAlmostOutOfSpace", "MysqlErrors"),
            severity="critical",
        )


def deadlock(place: Place, rng: random.Random) -> Told:
    """Two routes take the same two rows in opposite order."""
    server = healthy(place, rng, settings={"innodb_print_all_deadlocks": rng.choice(("ON", "OFF", "OFF"))})
    who = server.cast
    broke = place.now
    low, high = sorted(rng.sample(range(1, 90), 2))
    first, second = (f"UPDATE {who.table} SET amount = amount + 1 WHERE id = {row}" for row in (low, high))
    gap = f"sleep {rng.uniform(0.15, 0.3):.2f}"
    routes = (
        Route(name=f"POST /{who.table}/transfer", steps=("BEGIN", first, gap, second, "COMMIT"), ok=201),
        Route(name=f"POST /{who.table}/settle", steps=("BEGIN", second, gap, first, "COMMIT"), ok=201),
    )
    server.serve(rng, service=who.other, routes=routes, threads=3, pause_s=0.4)
    place.wait_for("Deadlock found", since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"transactions of {who.other} take rows of {who.table} in opposite order and deadlock",
        truth=(
            "Deadlock found when trying to get lock",
            "Transactions deadlock detected",
            r"WE ROLL BACK TRANSACTION",
            "WAITING FOR THIS LOCK TO BE",
            r"^RECORD LOCKS space id",
        ),
        broke_at=broke,
        alert=alert(rng, server, "MysqlDeadlocks"),
    )


def lock_wait(place: Place, rng: random.Random) -> Told:
    """A job holds rows, or the whole table, and others give up waiting."""
    settings = {"innodb_lock_wait_timeout": 1, "lock_wait_timeout": 1}
    server = healthy(place, rng, settings=settings)
    who = server.cast
    broke = place.now
    hold = rng.choice(
        (
            ("BEGIN", f"UPDATE {who.table} SET state = 'archived'"),
            ("BEGIN", f"SELECT * FROM {who.table} FOR UPDATE"),
            (f"LOCK TABLES {who.table} WRITE",),
        )
    )
    job = Route(
        name="job nightly-archive", steps=(*hold, f"sleep {rng.uniform(3, 5):.1f}", "UNLOCK TABLES", "ROLLBACK")
    )
    keeper = server.serve(rng, service=who.other, routes=(job,), threads=1, pause_s=0.1)
    place.wait_for("Lock wait timeout exceeded", since=broke, timeout_s=20)
    let_run(rng, 2.5, 4.0)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(keeper), (1.0, 1.5))
    return server.told(
        cause=f"a job of {who.other} holds {who.table} locked, so others time out",
        truth=("Lock wait timeout exceeded",),
        broke_at=broke,
        mended_at=mended,
        alert=alert(rng, server, "MysqlLocks", "HighLatency"),
    )


def slow_queries(place: Place, rng: random.Random) -> Told:
    """An index is gone, and the slow query log fills."""
    who = cast(rng)
    lines = f"{who.table}_lines"
    column = rng.choice(("customer_email", "external_ref", "tracking_code"))
    also = (
        f"CREATE TABLE {lines} (line_id int PRIMARY KEY, {column} varchar(40), qty int, KEY by_{column} ({column})) "
        f"SELECT seq AS line_id, md5(seq) AS {column}, seq % 50 AS qty FROM seq_1_to_120000;\n"
    )
    settings = {"slow_query_log": 1, "long_query_time": rng.choice((0.03, 0.02)), "log_slow_verbosity": "query_plan"}
    slow_log = place.folder / "slow.log"
    server = make(place, rng, who, settings={**settings, "slow_query_log_file": slow_log}, also=also)
    slow_log.touch()
    slow_log.chmod(0o666)
    server.start()
    place.follow("mariadb-slow", slow_log)
    look_up = Route(
        name=f"GET /{column}/lines", steps=(f"SELECT sum(qty) FROM {lines} WHERE {column} = md5('{{id}}')",)
    )
    server.serve(rng, routes=(look_up,), pause_s=0.4)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    server.sql(f"DROP INDEX by_{column} ON {lines}", database=who.database)
    place.wait_for("Query_time", since=broke, timeout_s=20)
    let_run(rng, 2.5, 4.0)
    return server.told(
        cause=f"queries of {who.service} read all of {lines}, since no index on {column} serves them",
        truth=("# Query_time:", "# Full_scan: Yes"),
        broke_at=broke,
        alert=alert(rng, server, "MysqlSlowQueries", "HighLatency"),
        severity="medium",
    )
