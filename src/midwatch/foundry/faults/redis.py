"""Redis broken in many ways, and healthy."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.foundry.place import Place
from midwatch.foundry.relay import Relay
from midwatch.foundry.stage import (
    Cast,
    Route,
    Told,
    cast,
    certificate,
    let_run,
    perhaps_mended,
    quietly,
    serve,
    small_disk,
    staged,
)

FAMILY = "redis"
NEEDS = ("redis-server", "redis-cli")
READY = "Ready to accept connections"
_CONFIG = "/etc/redis/redis.conf"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A Redis with a configuration file. `shown` names it where its lines are heard."""

    place: Place
    cast: Cast
    port: int
    config: Path
    shown: str = "redis"

    def start(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it and wait until it is ready."""
        since = self.place.now
        process = self.place.start(self.shown, ("redis-server", str(self.config)))
        if ready:
            self.place.wait_for(READY, source=self.shown, since=since)
        return process

    def ask(self, *words: str) -> str:
        """A command, unheard."""
        return quietly(("redis-cli", "-p", str(self.port), *words), what="redis-cli")

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that uses it."""
        target = {"host": self.cast.host, "port": self.port, "shown": 6379, **options.pop("target", {})}
        return serve(
            self.place,
            rng,
            service or self.cast.service,
            driver="redisclient",
            target=target,
            routes=routes or usual_routes(),
            greeting=(f"redis at {self.cast.host}:6379",),
            **{"version": self.cast.version, **options},
        )

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of Redis hides and names."""
        who = self.cast
        names = {who.service: "service", who.other: "service", who.host: "host", who.queue: "queue", who.user: "user"}
        hide = {
            f"/srv/{self.config.name}": _CONFIG,
            "/srv/volume": "/var/lib/redis",
            str(self.port): "6379",
            "127.0.0.1": who.address,
        }
        given = {"ended_at": self.place.now, "entity": who.host, **values}
        given["names"] = {**names, **values.get("names", {})}
        given["hide"] = {**values.get("hide", {}), **hide}
        return Told(**given)


def usual_routes() -> tuple[Route, ...]:
    """A cache and a session store at work."""
    return (
        Route(name="GET /session", steps=("GET session:{id}",), weight=4),
        Route(name="PUT /session", steps=("SET session:{id} {word} EX 900",), ok=204, weight=2),
        Route(name="POST /cart", steps=("HSET cart:{id} item {other}", "EXPIRE cart:{id} 3600"), ok=201),
        Route(name="GET /top", steps=("ZINCRBY views 1 page:{id}", "ZREVRANGE views 0 9")),
    )


def make(
    place: Place, rng: random.Random, who: Cast, settings: Mapping[str, object] | None = None, shown: str = "redis"
) -> Server:
    """A Redis, not started yet."""
    data = place.folder / f"{shown}-data"
    data.mkdir()
    port = place.free_port()
    chosen = {"port": port, "bind": "127.0.0.1", "dir": data, "save": '""', "loglevel": "notice", **(settings or {})}
    config = place.write(f"{shown}.conf", "".join(f"{key} {value}\n" for key, value in chosen.items()))
    return Server(place=place, cast=who, port=port, config=config, shown=shown)


def _healthy(place: Place, rng: random.Random, settings: Mapping[str, object] | None = None, **options: Any) -> Server:
    """A Redis with a service that has used it for a while."""
    server = make(place, rng, cast(rng), settings)
    server.start()
    server.serve(rng, **{"pause_s": 0.35, **options})
    let_run(rng, 1.0, 2.5)
    return server


def _alert(rng: random.Random, server: Server, *titles: str) -> tuple[str, str]:
    who = server.cast
    say = ("", f"check Redis on {who.host}", f"{who.service} answers 5xx to more than 5% of requests")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)


def memory_limit(place: Place, rng: random.Random) -> Told:
    """Keys fill what maxmemory allows, and nothing may be evicted."""
    limit = rng.randint(2, 5)
    server = _healthy(
        place, rng, {"maxmemory": f"{limit}mb", "maxmemory-policy": rng.choice(("noeviction", "volatile-lru"))}
    )
    who = server.cast
    broke = place.now
    store = (Route(name="PUT /cache", steps=("SET cache:{uid} {blob}",), ok=204),)
    server.serve(rng, service=who.other, routes=store, threads=3, pause_s=0.03, quiet=True)
    place.wait_for("OOM command not allowed", timeout_s=20)
    let_run(rng, 2.0, 4.0)
    mended = perhaps_mended(place, rng, 0.3, lambda: server.ask("config", "set", "maxmemory", "1gb"), (1.0, 2.0))
    return server.told(
        cause=f"Redis on {who.host} has reached its maxmemory of {limit} MB and refuses writes",
        truth=("OOM command not allowed",),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "RedisMemoryHigh", "RedisOutOfMemory"),
    )


def client_limit(place: Place, rng: random.Random) -> Told:
    """A service opens connections and keeps them, until maxclients is reached."""
    limit = rng.randint(8, 20)
    server = _healthy(place, rng, {"maxclients": limit}, pooled=False)
    who = server.cast
    broke = place.now
    keep = (Route(name="GET /live", steps=("PING", "sleep 30")),)
    leak = server.serve(rng, service=who.other, routes=keep, threads=limit + 3, pause_s=0.5, quiet=True)
    place.wait_for("max number of clients reached", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(leak), (1.0, 2.0))
    return server.told(
        cause=f"all {limit} client connections of Redis on {who.host} are taken, held by {who.other}",
        truth=("max number of clients reached",),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "RedisTooManyConnections"),
    )


def disk_full(place: Place, rng: random.Random) -> Told:
    """Snapshots, or the append-only file, no longer fit on the disk, so writes are refused."""
    appending = rng.random() < 0.4
    with small_disk(place, "volume", mb=rng.uniform(1.5, 3.0)) as disk:
        settings: dict[str, object] = {"dir": disk, "rdbcompression": "no"}
        settings |= (
            {"appendonly": "yes", "appendfsync": rng.choice(("always", "everysec"))} if appending else {"save": "1 1"}
        )
        server = _healthy(place, rng, settings)
        who = server.cast
        broke = place.now
        store = (Route(name="PUT /documents", steps=("SET doc:{uid} {blob}",), ok=204),)
        server.serve(rng, service=who.other, routes=store, threads=2, pause_s=0.04, quiet=True)
        place.wait_for("No space left on device|Short write", timeout_s=25)
        let_run(rng, 3.0, 4.5)
        return server.told(
            cause=f"the disk of Redis on {who.host} is full, so it cannot save and refuses writes",
            truth=(
                "No space left on device",
                "MISCONF",
                "Background saving error",
                "Short write while writing to the AOF",
                "Can't recover from AOF write error",
                "Failed opening the temp RDB file",
                "Error opening .* for saving",
            ),
            broke_at=broke,
            alert=_alert(rng, server, "RedisBgsaveFailed", "NodeFilesystemAlmostOutOfSpace"),
            severity="critical",
        )


def not_authorised(place: Place, rng: random.Random) -> Told:
    """A password is asked for, changed, or a user of the access list loses a right."""
    way = rng.choice(("noauth", "wrongpass", "noperm"))
    password = f"s3cret{rng.getrandbits(20):05x}"
    who_settings: dict[str, object] = {"requirepass": password} if way == "wrongpass" else {}
    target = {"password": password} if way == "wrongpass" else {}
    server = make(place, rng, cast(rng), who_settings)
    who = server.cast
    server.start()
    if way == "noperm":
        server.ask("acl", "setuser", who.user, "on", f">{password}", "~*", "+@all")
        target = {"user": who.user, "password": password}
    server.serve(rng, pooled=False, pause_s=0.4, target=target)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    if way == "noauth":
        server.ask("config", "set", "requirepass", password)
    elif way == "wrongpass":
        quietly(
            (
                "redis-cli",
                "-p",
                str(server.port),
                "--no-auth-warning",
                "-a",
                password,
                "config",
                "set",
                "requirepass",
                "n3w",
            ),
            what="redis-cli",
        )
    else:
        server.ask("acl", "setuser", who.user, rng.choice(("-@write", "-get", "resetkeys")))
    place.wait_for("NOAUTH|WRONGPASS|NOPERM", since=broke)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"{who.service} may not do what it asks of Redis on {who.host}: {way.upper()}",
        entity=(who.user, who.service) if way == "noperm" else who.service,
        truth=("NOAUTH Authentication required", "WRONGPASS invalid", "NOPERM "),
        broke_at=broke,
        alert=_alert(rng, server, "RedisAuthErrors"),
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """A restart with a line in redis.conf that Redis does not take."""
    server = make(place, rng, cast(rng))
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    wrong = rng.choice(
        (
            "maxmemroy 100mb",
            "maxmemory 2gigs",
            "appendonly maybe",
            "maxmemory-policy lru",
            "save 60",
            "bind-address 0.0.0.0",
            "io-threads 500",
            "rename-command CONFIG",
            "aclfile /etc/redis/users.acl",
            "loadmodule /usr/lib/redis/modules/redisbloom.so",
        )
    )
    server.config.write_text(server.config.read_text(encoding="utf-8") + wrong + "\n", encoding="utf-8")
    place.stop(process)
    for _ in range(rng.randint(1, 3)):
        server.start(ready=False).wait(20)
        let_run(rng, 0.8, 1.5)
    return server.told(
        cause=f"redis.conf of {who.host} has a line that Redis refuses: {wrong}",
        entity=(wrong.split(" ", maxsplit=1)[0], wrong.split(" ")[-1], who.host),
        truth=(
            "FATAL CONFIG FILE ERROR",
            "Reading the configuration file, at line",
            r"^>>> ",
            "Bad directive or wrong number of arguments",
            "Invalid save parameters",
            "Can't load module from",
            "failed to load: .*cannot open shared object file",
            r"^argument(\(s\))? must be|^wrong number of arguments",
            "Aborting Redis startup because of ACL errors",
            "Error loading ACLs, opening file",
        ),
        broke_at=broke,
        alert=_alert(rng, server, "RedisDown"),
        severity="critical",
    )


def _replicated(place: Place, rng: random.Random) -> tuple[Server, Server, Relay]:
    master = make(
        place, rng, cast(rng), {"repl-ping-replica-period": 1, "repl-timeout": 4, "repl-diskless-sync-delay": 0}
    )
    master.start()
    relay = Relay("127.0.0.1", master.port)
    settings = {"replicaof": f"127.0.0.1 {relay.port}", "repl-timeout": 2, "repl-diskless-load": "on-empty-db"}
    replica = make(place, rng, master.cast, settings, shown="redis-replica")
    replica.start()
    place.wait_for("MASTER <-> REPLICA sync: Finished with success", source="redis-replica")
    return master, replica, relay


def lost_master(place: Place, rng: random.Random) -> Told:
    """The network between a replica and its master is cut, or falls silent."""
    master, replica, relay = _replicated(place, rng)
    with relay:
        master.serve(rng, pause_s=0.35)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        silent = rng.random() < 0.4
        if silent:
            relay.go_silent()
        else:
            relay.cut()
        let_run(rng, 4.0, 5.5)
        mended = perhaps_mended(place, rng, 0.4, relay.mend, (1.5, 2.5))
        return master.told(
            cause="the replica cannot reach its master over the network",
            truth=(
                "Connection with master lost",
                "Connection with replica .* lost",
                "Error condition on socket for SYNC",
                "MASTER timeout: no data nor PING received",
                "Timeout connecting to the MASTER",
                "Unable to connect to MASTER",
                "Failed to read response from the server",
                "Disconnecting timedout replica",
                r"Master did not (reply|respond)",
            ),
            broke_at=broke,
            mended_at=mended,
            hide={str(replica.port): "6379", str(relay.port): "6379"},
            alert=_alert(rng, master, "RedisReplicationBroken", "RedisMissingMaster"),
        )


def written_replica(place: Place, rng: random.Random) -> Told:
    """A service writes to a replica, which takes reads only."""
    master, replica, relay = _replicated(place, rng)
    with relay:
        who = master.cast
        old = master.serve(rng, pause_s=0.35)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        place.stop(old)
        replica.serve(rng, pause_s=0.35)
        place.wait_for("READONLY", since=broke)
        let_run(rng, 2.5, 4.0)
        return master.told(
            cause=f"{who.service} writes to a read-only replica of Redis",
            truth=("READONLY You can't write against a read only replica",),
            broke_at=broke,
            accepted=("config_env_error", "service_routing"),
            hide={str(replica.port): "6379", str(relay.port): "6379"},
            alert=_alert(rng, master, "RedisReadOnly"),
        )


def busy_script(place: Place, rng: random.Random) -> Told:
    """A script keeps the only thread busy; everybody else waits."""
    server = _healthy(place, rng, {"busy-reply-threshold": rng.choice((100, 200, 400))})
    who = server.cast
    broke = place.now
    rounds = rng.randint(3, 6) * 1_000_000
    script = f"local n = 0; while n < {rounds} do n = n + 1; redis.call('EXISTS', 'k') end; return n"
    run = (Route(name="POST /reports/rebuild", steps=(f'EVAL "{script}" 0',)),)
    server.serve(rng, service=who.other, routes=run, threads=1, pause_s=0.3, target={"timeout_s": 20})
    place.wait_for("BUSY Redis is busy", timeout_s=20)
    let_run(rng, 2.5, 4.0)
    return server.told(
        cause=f"a script of {who.other} keeps Redis on {who.host} busy, so other commands wait or are refused",
        truth=("Slow script detected", "BUSY Redis is busy running a script"),
        broke_at=broke,
        accepted=("database_slow_or_locked",),
        alert=_alert(rng, server, "RedisLatencyHigh", "HighLatency"),
    )


def loading(place: Place, rng: random.Random) -> Told:
    """After a restart the data are loaded slowly, and commands are refused meanwhile."""
    server = make(place, rng, cast(rng), {"save": "900 1"})
    who = server.cast
    process = server.start()
    server.ask("eval", "for n = 1, 60000 do redis.call('SET', 'k' .. n, n) end", "0")
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    place.stop(process)
    with server.config.open("a", encoding="utf-8") as stream:
        stream.write(f"key-load-delay {rng.randint(60, 90)}\nloading-process-events-interval-bytes 1024\n")
    server.start(ready=False)
    place.wait_for("LOADING", since=broke)
    let_run(rng, 3.0, 4.5)
    return server.told(
        cause=f"Redis on {who.host} loads its data after a restart and refuses commands until it has",
        truth=("LOADING Redis is loading the dataset in memory", "Loading RDB produced by version"),
        broke_at=broke,
        alert=_alert(rng, server, "RedisDown"),
    )


def backlog(place: Place, rng: random.Random) -> Told:
    """A list or a stream grows, since its consumer is too slow for what producers add."""
    server = make(place, rng, cast(rng))
    who = server.cast
    server.start()
    stream = rng.random() < 0.5
    add = f"XADD {who.queue} * job {{uid}}" if stream else f"LPUSH {who.queue} {{uid}}"
    count = f"XLEN {who.queue}" if stream else f"LLEN {who.queue}"
    take = f"XTRIM {who.queue} MAXLEN 0" if stream else f"RPOP {who.queue}"
    limit = rng.choice((50, 100, 200))
    say = rng.choice(
        (
            f"queue {who.queue} depth is %s (limit {limit})",
            f"{who.queue}: backlog of %s jobs, alert above {limit}",
            f"pending in {who.queue}: %s, threshold {limit}",
        )
    )
    watch = Route(name="watch", steps=(count,), tells=say, limit=limit)
    produce = Route(name="POST /jobs", steps=(add,), ok=202)
    work = Route(name=f"job from {who.queue}", steps=(take, "sleep 0.02"))
    server.serve(rng, routes=(produce,), pause_s=0.25, threads=1)
    worker = server.serve(rng, service=who.other, routes=(work, work, watch), threads=2, pause_s=0.25)
    let_run(rng, 1.5, 2.5)
    broke = place.now
    place.stop(worker)
    flood = Route(name="POST /jobs/batch", steps=(add,) * 12, ok=202)
    server.serve(rng, routes=(flood,), pause_s=0.2, threads=3, quiet=rng.random() < 0.5)
    slow = Route(name=f"job from {who.queue}", steps=(take.replace("MAXLEN 0", "MAXLEN 100000"), "sleep 0.6"))
    server.serve(rng, service=who.other, routes=(slow, watch), threads=2, pause_s=0.2)
    place.wait_until(lambda: int(server.ask(*count.split())) > 2 * limit, timeout_s=20, what="a backlog")
    let_run(rng, 2.0, 4.0)
    over = rf"{who.queue}.*\b({limit + 1 if limit < 100 else limit}|[1-9]\d{{2,}})\b"
    told = server.told(
        cause=f"{who.queue} grows: {who.other} takes less from it than is added",
        entity=who.queue,
        truth=(rf"(WARNING|warn).*{over}",),
        broke_at=broke,
        alert=_alert(rng, server, "QueueBacklog", f"{who.queue} depth"),
    )
    return told


def crash(place: Place, rng: random.Random) -> Told:
    """Redis crashes and prints its own report."""
    server = make(place, rng, cast(rng))
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.4)
    let_run(rng, 1.5, 3.0)
    broke = place.now
    process.send_signal(rng.choice((signal.SIGSEGV, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE)))
    process.wait(20)
    let_run(rng, 1.0, 2.5)
    return server.told(
        cause=f"Redis on {who.host} crashed by a signal",
        truth=(r"crashed by signal: \d+", "REDIS BUG REPORT START"),
        broke_at=broke,
        alert=_alert(rng, server, "RedisDown"),
        severity="critical",
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The certificate of Redis expires while services connect by TLS."""
    who = cast(rng)
    healthy_s = rng.uniform(3.0, 4.5)
    folder = certificate(place, "server", host=who.host, lasts_s=healthy_s)
    expires = place.now + healthy_s - 1.5
    settings: dict[str, object] = {"port": 0, "tls-auth-clients": "no"}
    for key, name in (("tls-cert-file", "server.crt"), ("tls-key-file", "server.key"), ("tls-ca-cert-file", "ca.crt")):
        settings[key] = folder / name
    server = make(place, rng, who, settings)
    with server.config.open("a", encoding="utf-8") as stream:
        stream.write(f"tls-port {server.port}\n")
    server.start()
    server.serve(rng, pooled=False, pause_s=0.45, target={"ca": str(folder / "ca.crt")})
    place.wait_for("certificate has expired", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"the TLS certificate of Redis on {who.host} has expired",
        truth=("certificate has expired", "certificate expired"),
        broke_at=expires,
        alert=_alert(rng, server, "RedisDown"),
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """Redis is restarted on purpose and comes back with its data. A false alarm."""
    server = make(place, rng, cast(rng), {"save": "900 1"})
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    let_run(rng, 0.2, 0.9)
    server.start()
    mended = place.now
    let_run(rng, 2.0, 4.0)
    return server.told(
        cause=f"Redis on {who.host} was restarted as planned, and its clients are back",
        truth=("User requested shutdown", "scheduling shutdown", READY, "DB loaded from disk"),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "RedisDown", "RedisRestarted"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start, traffic, snapshots and rewrites."""
    settings: dict[str, object] = {"save": rng.choice(("1 5", "2 10", "900 1"))}
    settings |= {"appendonly": rng.choice(("yes", "no")), "loglevel": rng.choice(("notice", "notice", "verbose"))}
    server = _healthy(place, rng, settings, pause_s=rng.uniform(0.15, 0.4))
    for _ in range(rng.randint(1, 3)):
        let_run(rng, 0.8, 1.8)
        server.ask(rng.choice(("bgsave", "bgrewriteaof", "ping")))
    let_run(rng, 0.5, 1.0)
    return server.told(cause="nothing is wrong: Redis serves and saves", entity="", severity="info")


def new_replica(place: Place, rng: random.Random) -> Told:
    """A replica joins and copies the data, with a master that serves on."""
    master, replica, relay = _replicated(place, rng)
    with relay:
        master.serve(rng, pause_s=0.3)
        let_run(rng, 2.5, 4.5)
        hide = {str(replica.port): "6379", str(relay.port): "6379"}
        return master.told(cause="nothing is wrong: a replica joins", entity="", severity="info", hide=hide)


FAULTS = (
    staged(FAMILY, "oom_memory", NEEDS, memory_limit),
    staged(FAMILY, "connection_exhaustion", NEEDS, client_limit),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), disk_full),
    staged(FAMILY, "authn_authz", NEEDS, not_authorised),
    staged(FAMILY, "config_env_error", NEEDS, bad_configuration),
    staged(FAMILY, "network_connectivity", NEEDS, lost_master),
    staged(FAMILY, "database_slow_or_locked", NEEDS, written_replica),
    staged(FAMILY, "cpu_saturation", NEEDS, busy_script),
    staged(FAMILY, "database_slow_or_locked", NEEDS, loading),
    staged(FAMILY, "queue_backlog", NEEDS, backlog),
    staged(FAMILY, "code_defect_crash", NEEDS, crash),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), expired_certificate),
    staged(FAMILY, "benign_false_alarm", NEEDS, planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, daily_load, kind="healthy"),
    staged(FAMILY, "benign_false_alarm", NEEDS, new_replica, kind="healthy"),
)
