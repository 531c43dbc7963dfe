"""MariaDB refuses, does not fit its service, crashes, is restarted, or is well."""

from __future__ import annotations

import random
import shutil
import signal

from midwatch.foundry.faults.mariadb.server import READY, alert, healthy, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, certificate, let_run


def access_denied(place: Place, rng: random.Random) -> Told:
    """A password is changed, a right taken away, or an account dropped."""
    server = healthy(place, rng, pooled=False)
    who = server.cast
    account = f"'{who.user}'@'127.0.0.1'"
    broke = place.now
    server.sql(
        rng.choice(
            (
                f"ALTER USER {account} IDENTIFIED BY 'rotated'",
                f"REVOKE ALL ON {who.database}.* FROM {account}",
                f"REVOKE INSERT, UPDATE ON {who.database}.* FROM {account}",
                f"DROP USER {account}",
                f"ALTER USER {account} ACCOUNT LOCK",
            )
        )
    )
    truth = ("Access denied for user", "command denied to user", "account is locked", "is not allowed to connect")
    place.wait_for("|".join(truth), since=broke)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"MariaDB on {who.host} refuses {who.user} of {who.service}",
        entity=who.user,
        truth=truth,
        broke_at=broke,
        alert=alert(rng, server, "MysqlAccessDenied"),
    )


def unknown_column(place: Place, rng: random.Random) -> Told:
    """A new version of a service asks for a column or a table that the schema has not."""
    server = make(place, rng, cast(rng))
    who = server.cast
    server.start()
    old = server.serve(rng, pause_s=0.35)
    let_run(rng, 1.5, 2.5)
    broke = place.now
    place.stop(old)
    major, minor, _ = who.version.split(".")
    version = rng.choice((f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.0.0"))
    column = rng.choice(("loyalty_tier", "currency_code", "deleted_at", "region_id"))
    table = rng.choice(("feature_flags", "price_rules", "customer_consents"))
    broken = rng.choice(
        (
            f"SELECT id, {column} FROM {who.table} WHERE id = {{id}}",
            f"INSERT INTO {who.table} (note, {column}) VALUES ('{{word}}', '{{id}}')",
            f"SELECT t.id FROM {who.table} t JOIN {table} x ON x.ref_id = t.id WHERE t.id = {{id}}",
        )
    )
    routes = (
        Route(name=f"GET /{who.table}", steps=(broken,), weight=3),
        Route(name=f"PUT /{who.table}", steps=(f"UPDATE {who.table} SET state = '{{word}}' WHERE id = {{id}}",)),
    )
    server.serve(rng, routes=routes, version=version, pause_s=0.35)
    truth = ("Unknown column", r"Table '[\w.]+' doesn't exist", f"starting {who.service} {version}")
    place.wait_for("Unknown column|doesn't exist", since=broke)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"{who.service} {version} asks for what the schema of {who.database} has not: its migration did not run",
        entity=who.service,
        truth=truth,
        broke_at=broke,
        alert=alert(rng, server),
    )


def crashed_table(place: Place, rng: random.Random) -> Told:
    """A table's index file is damaged, as by a crash or a bad disk."""
    server = make(place, rng, cast(rng), engine="MyISAM", settings={"myisam_recover_options": "OFF"})
    who = server.cast
    server.start()
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    path = server.data / who.database / f"{who.table}.MYI"
    server.sql("FLUSH TABLES")
    with path.open("r+b") as stream:
        stream.seek(24)
        stream.write(b"\x05\x00\xff")
    server.sql("FLUSH TABLES")
    truth = (
        "is marked as crashed",
        "Incorrect key file for table",
        "Index for table .* is corrupt",
        "Got an error from",
    )
    place.wait_for("|".join(truth), since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"the table {who.table} on {who.host} is damaged and must be repaired",
        entity=who.table,
        truth=truth,
        broke_at=broke,
        accepted=("code_defect_crash", "storage_volume_mount", "node_control_plane"),
        alert=alert(rng, server, "MysqlErrors"),
    )


def pool_too_large(place: Place, rng: random.Random) -> Told:
    """A restart with a buffer pool that does not fit into memory."""
    server = make(place, rng, cast(rng))
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    size_gb = rng.randint(6, 48)
    with server.config.open("a", encoding="utf-8") as stream:
        stream.write(f"innodb_buffer_pool_size = {size_gb}G\n")
    limited = (shutil.which("prlimit") or "prlimit", f"--as={rng.randint(3, 5) * 2**30}")
    for _ in range(rng.randint(1, 2)):
        server.start(command=limited, ready=False).wait(20)
        let_run(rng, 0.8, 1.5)
    return server.told(
        cause=f"MariaDB on {who.host} cannot get {size_gb} GB for its buffer pool, so it does not start",
        entity=who.host,
        truth=(
            "InnoDB: Cannot map innodb_buffer_pool_size",
            "InnoDB: Cannot allocate memory for the buffer pool",
        ),
        broke_at=broke,
        accepted=("config_env_error",),
        alert=alert(rng, server, "MysqlDown"),
        severity="critical",
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """A restart with a line that MariaDB does not take."""
    server = make(place, rng, cast(rng))
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    wrong = rng.choice(
        (
            "inodb_buffer_pool_size = 2G",
            "query_cache_sizes = 64M",
            "sql_mode = STRICT_TRANS_TABELS",
            "binlog_format = ROWS",
            "innodb_flush_method = O_DIRCT",
            "max_connection_count = 500",
            "character_set_server = utf8mb5",
            "default_storage_engine = InoDB",
        )
    )
    with server.config.open("a", encoding="utf-8") as stream:
        stream.write(wrong + "\n")
    for _ in range(rng.randint(1, 3)):
        server.start(ready=False).wait(20)
        let_run(rng, 0.6, 1.2)
    return server.told(
        cause=f"the configuration of MariaDB on {who.host} has a line that it refuses: {wrong}",
        entity=(wrong.split(" ", maxsplit=1)[0], wrong.split(" ")[-1], who.host),
        truth=(
            "unknown variable",
            "Error while setting value",
            "Unknown/unsupported storage engine",
            r"Character set '\w+' is not a compiled character set",
            "ambiguous option",
            "Wrong value|Unknown option|option.*requires",
            "Default storage engine .* is not available",
        ),
        broke_at=broke,
        alert=alert(rng, server, "MysqlDown"),
        severity="critical",
    )


def crash(place: Place, rng: random.Random) -> Told:
    """The server gets a fatal signal and prints its own report; a supervisor starts it again, or does not."""
    server = make(place, rng, cast(rng))
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.45)
    let_run(rng, 1.5, 2.5)
    broke = place.now
    process.send_signal(rng.choice((signal.SIGSEGV, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)))
    process.wait(20)
    mended = None
    if rng.random() < 0.6:
        server.start()
        mended = place.now
    let_run(rng, 1.0, 2.5)
    return server.told(
        cause=f"MariaDB on {who.host} crashed by a signal",
        entity=who.host,
        truth=(r"(mysqld|mariadbd) got signal \d+", "Sorry, we probably made a mistake"),
        broke_at=broke,
        mended_at=mended,
        alert=alert(rng, server, "MysqlDown", "MysqlRestarted"),
        severity="critical",
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The server's certificate expires while services connect by TLS."""
    who = cast(rng)
    healthy_s = rng.uniform(6.0, 7.5)
    folder = certificate(place, "server", host=who.host, lasts_s=healthy_s, user=None)
    for path in folder.iterdir():
        path.chmod(0o644)
    expires = place.now + healthy_s - 1.5
    settings = {"ssl_cert": folder / "server.crt", "ssl_key": folder / "server.key", "ssl_ca": folder / "ca.crt"}
    server = make(place, rng, who, settings=settings)
    server.start()
    server.serve(rng, pooled=False, pause_s=0.45, target={"ca": str(folder / "ca.crt")})
    place.wait_for("certificate has expired|certificate verify failed", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"the TLS certificate of MariaDB on {who.host} has expired",
        entity=who.host,
        truth=("certificate has expired", "certificate verify failed", "certificate expired"),
        broke_at=expires,
        alert=alert(rng, server),
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """The server is restarted on purpose and its clients come back. A false alarm."""
    server = make(place, rng, cast(rng))
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    place.stop(process)
    let_run(rng, 0.2, 0.8)
    server.start()
    mended = place.now
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"MariaDB on {who.host} was restarted as planned, and its clients are back",
        entity=who.host,
        truth=("Normal shutdown", "Shutdown complete", READY),
        broke_at=broke,
        mended_at=mended,
        alert=alert(rng, server, "MysqlRestarted", "MysqlDown"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start, traffic, and maintenance of tables."""
    server = healthy(place, rng, pause_s=rng.uniform(0.15, 0.4))
    who = server.cast
    for _ in range(rng.randint(1, 3)):
        let_run(rng, 0.8, 1.8)
        server.sql(rng.choice((f"ANALYZE TABLE {who.table}", f"OPTIMIZE TABLE {who.table}")), database=who.database)
    return server.told(cause="nothing is wrong: MariaDB serves", entity="", severity="info")


def aborted_clients(place: Place, rng: random.Random) -> Told:
    """Clients that go away without a word, which MariaDB notes as warnings, and refused duplicates."""
    server = healthy(place, rng, settings={"log_warnings": 4})
    who = server.cast
    twice = f"INSERT INTO {who.table} (id, note) VALUES ({{id}}, '{{word}}')"
    routes = (
        Route(name=f"POST /{who.table}/import", steps=(twice,), refused=409),
        Route(name="GET /health", steps=("SELECT 1",), weight=3),
    )
    for _ in range(rng.randint(2, 3)):
        gone = server.serve(rng, service=who.other, routes=routes, pause_s=0.3)
        let_run(rng, 1.2, 2.0)
        place.stop(gone, kill=True)
    return server.told(
        cause="nothing is wrong: clients go away, and duplicates are refused", entity="", severity="info"
    )
