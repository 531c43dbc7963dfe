"""memcached broken in several ways, and healthy."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from midwatch.foundry.place import Place
from midwatch.foundry.stage import (
    Cast,
    Route,
    Told,
    cast,
    certificate,
    let_run,
    perhaps_mended,
    serve,
    staged,
    user_if_root,
)

FAMILY = "memcached"
NEEDS = ("memcached",)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A memcached and who uses it."""

    place: Place
    cast: Cast
    port: int

    def start(self, *flags: str, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it with further flags and wait until it listens."""
        user = user_if_root("memcache")
        command = ("memcached", "-p", str(self.port), "-l", "127.0.0.1", *flags)
        process = self.place.start("memcached", command, user=user)
        if ready:
            self.place.wait_until(self._listens, what="memcached")
        return process

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that uses it."""
        target = {"kind": "memcached", "host": self.cast.host, "port": self.port, "shown": 11211}
        return serve(
            self.place,
            rng,
            service or self.cast.service,
            driver="lines",
            target={**target, **options.pop("target", {})},
            routes=routes or usual_routes(),
            greeting=(f"cache is memcached at {self.cast.host}:11211",),
            **{"version": self.cast.version, **options},
        )

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of memcached hides and names."""
        who = self.cast
        names = {who.service: "service", who.other: "service", who.host: "host"}
        hide = {str(self.port): "11211", "127.0.0.1": who.address}
        given = {"ended_at": self.place.now, "entity": who.host, "names": names, **values}
        given["hide"] = {**values.get("hide", {}), **hide}
        return Told(**given)


def usual_routes() -> tuple[Route, ...]:
    """A cache at work."""
    return (
        Route(name="GET /page", steps=("get page:{id}",), weight=4),
        Route(name="PUT /page", steps=("set page:{id} {word}-{uid}",), ok=204, weight=2),
        Route(name="POST /visit", steps=("set visits:{id} 1", "incr visits:{id}"), ok=201),
        Route(name="DELETE /page", steps=("delete page:{other}",), ok=204),
    )


def _new(place: Place, rng: random.Random) -> Server:
    return Server(place=place, cast=cast(rng), port=place.free_port())


def _alert(rng: random.Random, server: Server, *titles: str) -> tuple[str, str]:
    who = server.cast
    say = ("", f"check memcached on {who.host}", f"{who.service} answers 5xx to more than 5% of requests")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)


def connection_limit(place: Place, rng: random.Random) -> Told:
    """A service opens connections and keeps them, until there are no more."""
    server = _new(place, rng)
    who = server.cast
    limit = rng.randint(24, 34)
    server.start("-c", str(limit), "-t", "1", rng.choice(("-v", "-vv")), "-o", "maxconns_fast")
    server.serve(rng, pooled=False, pause_s=0.5)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    keep = (Route(name="GET /live", steps=("get page:1", "sleep 30")),)
    leak = server.serve(rng, service=who.other, routes=keep, threads=limit - 7, pause_s=0.6, quiet=True)
    place.wait_for("Too many open connections", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(leak), (1.0, 2.0))
    return server.told(
        cause=f"all {limit} connections of memcached on {who.host} are taken, held by {who.other}",
        truth=("Too many open connections", "too many open connections", "Connection limit"),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "MemcachedConnectionLimit", "MemcachedConnectionsHigh"),
    )


def out_of_memory(place: Place, rng: random.Random) -> Told:
    """Objects fill the memory, and nothing may be evicted."""
    server = _new(place, rng)
    who = server.cast
    size = rng.randint(2, 6)
    server.start("-m", str(size), "-M", "-v")
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    store = (Route(name="PUT /thumbnail", steps=("set thumb:{uid} {blob}",), ok=204),)
    server.serve(rng, service=who.other, routes=store, threads=2, pause_s=0.03, quiet=True)
    place.wait_for("out of memory storing object", timeout_s=25)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"memcached on {who.host} has used its {size} MB and may not evict, so it stores no more",
        truth=("out of memory storing object", "Out of memory"),
        broke_at=broke,
        alert=_alert(rng, server, "MemcachedMemoryFull"),
    )


def too_large(place: Place, rng: random.Random) -> Told:
    """A new version of a service stores objects that are larger than memcached takes."""
    server = _new(place, rng)
    who = server.cast
    server.start("-m", "64", "-v")
    old = server.serve(rng, pause_s=0.3)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(old)
    major, minor, _ = who.version.split(".")
    version = f"{major}.{int(minor) + 1}.0"
    routes = (*usual_routes(), Route(name="PUT /catalog", steps=("set catalog:{id} {huge}",), ok=204, weight=4))
    server.serve(rng, routes=routes, version=version, pause_s=0.35)
    place.wait_for("object too large for cache", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"since {version}, {who.service} stores objects larger than memcached takes",
        entity=who.service,
        truth=("object too large for cache", f"starting {who.service} {version}"),
        broke_at=broke,
        accepted=("config_env_error",),
        alert=_alert(rng, server),
    )


def bad_flags(place: Place, rng: random.Random) -> Told:
    """A restart with options that memcached does not take."""
    server = _new(place, rng)
    who = server.cast
    process = server.start("-v")
    server.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    wrong = rng.choice(
        (
            ("-c", "lots"),
            ("-t", "0"),
            ("-f", "0.9"),
            ("-I", "2000m"),
            ("-o", "lru_segments"),
            ("-B", "json"),
            ("-n", "0"),
        )
    )
    for _ in range(rng.randint(1, 3)):
        server.start("-v", *wrong, ready=False).wait(20)
        let_run(rng, 0.8, 1.5)
    return server.told(
        cause=f"memcached on {who.host} does not start with the option {' '.join(wrong)}",
        truth=(
            "Illegal|Invalid|invalid|must be|cannot be|Cannot set|Unknown|unknown|Item max size|too|Maximum|greater",
        ),
        broke_at=broke,
        alert=_alert(rng, server, "MemcachedDown"),
        severity="critical",
    )


def port_taken(place: Place, rng: random.Random) -> Told:
    """A second memcached wants the port of the first."""
    server = _new(place, rng)
    who = server.cast
    server.start("-v")
    server.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    for _ in range(rng.randint(2, 4)):
        server.start("-v", ready=False).wait(20)
        let_run(rng, 0.6, 1.2)
    return server.told(
        cause=f"the port of memcached on {who.host} is taken by another one, so it cannot start",
        truth=("Address already in use", "failed to listen on TCP port"),
        broke_at=broke,
        alert=_alert(rng, server, "MemcachedDown"),
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The certificate of memcached expires while services connect by TLS."""
    server = _new(place, rng)
    who = server.cast
    healthy_s = rng.uniform(3.0, 4.5)
    folder = certificate(place, "server", host=who.host, lasts_s=healthy_s, user=user_if_root("memcache"))
    expires = place.now + healthy_s - 1.5
    server.start("-vv", "-Z", "-o", f"ssl_chain_cert={folder / 'server.crt'},ssl_key={folder / 'server.key'}")
    server.serve(rng, pooled=False, pause_s=0.5, target={"ca": str(folder / "ca.crt")})
    place.wait_for("certificate has expired", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"the TLS certificate of memcached on {who.host} has expired",
        truth=("certificate has expired", "certificate expired"),
        broke_at=expires,
        alert=_alert(rng, server),
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """memcached is restarted on purpose; clients come back to an empty cache. A false alarm."""
    server = _new(place, rng)
    who = server.cast
    process = server.start("-vv")
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    place.stop(process)
    let_run(rng, 0.2, 0.8)
    server.start("-vv")
    mended = place.now
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"memcached on {who.host} was restarted as planned, and its clients are back",
        truth=("Signal handled: Terminated", "server listening"),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "MemcachedDown", "MemcachedRestarted"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start and traffic."""
    server = _new(place, rng)
    server.start("-m", "64", rng.choice(("-v", "-vv")))
    server.serve(rng, pause_s=rng.uniform(0.2, 0.4), pooled=rng.random() < 0.6)
    let_run(rng, 3.0, 5.0)
    return server.told(cause="nothing is wrong: memcached serves", entity="", severity="info")


FAULTS = (
    staged(FAMILY, "connection_exhaustion", NEEDS, connection_limit),
    staged(FAMILY, "oom_memory", NEEDS, out_of_memory),
    staged(FAMILY, "deploy_regression", NEEDS, too_large),
    staged(FAMILY, "config_env_error", NEEDS, bad_flags),
    staged(FAMILY, "config_env_error", NEEDS, port_taken),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), expired_certificate),
    staged(FAMILY, "benign_false_alarm", NEEDS, planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, daily_load, kind="healthy"),
)
