"""A MariaDB of its own in a place: made, started, asked quietly, and used by services."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.foundry.place import Place
from midwatch.foundry.stage import Cast, Route, Told, cast, give, let_run, quietly, serve, user_if_root

NEEDS = ("mariadbd", "mariadb", "mariadb-install-db")
READY = "ready for connections"
PASSWORD = "correct-horse"  # noqa: S105 - of a server that lives for seconds


@dataclass(frozen=True, kw_only=True)
class Server:
    """A data folder with a configuration file. `shown` names it where its lines are heard."""

    place: Place
    cast: Cast
    port: int
    data: Path
    config: Path
    user: str | None
    shown: str = "mariadbd"

    def start(self, *, command: Sequence[str] = (), ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it (under `command`, if given) and wait until it is ready."""
        since = self.place.now
        process = self.place.start(
            self.shown, (*command, _program(), f"--defaults-file={self.config}"), user=self.user, cwd=self.data
        )
        if ready:
            self.place.wait_for(READY, source=self.shown, since=since)
        return process

    def sql(self, statement: str, *, database: str = "") -> str:
        """Statements as the administrator, unheard."""
        socket = f"--socket={self.data / 'm.sock'}"
        return quietly(("mariadb", "--no-defaults", socket, "-uroot", "-N", database, "-e", statement), what="mariadb")

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that uses the database."""
        who = self.cast
        target = {"host": "127.0.0.1", "port": self.port, "user": who.user, "password": PASSWORD}
        where = f"mysql://{who.user}@{who.host}:3306/{who.database}"
        return serve(
            self.place,
            rng,
            service or who.service,
            driver="mysqlclient",
            target={**target, "database": who.database, **options.pop("target", {})},
            routes=routes or usual_routes(who),
            greeting=options.pop("greeting", (f"using {where}",)),
            **{"version": who.version, **options},
        )

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of MariaDB hides and names."""
        who = self.cast
        names = {
            who.service: "service",
            who.other: "service",
            who.database: "database",
            who.user: "user",
            who.host: "host",
            who.table: "table",
        }
        found = {match for line in self.place.lines() for match in re.findall(r"server_uid (\S+)", line.text)}
        hide = {
            **{uid: f"{uid[:3]}{abs(hash(who)):x}{uid[-4:]}" for uid in found},
            "/srv/" + self.data.name: "/var/lib/mysql",
            f"/srv/{self.config.name}": "/etc/mysql/mariadb.conf.d/50-server.cnf",
            str(self.port): "3306",
            "127.0.0.1": who.address,
            "localhost": who.client,
        }
        given = {"ended_at": self.place.now, "entity": who.database, **values}
        given["names"] = {**names, **values.get("names", {})}
        given["hide"] = {**values.get("hide", {}), **hide}
        return Told(**given)


def _program() -> str:
    return shutil.which("mariadbd") or "mariadbd"


def usual_routes(who: Cast) -> tuple[Route, ...]:
    """What a small web service does all day."""
    path = f"/{who.table}"
    return (
        Route(name=f"GET {path}", steps=(f"SELECT * FROM {who.table} WHERE id = {{id}}",), weight=4),
        Route(
            name=f"POST {path}", steps=(f"INSERT INTO {who.table} (note, state) VALUES ('{{word}}', 'new')",), ok=201
        ),
        Route(name=f"PUT {path}", steps=(f"UPDATE {who.table} SET state = '{{word}}' WHERE id = {{id}}",)),
    )


def make(
    place: Place,
    rng: random.Random,
    who: Cast,
    *,
    settings: Mapping[str, object] | None = None,
    engine: str = "InnoDB",
    table_folder: Path | None = None,
    also: str = "",
) -> Server:
    """Make a server with the cast's user, database and table of a hundred rows. It is not started.

    `table_folder` is where the table's file lies, if elsewhere; `also` are further statements.
    """
    user = user_if_root("mysql")
    data = place.folder / "mysql"
    data.mkdir()
    give(data, user)
    port = place.free_port()
    small = ("--innodb-log-file-size=4M", "--innodb-fast-shutdown=0")
    as_user = (f"--user={user}",) if user else ()
    quietly(
        (
            *("mariadb-install-db", "--no-defaults", *as_user, f"--datadir={data}", *small),
            *("--skip-test-db", "--auth-root-authentication-method=normal", "--innodb-use-native-aio=0"),
            f"--tmpdir={data}",
        ),
        what="mariadb-install-db",
    )
    chosen = {
        "datadir": data,
        "socket": data / "m.sock",
        "tmpdir": data,
        "port": port,
        "bind-address": "127.0.0.1",
        "innodb_log_file_size": "4M",
        "innodb_buffer_pool_size": rng.choice(("16M", "32M", "64M")),
        "innodb_flush_log_at_trx_commit": 0,
        "innodb_use_native_aio": 0,
        "skip_name_resolve": 1,
        "open_files_limit": 4000,
        "log_warnings": rng.choice((2, 2, 2, 4)),
        **(settings or {}),
    }
    text = "[mariadbd]\n" + "".join(f"{key} = {value}\n" for key, value in chosen.items())
    config = place.write("my.cnf", text)
    folder = f" DATA DIRECTORY='{table_folder}'" if table_folder else ""
    statements = (
        "FLUSH PRIVILEGES",
        "DELETE FROM mysql.global_priv WHERE Host NOT IN ('localhost')",
        "DELETE FROM mysql.proxies_priv WHERE Host NOT IN ('localhost')",
        "FLUSH PRIVILEGES",
        f"CREATE DATABASE {who.database}",
        f"CREATE USER '{who.user}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
        f"GRANT ALL ON {who.database}.* TO '{who.user}'@'127.0.0.1'",
        f"USE {who.database}",
        f"CREATE TABLE {who.table} (id int AUTO_INCREMENT PRIMARY KEY, note text, state varchar(40) DEFAULT 'new', "
        f"amount int DEFAULT 1) ENGINE={engine}{folder}",
        f"INSERT INTO {who.table} (note) SELECT seq FROM seq_1_to_100",
        *(part for part in also.split(";\n") if part),
    )
    quietly(
        (_program(), f"--defaults-file={config}", *as_user, "--bootstrap"),
        what="mariadbd --bootstrap",
        text="".join(f"{statement};\n" for statement in statements),
    )
    return Server(place=place, cast=who, port=port, data=data, config=config, user=user)


def healthy(
    place: Place, rng: random.Random, *, settings: Mapping[str, object] | None = None, **options: Any
) -> Server:
    """A server with a service that has used it for a while."""
    server = make(place, rng, cast(rng), settings=settings)
    server.start()
    server.serve(rng, **{"pause_s": 0.35, **options})
    let_run(rng, 1.0, 2.5)
    return server


def alert(rng: random.Random, server: Server, *titles: str) -> tuple[str, str]:
    """An alert that could fire."""
    who = server.cast
    say = ("", f"check MySQL on {who.host}", f"{who.service} answers 5xx to more than 5% of requests")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)
