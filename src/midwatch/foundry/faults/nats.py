"""NATS broken in many ways, and healthy."""

from __future__ import annotations

import json
import random
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.foundry.place import Place
from midwatch.foundry.relay import Relay
from midwatch.foundry.stage import Cast, Route, Told, cast, certificate, let_run, perhaps_mended, serve, staged

FAMILY = "nats"
NEEDS = ("nats-server",)
READY = "Server is ready"
_STREAM = "EVENTS"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A NATS server with its configuration file, and who uses it."""

    place: Place
    cast: Cast
    port: int
    config: Path
    shown: str = "nats-server"

    def start(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it and wait until it is ready."""
        since = self.place.now
        process = self.place.start(self.shown, ("nats-server", "-c", str(self.config)))
        if ready:
            self.place.wait_for(READY, source=self.shown, since=since)
        return process

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that publishes and subscribes."""
        name = service or self.cast.service
        target = {"kind": "nats", "name": name, "host": self.cast.host, "port": self.port, "shown": 4222}
        return serve(
            self.place,
            rng,
            name,
            driver="lines",
            target={**target, **options.pop("target", {})},
            routes=routes or usual_routes(self.cast),
            greeting=(f"connecting to nats://{self.cast.host}:4222",),
            **{"version": self.cast.version, **options},
        )

    def ask(self, subject: str, question: object = "") -> dict[str, Any]:
        """A JetStream question, unheard; its answer."""
        data = json.dumps(question).encode() if question else b""
        with socket.create_connection(("127.0.0.1", self.port), 5) as wire, wire.makefile("rb") as stream:
            wire.sendall(b'CONNECT {"verbose":false}\r\nSUB _INBOX.q 1\r\n')
            wire.sendall(f"PUB {subject} _INBOX.q {len(data)}\r\n".encode() + data + b"\r\n")
            while not (line := stream.readline()).startswith(b"MSG"):
                assert line, "NATS closed the connection"
            found = json.loads(stream.read(int(line.split()[-1])))
        assert isinstance(found, dict)
        return found

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of NATS hides and names."""
        who = self.cast
        names = {
            who.service: "service",
            who.other: "service",
            who.host: "host",
            who.user: "user",
            who.queue: "queue",
        }
        found = {line.text.split()[-1].strip('"') for line in self.place.lines() if "Name: " in line.text}
        hide = {
            f"/srv/{self.config.name}": "/etc/nats/nats-server.conf",
            "/srv/volume": "/var/lib/nats",
            **{name: who.host for name in found if name == socket.gethostname()},
        }
        given = {"ended_at": self.place.now, "entity": (who.host, who.service), **values}
        given["names"] = {**names, **values.get("names", {})}
        given["hide"] = {**values.get("hide", {}), **hide, str(self.port): "4222", "127.0.0.1": who.address}
        return Told(**given)


def usual_routes(who: Cast) -> tuple[Route, ...]:
    """Events of a service."""
    return (
        Route(name=f"publish {who.queue}.created", steps=(f"pub {who.queue}.created id={{uid}}",), ok=0, weight=3),
        Route(name=f"publish {who.queue}.updated", steps=(f"pub {who.queue}.updated {{word}}",), ok=0),
    )


def make(place: Place, rng: random.Random, text: str = "", *, name: str = "nats") -> Server:
    """A server, not started; `text` goes into its configuration."""
    port = place.free_port()
    trace = rng.choice(("", "", "debug: true\n"))
    config = place.write(f"{name}.conf", f'listen: "127.0.0.1:{port}"\n{trace}{text}')
    return Server(place=place, cast=cast(rng), port=port, config=config)


def _change(server: Server, process: subprocess.Popen[bytes], text: str) -> None:
    """Write another configuration and let the server read it."""
    server.config.write_text(f'listen: "127.0.0.1:{server.port}"\n{text}', encoding="utf-8")
    process.send_signal(1)


def _alert(rng: random.Random, server: Server, *titles: str) -> tuple[str, str]:
    who = server.cast
    say = ("", f"check NATS on {who.host}", f"{who.service} loses messages")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)


def wrong_login(place: Place, rng: random.Random) -> Told:
    """A password is changed, and a service still uses the old one, or none."""
    server = make(place, rng)
    who = server.cast
    allow = "authorization {{ users: [ {{ user: {user}, password: {password} }} ] }}\n"
    server.config.write_text(
        server.config.read_text(encoding="utf-8") + allow.format(user=who.user, password="first")  # noqa: S106 - of a server that lives for seconds, encoding="utf-8"
    )
    process = server.start()
    login = {"login": {"user": who.user, "pass": "first"}}
    server.serve(rng, pooled=False, pause_s=0.45, target=login)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    if rng.random() < 0.6:
        _change(server, process, allow.format(user=who.user, password="second"))  # noqa: S106 - as above
    else:
        other = {} if rng.random() < 0.5 else {"login": {"user": who.user, "pass": "wrong"}}
        server.serve(rng, service=who.other, pooled=False, pause_s=0.5, target=other)
    place.wait_for("[Aa]uthorization [Vv]iolation|authentication error", since=broke)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"NATS on {who.host} refuses a login",
        entity=(who.user, who.other, who.service),
        truth=("[Aa]uthorization [Vv]iolation", "authentication error"),
        broke_at=broke,
        alert=_alert(rng, server),
    )


def subject_denied(place: Place, rng: random.Random) -> Told:
    """A user may no longer publish where its service does."""
    server = make(place, rng)
    who = server.cast
    allow = (
        "authorization {{ users: [ {{ user: {user}, password: first, permissions: "
        '{{ publish: [{subjects}], subscribe: [">"] }} }} ] }}\n'
    )
    first = server.config.read_text(encoding="utf-8") + allow.format(user=who.user, subjects='">"')
    server.config.write_text(first, encoding="utf-8")
    process = server.start()
    server.serve(rng, pause_s=0.4, target={"login": {"user": who.user, "pass": "first"}})
    let_run(rng, 1.0, 2.5)
    broke = place.now
    _change(server, process, allow.format(user=who.user, subjects='"health.>"'))
    place.wait_for("[Pp]ermissions [Vv]iolation|Publish Violation", since=broke)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"{who.user} of {who.service} may not publish to {who.queue}",
        entity=(who.user, who.service),
        truth=("Permissions Violation", "Publish Violation"),
        broke_at=broke,
        alert=_alert(rng, server),
    )


def connection_limit(place: Place, rng: random.Random) -> Told:
    """A service opens connections and keeps them, until there are no more."""
    limit = rng.randint(6, 14)
    server = make(place, rng, f"max_connections: {limit}\n")
    who = server.cast
    server.start()
    server.serve(rng, pooled=False, pause_s=0.5)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    keep = (Route(name="subscribe", steps=(f"sub {who.queue}.>", "sleep 30"), ok=0),)
    leak = server.serve(rng, service=who.other, routes=keep, threads=limit + 2, pause_s=0.5, quiet=True)
    place.wait_for("maximum connections exceeded", since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(leak), (1.0, 2.0))
    return server.told(
        cause=f"all {limit} connections of NATS on {who.host} are taken, held by {who.other}",
        truth=("maximum connections exceeded",),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "NatsConnectionsHigh"),
    )


def slow_consumer(place: Place, rng: random.Random) -> Told:
    """A subscriber does not read, and the server cuts it off."""
    server = make(
        place,
        rng,
        f'max_payload: 64kb\nmax_pending: {rng.choice((200_000, 400_000))}\nwrite_deadline: "{rng.choice((1, 2))}s"\n',
    )
    who = server.cast
    server.start()
    server.serve(rng, pause_s=0.4)
    stalls = (Route(name=f"handle {who.queue}", steps=(f"sub {who.queue}.>", "sleep 60", "next"), ok=0),)
    server.serve(rng, service=who.other, routes=stalls, threads=2, pause_s=0.3)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    flood = (Route(name=f"publish {who.queue}.image", steps=(f"pub {who.queue}.image {{blob}}",) * 8, ok=0),)
    server.serve(rng, routes=flood, threads=3, pause_s=0.02, quiet=True)
    place.wait_for("Slow Consumer Detected", since=broke, timeout_s=25)
    let_run(rng, 2.0, 4.0)
    return server.told(
        cause=f"{who.other} reads {who.queue} too slowly, so NATS cuts it off",
        entity=(who.other, who.queue),
        truth=("Slow Consumer Detected", "Slow Consumer"),
        broke_at=broke,
        alert=_alert(rng, server, "NatsSlowConsumers"),
    )


def _stream(server: Server, **limits: object) -> None:
    made = server.ask(
        f"$JS.API.STREAM.CREATE.{_STREAM}",
        {"name": _STREAM, "subjects": [f"{server.cast.queue}.>"], "storage": "file", "retention": "limits", **limits},
    )
    assert "error" not in made, made


def _publish(who: Cast, size: str) -> tuple[Route, ...]:
    return (Route(name=f"publish {who.queue}", steps=(f"ask {who.queue}.created {size}",), ok=0),)


def stream_full(place: Place, rng: random.Random) -> Told:
    """A stream, or the storage of JetStream, has reached its limit and takes no more."""
    reserved = rng.random() < 0.5
    store = place.folder / "volume"
    limit = rng.randint(300, 900) * 1024
    server = make(place, rng, f"jetstream {{ store_dir: {store}, max_file: {limit if reserved else 10**9} }}\n")
    who = server.cast
    server.start()
    _stream(server, discard="new", **({} if reserved else {"max_bytes": limit}))
    server.serve(rng, routes=_publish(who, "{word}"), pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    server.serve(rng, service=who.other, routes=_publish(who, "{blob}"), threads=2, pause_s=0.06, quiet=True)
    truth = (
        "maximum bytes exceeded",
        "insufficient storage resources available",
        "JetStream resource limits exceeded",
        "insufficient resources",
        "resource limits exceeded for account",
    )
    place.wait_for("|".join(truth), since=broke, timeout_s=25)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"the storage of the stream {_STREAM} on {who.host} has reached its limit",
        entity=who.host,
        truth=truth,
        broke_at=broke,
        accepted=("quota_rate_limit",),
        alert=_alert(rng, server, "NatsJetStreamStorageFull"),
    )


def backlog(place: Place, rng: random.Random) -> Told:
    """A durable consumer falls behind: what is pending for it grows."""
    server = make(place, rng, f"jetstream {{ store_dir: {place.folder / 'volume'}, max_file: 1000000000 }}\n")
    who = server.cast
    server.start()
    _stream(server)
    config = {"durable_name": "worker", "deliver_policy": "all", "ack_policy": "explicit"}
    question = {"stream_name": _STREAM, "config": config}
    made = server.ask(f"$JS.API.CONSUMER.DURABLE.CREATE.{_STREAM}.worker", question)
    assert "error" not in made, made
    server.serve(rng, routes=_publish(who, "{word}"), pause_s=0.4)
    limit = rng.choice((60, 100, 150))
    say = rng.choice(
        (
            f"consumer worker of {_STREAM}: %s messages pending (threshold {limit})",
            f"lag of {who.other} on {who.queue} is %s messages, limit {limit}",
            f"{who.queue} backlog: %s pending, alert above {limit}",
        )
    )
    info = f"ask $JS.API.CONSUMER.INFO.{_STREAM}.worker"
    watch = (Route(name="watch", steps=(info,), tells=say, limit=limit),)
    server.serve(rng, service=who.other, routes=watch, threads=1, pause_s=0.45)
    let_run(rng, 1.5, 2.5)
    broke = place.now
    flood = (Route(name=f"publish {who.queue} batch", steps=(f"ask {who.queue}.created {{uid}}",) * 12, ok=0),)
    server.serve(rng, routes=flood, threads=2, pause_s=0.1, quiet=True)
    let_run(rng, 4.5, 6.0)
    return server.told(
        cause=f"{who.other} does not keep up with {who.queue}: its consumer falls behind",
        entity=(who.queue, who.other),
        truth=(r"(WARNING|warn).*(pending|lag|backlog)",),
        broke_at=broke,
        alert=_alert(rng, server, "NatsConsumerLag"),
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """A restart with a line that NATS does not take."""
    server = make(place, rng)
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.5)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    wrong = rng.choice(
        (
            "max_conections: 200",
            "max_payload: lots",
            'write_deadline: "fast"',
            "jetstream { store: /data }",
            "authorization { users: [ { user: a } { user: a } ] ",
            'tls { cert_file: "/etc/nats/certs/server.crt", key_file: "/etc/nats/certs/server.key" }',
            "cluster { port: abc }",
            "include ./missing.conf",
        )
    )
    with server.config.open("a", encoding="utf-8") as stream:
        stream.write(wrong + "\n")
    for _ in range(rng.randint(1, 3)):
        server.start(ready=False).wait(20)
        let_run(rng, 0.8, 1.5)
    return server.told(
        cause=f"the configuration of NATS on {who.host} has a line that it refuses: {wrong}",
        entity=(wrong.split(" ")[0].strip(":"), who.host),
        truth=(r"^nats-server: ",),
        broke_at=broke,
        alert=_alert(rng, server, "NatsDown"),
        severity="critical",
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The server's certificate expires while services connect by TLS."""
    healthy_s = rng.uniform(3.0, 4.5)
    folder = place.folder / "tls"
    server = make(place, rng, "")
    who = server.cast
    certificate(place, "server", host=who.host, lasts_s=healthy_s)
    expires = place.now + healthy_s - 1.5
    keys = f'tls {{ cert_file: "{folder}/server.crt", key_file: "{folder}/server.key" }}\n'
    server.config.write_text(server.config.read_text(encoding="utf-8") + keys, encoding="utf-8")
    server.start()
    server.serve(rng, pooled=False, pause_s=0.5, target={"ca": str(folder / "ca.crt")})
    place.wait_for("certificate has expired", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"the TLS certificate of NATS on {who.host} has expired",
        truth=("certificate has expired", "TLS handshake error"),
        broke_at=expires,
        alert=_alert(rng, server),
    )


def lost_route(place: Place, rng: random.Random) -> Told:
    """The network between two servers of a cluster is cut."""
    routed = place.free_port()
    first = make(place, rng, f'cluster {{ name: prod, listen: "127.0.0.1:{routed}" }}\n')
    who = first.cast
    first.start()
    with Relay("127.0.0.1", routed) as relay:
        own = place.free_port()
        text = f'cluster {{ name: prod, listen: "127.0.0.1:{own}", routes: ["nats://127.0.0.1:{relay.port}"] }}\n'
        port = place.free_port()
        config = place.write("nats-2.conf", f'listen: "127.0.0.1:{port}"\nping_interval: "1s"\nping_max: 1\n{text}')
        second = Server(place=place, cast=who, port=port, config=config, shown="nats-server-2")
        second.start()
        place.wait_for("Route connection created", source="nats-server-2")
        first.serve(rng, pause_s=0.4)
        let_run(rng, 1.5, 2.5)
        broke = place.now
        relay.cut()
        place.wait_for("Error trying to connect to route", since=broke, timeout_s=20)
        let_run(rng, 3.0, 4.5)
        mended = perhaps_mended(place, rng, 0.4, relay.mend, (1.5, 2.5))
        return first.told(
            cause="the network between two servers of the NATS cluster is cut",
            entity=(who.host, "nats-server-2"),
            truth=("Error trying to connect to route", "Router connection closed", "Route connection .*(closed|lost)"),
            broke_at=broke,
            mended_at=mended,
            hide={
                str(second.port): "4222",
                str(relay.port): "6222",
                str(own): "6222",
                str(routed): "6222",
                "/srv/nats-2.conf": "/etc/nats/nats-server.conf",
            },
            alert=_alert(rng, first, "NatsRouteDown"),
        )


def payload_too_large(place: Place, rng: random.Random) -> Told:
    """A new version of a service publishes messages larger than the server takes."""
    server = make(place, rng, "max_payload: 8kb\n")
    who = server.cast
    server.start()
    old = server.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(old)
    major, minor, _ = who.version.split(".")
    version = f"{major}.{int(minor) + 1}.0"
    routes = (*usual_routes(who), Route(name=f"publish {who.queue}.image", steps=(f"pub {who.queue}.image {{blob}}",)))
    server.serve(rng, routes=routes, version=version, pause_s=0.3)
    place.wait_for("[Mm]aximum [Pp]ayload", since=broke, timeout_s=20)
    let_run(rng, 2.5, 4.0)
    return server.told(
        cause=f"since {version}, {who.service} publishes messages larger than NATS takes",
        entity=who.service,
        truth=("[Mm]aximum [Pp]ayload", f"starting {who.service} {version}"),
        broke_at=broke,
        accepted=("config_env_error",),
        alert=_alert(rng, server),
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """The server is restarted on purpose; clients come back. A false alarm."""
    server = make(place, rng)
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    if rng.random() < 0.5:
        process.send_signal(12)
        process.wait(20)
    else:
        place.stop(process)
    let_run(rng, 0.2, 0.8)
    server.start()
    mended = place.now
    let_run(rng, 2.0, 3.5)
    return server.told(
        cause=f"NATS on {who.host} was restarted as planned, and its clients are back",
        truth=("Initiating Shutdown", "Server Exiting", "Entering lame duck mode", READY),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, server, "NatsDown"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start, publishers, subscribers that come and go, a reload."""
    server = make(place, rng, f"jetstream {{ store_dir: {place.folder / 'volume'} }}\n" if rng.random() < 0.5 else "")
    who = server.cast
    process = server.start()
    server.serve(rng, pause_s=rng.uniform(0.3, 0.5), pooled=rng.random() < 0.6)
    read = (Route(name=f"handle {who.queue}", steps=(f"sub {who.queue}.>", "next"), ok=0),)
    gone = server.serve(rng, service=who.other, routes=read, threads=1, pause_s=0.3)
    let_run(rng, 2.0, 3.0)
    place.stop(gone)
    process.send_signal(1)
    let_run(rng, 1.0, 2.0)
    return server.told(cause="nothing is wrong: NATS serves", entity="", severity="info")


FAULTS = (
    staged(FAMILY, "authn_authz", NEEDS, wrong_login),
    staged(FAMILY, "authn_authz", NEEDS, subject_denied),
    staged(FAMILY, "connection_exhaustion", NEEDS, connection_limit),
    staged(FAMILY, "queue_backlog", NEEDS, slow_consumer),
    staged(FAMILY, "disk_storage_full", NEEDS, stream_full),
    staged(FAMILY, "queue_backlog", NEEDS, backlog),
    staged(FAMILY, "config_env_error", NEEDS, bad_configuration),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), expired_certificate),
    staged(FAMILY, "network_connectivity", NEEDS, lost_route),
    staged(FAMILY, "deploy_regression", NEEDS, payload_too_large),
    staged(FAMILY, "benign_false_alarm", NEEDS, planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, daily_load, kind="healthy"),
)
