"""PostgreSQL, nginx and Redis as a shop runs them: small, in the foreground, logging to the collector."""

from __future__ import annotations

import http.client
import pwd
import subprocess
from pathlib import Path

from recorder import house
from recorder.incident import RecordError
from recorder.stage import Stage

DB = house.ADDRESS["db.shop.internal"]


def database_user() -> str:
    """A user that is not root, for a server that refuses to run as root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def postgres(stage: Stage, settings: str, *, auth: str = "trust") -> subprocess.Popen[bytes]:
    """A fresh cluster on db.shop.internal:5432 with a database `shop`. `settings` are lines of postgresql.conf."""
    binary = Path(house.find("postgres"))
    user = database_user()
    folder = stage.folder("postgresql", owner=user)
    stage.versions["postgresql"] = stage.output([str(binary), "--version"]).split()[2]
    initdb = [str(binary.parent / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "--locale=C.UTF-8", "-N"]
    stage.output(initdb, user=user)
    (folder / "data" / "postgresql.conf").write_text(
        f"listen_addresses = '{DB}'\nunix_socket_directories = ''\nfsync = off\nshared_buffers = 16MB\n"
        "log_line_prefix = '%m [%p] %q%u@%d '\nlog_timezone = 'UTC'\nautovacuum = off\n" + settings
    )
    (folder / "data" / "pg_hba.conf").write_text(
        f"# TYPE  DATABASE  USER      ADDRESS         METHOD\nhost    all       postgres  10.20.0.0/16   trust\n"
        f"host    all       all       10.20.0.0/16   {auth}\n"
    )
    process = stage.start("postgres", [str(binary), "-D", str(folder / "data")], user=user)
    stage.wait_for("postgres", "ready to accept connections")
    psql(stage, "CREATE DATABASE shop", database="postgres")
    return process


def psql(stage: Stage, sql: str, *, database: str = "shop") -> str:
    """Run SQL as the superuser."""
    who = ["-h", DB, "-U", "postgres", "-w", "-d", database]
    return stage.output([house.find("psql"), *who, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql])


def nginx(stage: Stage, http_block: str, *, error_level: str = "error") -> subprocess.Popen[bytes]:
    """nginx in the foreground with one worker; `http_block` goes inside `http { ... }`."""
    folder = stage.folder("nginx")
    binary = house.find("nginx")
    stage.versions["nginx"] = stage.output([binary, "-v"]).strip().split("/")[-1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temps = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off;\nuser root;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr {error_level};\n"
        f"events {{ worker_connections 256; }}\nhttp {{\n{temps}access_log /dev/stdout combined;\n{http_block}\n}}\n"
    )
    stage.output([binary, "-e", "stderr", "-t", "-c", str(folder / "nginx.conf")])
    return stage.start("nginx", [binary, "-e", "stderr", "-c", str(folder / "nginx.conf")])


def redis(stage: Stage, settings: str) -> subprocess.Popen[bytes]:
    """Redis on cache.shop.internal:6379; `settings` are lines of redis.conf."""
    folder = stage.folder("redis")
    binary = house.find("redis-server")
    stage.versions["redis"] = stage.output([binary, "--version"]).split("v=")[1].split()[0]
    address = house.ADDRESS["cache.shop.internal"]
    (folder / "redis.conf").write_text(
        f'bind {address}\nport 6379\nprotected-mode no\ndir {folder}\nlogfile ""\ndaemonize no\n{settings}'
    )
    process = stage.start("redis", [binary, str(folder / "redis.conf")])
    stage.wait_port(address, 6379)
    return process


def call(
    host: str,
    port: int,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    agent: str = "Mozilla/5.0",
    source: str = "",
    timeout_s: float = 10.0,
) -> int:
    """One HTTP request, as a customer; gives the status. Raises `OSError` if nobody answers."""
    connection = http.client.HTTPConnection(
        host, port, timeout=timeout_s, source_address=(source, 0) if source else None
    )
    try:
        connection.request(method, path, body, {"User-Agent": agent})
        response = connection.getresponse()
        response.read()
        return response.status
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def version(stage: Stage, program: str, *arguments: str, word: int = 1) -> None:
    """Note a program's version from what it prints first."""
    printed = stage.output([house.find(program), *arguments]).split()
    if len(printed) <= word:
        raise RecordError(f"{program} printed no version.")
    stage.versions[program] = printed[word]
