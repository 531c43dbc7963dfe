"""A PostgreSQL of its own in a place: made, started, asked quietly, and used by services."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from midwatch.foundry.place import Place
from midwatch.foundry.stage import Cast, Route, Told, give, quietly, serve, user_if_root

NEEDS = ("postgres", "initdb", "psql")
ADMIN = "postgres"
_PREFIXES = (
    "%m [%p] ",
    "%m [%p] %q%u@%d ",
    "%m [%p] %q%u@%d ",
    "%t [%p]: user=%u,db=%d,app=%a,client=%h ",
    "%m [%p] %q[user=%u,db=%d,app=%a] ",
    "%t [%p-%l] %q%u@%d ",
    "%t:%h(%r):%u@%d:[%p]:",
)
READY = "database system is ready to accept"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A data folder with a server's settings. `shown` names the server where its lines are heard."""

    place: Place
    data: Path
    port: int
    cast: Cast
    prefix: str
    user: str | None
    shown: str = "postgres"

    def start(
        self, *, settings: Mapping[str, object] | None = None, command: Sequence[str] = (), ready: bool = True
    ) -> subprocess.Popen[bytes]:
        """Start the server (under `command`, if given), heard as `shown`, and wait until it is ready."""
        since = self.place.now
        flags = [item for key, value in (settings or {}).items() for item in ("-c", f"{key}={value}")]
        process = self.place.start(
            self.shown, (*command, _program("postgres"), "-D", str(self.data), *flags), user=self.user, cwd=self.data
        )
        if ready:
            self.place.wait_for(READY, source=self.shown, since=since)
        return process

    def sql(self, statement: str, *, database: str = ADMIN) -> str:
        """Run statements as the administrator, unheard."""
        parameters = f"host={self.data} port={self.port} user={ADMIN} dbname={database}"
        return quietly(
            ("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", parameters, "-c", statement), what="psql", cwd=self.data
        )

    def reload(self) -> None:
        """Let the server read its configuration again."""
        self.sql("SELECT pg_reload_conf()")

    def parameters(self, **other: object) -> str:
        """What a service connects with; the server's name is the cast's, its address this machine."""
        values = {
            "host": self.cast.host,
            "hostaddr": "127.0.0.1",
            "port": self.port,
            "dbname": self.cast.database,
            "user": self.cast.user,
            "password": "correct-horse",
            "application_name": self.cast.service,
            "connect_timeout": 3,
            "sslmode": "disable",
            **other,
        }
        return " ".join(f"{key}={value}" for key, value in values.items())

    def serve(
        self,
        rng: random.Random,
        *,
        routes: Sequence[Route] | None = None,
        service: str = "",
        parameters: Mapping[str, object] | None = None,
        version: str = "",
        threads: int = 2,
        pause_s: float = 0.3,
        pooled: bool = True,
        failing: str | None = None,
        style: str | None = None,
        quiet: bool = False,
        greeting: Sequence[str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a service that uses the database."""
        cast, name = self.cast, service or self.cast.service
        where = f"database {cast.database} at {cast.host}:{self.port} as {cast.user}"
        return serve(
            self.place,
            rng,
            name,
            driver="pgclient",
            target={"parameters": self.parameters(**{"application_name": name, **(parameters or {})})},
            routes=routes or usual_routes(cast),
            version=version or cast.version,
            threads=threads,
            pause_s=pause_s,
            pooled=pooled,
            failing=failing,
            style=style,
            quiet=quiet,
            greeting=(where,) if greeting is None else greeting,
        )

    def told(self, **values: object) -> Told:
        """`Told` with what every fault of this cluster hides and names."""
        cast = self.cast
        names = {
            cast.service: "service",
            cast.other: "service",
            cast.database: "database",
            cast.user: "user",
            cast.host: "host",
            cast.table: "table",
        }
        hide = {str(self.port): "5432", "/srv/pgdata": "/var/lib/postgresql/15/main", "127.0.0.1": cast.address}
        if int(cast.version.split(".")[1]) % 2:  # as libpq prints a server that it found by name
            hide = {'server at "127.0.0.1"': f'server at "{cast.host}" ({cast.address})', **hide}
        given: dict[str, object] = {
            "ended_at": self.place.now,
            **values,
            "names": {**names, **_as_texts(values.get("names"))},
            "hide": {**_as_texts(values.get("hide")), **hide},
        }
        return Told(**given)  # type: ignore[arg-type]


def _as_texts(value: object) -> dict[str, str]:
    return dict(value) if isinstance(value, Mapping) else {}


def _program(name: str) -> str:
    """The program itself: a server asks its own path for its libraries, so a link to it is followed."""
    return str(Path(shutil.which(name) or name).resolve())


def usual_routes(cast: Cast) -> tuple[Route, ...]:
    """What a small web service does all day."""
    table = cast.table
    path = f"/{table}"
    return (
        Route(name=f"GET {path}", steps=(f"SELECT * FROM {table} WHERE id = {{id}}",), weight=4),
        Route(name=f"POST {path}", steps=(f"INSERT INTO {table} (note, state) VALUES ('{{word}}', 'new')",), ok=201),
        Route(name=f"PUT {path}", steps=(f"UPDATE {table} SET state = '{{word}}' WHERE id = {{id}}",)),
    )


def make(
    place: Place,
    rng: random.Random,
    cast: Cast,
    *,
    settings: Mapping[str, object] | None = None,
    hba: str = "host all all 127.0.0.1/32 trust\n",
    data: Path | None = None,
    shown: str = "postgres",
    rows: int = 100,
    wal_mb: int = 16,
    also: str = "",
) -> Cluster:
    """Make a cluster with the cast's role, database and table of `rows` rows, and what the statements `also` make."""
    user = user_if_root("postgres")
    folder = data or place.folder / "pgdata"
    folder.mkdir(exist_ok=True)
    give(folder, user)
    quietly(
        (
            *(_program("initdb"), "-D", str(folder), "-U", ADMIN, "-N", "-E", "UTF8", "--locale=C.UTF-8"),
            *("--wal-segsize", str(wal_mb), "-A", "trust"),
        ),
        what="initdb",
        cwd=folder,
        user=user,
    )
    cluster = Cluster(
        place=place,
        data=folder,
        port=place.free_port(),
        cast=cast,
        prefix=rng.choice(_PREFIXES),
        user=user,
        shown=shown,
    )
    chosen: dict[str, object] = {
        "port": cluster.port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder),
        "log_line_prefix": cluster.prefix,
        "log_timezone": "UTC",
        "fsync": "off",
        "shared_buffers": "16MB",
        "log_checkpoints": rng.choice(("on", "off")),
        "log_connections": rng.choice(("on", "off", "off", "off")),
        "log_min_error_statement": rng.choice(("error", "error", "panic")),
        **(settings or {}),
    }
    text = "".join(f"{key} = '{value}'\n" for key, value in chosen.items())
    (folder / "postgresql.conf").write_text(text, encoding="utf-8")
    (folder / "pg_hba.conf").write_text(f"local all {ADMIN} trust\n" + hba, encoding="utf-8")
    give(folder, user)
    _fill(cluster, rows, also)
    return cluster


def _fill(cluster: Cluster, rows: int, also: str) -> None:
    """The role, the database and the table, made with nobody listening."""
    cast = cluster.cast
    statements = (
        (ADMIN, f"CREATE ROLE {cast.user} LOGIN PASSWORD 'correct-horse';\nCREATE DATABASE {cast.database};\n"),
        (
            cast.database,
            f"CREATE TABLE {cast.table} (id serial PRIMARY KEY, note text, state text DEFAULT 'new', "
            "amount int DEFAULT 1, created_at timestamptz DEFAULT now());\n"
            f"INSERT INTO {cast.table} (note) SELECT 'note ' || n FROM generate_series(1, {rows}) n;\n{also}"
            f"ALTER TABLE {cast.table} OWNER TO {cast.user};\n"
            f"GRANT CREATE, USAGE ON SCHEMA public TO {cast.user};\n"
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {cast.user};\n"
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {cast.user};\n",
        ),
    )
    settings = ("-c", "log_checkpoints=off", "-c", "max_locks_per_transaction=400")
    for database, text in statements:
        said = quietly(
            (_program("postgres"), "--single", "-j", "-D", str(cluster.data), *settings, database),
            what="postgres --single",
            text=text.replace(";\n", ";\n\n"),
            user=cluster.user,
            cwd=cluster.data,
        )
        assert "ERROR" not in said, said
