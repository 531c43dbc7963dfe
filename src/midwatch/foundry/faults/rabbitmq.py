"""RabbitMQ broken in many ways, and healthy. A start takes some seconds."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    give,
    let_run,
    perhaps_mended,
    serve,
    small_disk,
    staged,
)
from midwatch.foundry.stage import user_if_root as user_for

FAMILY = "rabbitmq"
_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_CTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
NEEDS = (_SERVER, "epmd")
READY = "Server startup complete"
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_PASSWORD = "correct-horse"  # noqa: S105 - of a broker that lives for seconds


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker with its folder and who uses it."""

    place: Place
    cast: Cast
    port: int
    folder: Path
    user: str | None
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it and wait until it is ready."""
        since = self.place.now
        process = self.place.start("rabbitmq", (_SERVER,), env=self.env, user=self.user, cwd=self.folder)
        if ready:
            self.place.wait_for(READY, source="rabbitmq", since=since, timeout_s=60)
        return process

    def control(self, *words: str, heard: str = "") -> None:
        """A command of rabbitmqctl, heard only if it has a name to be heard under."""
        if heard:
            self.place.run(heard, (_CTL, *words), env=self.env, user=self.user, cwd=self.folder)
            return
        done = subprocess.run(
            (_CTL, *words),
            env={"PATH": os.environ.get("PATH", ""), **self.env},
            user=self.user,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that publishes or takes messages."""
        target = {"user": self.cast.user, "password": _PASSWORD, "host": self.cast.host, "port": self.port}
        return serve(
            self.place,
            rng,
            service or self.cast.service,
            driver="amqpclient",
            target={**target, "shown": 5672, **options.pop("target", {})},
            routes=routes or usual_routes(self.cast),
            greeting=(f"broker amqp://{self.cast.user}@{self.cast.host}:5672, queue {self.cast.queue}",),
            **{"version": self.cast.version, **options},
        )

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of RabbitMQ hides and names."""
        who = self.cast
        names = {
            who.service: "service",
            who.other: "service",
            who.host: "host",
            who.queue: "queue",
            who.user: "user",
        }
        shown = {code: "" for line in self.place.lines() for code in _COLOUR.findall(line.text)}
        hide = {
            **shown,
            "/srv/volume": "/var/lib/rabbitmq/mnesia",
            f"/srv/{self.folder.name}/mnesia": "/var/lib/rabbitmq/mnesia",
            f"/srv/{self.folder.name}/rabbitmq.conf": "/etc/rabbitmq/rabbitmq.conf",
            f"/srv/{self.folder.name}": "/var/lib/rabbitmq",
            "@localhost": f"@{who.host}",
            str(self.port): "5672",
            "127.0.0.1": who.address,
        }
        ready = [line.at for line in self.place.lines() if READY in line.text]
        began = max(0.0, ready[0] - 0.05) if ready else 0.0
        given = {"began_at": began, "ended_at": self.place.now, "entity": (who.host, who.service), **values}
        given["names"] = {**names, **values.get("names", {})}
        given["hide"] = {**values.get("hide", {}), **hide}
        return Told(**given)


def usual_routes(who: Cast) -> tuple[Route, ...]:
    """Messages that are sent, and taken again."""
    return (
        Route(
            name=f"publish {who.queue}", steps=(f"declare {who.queue}", f"pub {who.queue} id={{uid}}"), ok=0, weight=2
        ),
        Route(name=f"consume {who.queue}", steps=(f"declare {who.queue}", f"get {who.queue}"), ok=0, weight=3),
    )


def make(
    place: Place, rng: random.Random, settings: Mapping[str, object] | None = None, *, data: Path | None = None
) -> Broker:
    """A broker with the cast's user, not started; its name server runs."""
    who = cast(rng)
    user = user_for("rabbitmq")
    folder = place.folder / "rabbit"
    folder.mkdir()
    mnesia = data or folder / "mnesia"
    mnesia.mkdir(parents=True, exist_ok=True)
    names, port = place.free_port(), place.free_port()
    definitions = {
        "users": [{"name": who.user, "password": _PASSWORD, "tags": "", "limits": {}}],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": who.user, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
    }
    (folder / "definitions.json").write_text(json.dumps(definitions), encoding="utf-8")
    (folder / "plugins").write_text("[].\n", encoding="utf-8")
    chosen = {
        "listeners.tcp.1": f"127.0.0.1:{port}",
        "load_definitions": folder / "definitions.json",
        "log.console": "true",
        "log.console.level": "info",
        "log.file": "false",
        "log.console.formatter": rng.choice(("plaintext", "plaintext", "plaintext", "json")),
        **(settings or {}),
    }
    (folder / "rabbitmq.conf").write_text("".join(f"{key} = {value}\n" for key, value in chosen.items()))
    cookie = folder / ".erlang.cookie"
    cookie.write_text(f"COOKIE{rng.getrandbits(48):012X}", encoding="utf-8")
    cookie.chmod(0o400)
    give(folder, user)
    give(mnesia, user)
    env = {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(place.free_port()),
        "RABBITMQ_MNESIA_BASE": str(mnesia),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "ERL_CRASH_DUMP": "/dev/null",
    }
    place.start("epmd", ("epmd", "-port", str(names), "-address", "127.0.0.1"), user=user)
    return Broker(place=place, cast=who, port=port, folder=folder, user=user, env=env)


def _alert(rng: random.Random, broker: Broker, *titles: str) -> tuple[str, str]:
    who = broker.cast
    say = ("", f"check RabbitMQ on {who.host}", f"{who.service} cannot publish")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)


def memory_alarm(place: Place, rng: random.Random) -> Told:
    """Messages pile up in memory until the broker blocks its publishers."""
    broker = make(place, rng, {"vm_memory_high_watermark.absolute": "150MB"})
    who = broker.cast
    broker.start()
    broker.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    load = (
        Route(
            name="publish batch", steps=(f"declare {who.queue}.batch", *(f"pub {who.queue}.batch {{blob}}",) * 20), ok=0
        ),
    )
    broker.serve(rng, service=who.other, routes=load, threads=3, pause_s=0.02, quiet=True)
    place.wait_for("memory resource limit alarm set", since=broke, timeout_s=40)
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"RabbitMQ on {who.host} uses more memory than its watermark, so publishers are blocked",
        truth=(
            "memory resource limit alarm set",
            "Publishers will be blocked until this alarm clears",
            "low on memory",
            "vm_memory_high_watermark set",
        ),
        broke_at=broke,
        alert=_alert(rng, broker, "RabbitmqMemoryHigh", "RabbitmqAlarm"),
        severity="critical",
    )


def disk_alarm(place: Place, rng: random.Random) -> Told:
    """The disk has less room than the broker asks for, so publishers are blocked."""
    with small_disk(place, "volume", mb=180, user=user_for("rabbitmq")) as disk:
        broker = make(place, rng, {"disk_free_limit.absolute": "100MB"}, data=disk)
        who = broker.cast
        broker.start()
        broker.serve(rng, pause_s=0.35)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        with (disk / "backup.tar").open("wb") as stream:
            stream.write(b"\0" * rng.randint(110, 140) * 2**20)
        place.wait_for("disk resource limit alarm set", since=broke, timeout_s=40)
        let_run(rng, 2.5, 4.0)
        return broker.told(
            cause=f"the disk of RabbitMQ on {who.host} has too little room left, so publishers are blocked",
            truth=(
                "disk resource limit alarm set",
                "Publishers will be blocked until this alarm clears",
                "Free disk space is insufficient",
                "low on disk",
            ),
            broke_at=broke,
            alert=_alert(rng, broker, "RabbitmqDiskSpaceLow", "RabbitmqAlarm"),
            severity="critical",
        )


def backlog(place: Place, rng: random.Random) -> Told:
    """A queue grows, since its consumer is gone or too slow."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    limit = rng.choice((40, 80, 120))
    say = rng.choice(
        (
            f"queue {who.queue} depth is %s (limit {limit})",
            f"{who.queue}: backlog of %s messages, alert above {limit}",
            f"messages ready in {who.queue}: %s, threshold {limit}",
        )
    )
    watch = Route(name="watch", steps=(f"declare {who.queue}", f"depth {who.queue}"), tells=say, limit=limit)
    take = Route(name=f"consume {who.queue}", steps=(f"get {who.queue}", "sleep 0.02"), ok=0)
    produce = (Route(name=f"publish {who.queue}", steps=(f"declare {who.queue}", f"pub {who.queue} {{uid}}"), ok=0),)
    broker.serve(rng, routes=produce, threads=1, pause_s=0.3)
    worker = broker.serve(rng, service=who.other, routes=(watch, take, take), threads=2, pause_s=0.25)
    let_run(rng, 1.5, 2.5)
    broke = place.now
    place.stop(worker)
    flood = (Route(name=f"publish {who.queue} batch", steps=(f"pub {who.queue} {{uid}}",) * 12, ok=0),)
    broker.serve(rng, routes=flood, threads=3, pause_s=0.15, quiet=True)
    slow = Route(name=f"consume {who.queue}", steps=(f"get {who.queue}", "sleep 0.6"), ok=0)
    broker.serve(rng, service=who.other, routes=(watch, slow), threads=2, pause_s=0.2)
    over = rf"(WARNING|warn).*{who.queue}"
    place.wait_for(over, since=broke, timeout_s=25)
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"{who.queue} grows: {who.other} takes less from it than is published",
        entity=who.queue,
        truth=(rf"(?=.*\b(depth|backlog|ready)\b){over}",),
        broke_at=broke,
        alert=_alert(rng, broker, "RabbitmqTooManyReadyMessages", f"{who.queue} backlog"),
    )


def access_refused(place: Place, rng: random.Random) -> Told:
    """A wrong password, an unknown user, or a queue that a user may not use."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    broker.serve(rng, pooled=False, pause_s=0.45)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    way = rng.choice(("password", "user", "permission", "vhost"))
    if way == "permission":
        broker.control("set_permissions", "-p", "/", who.user, "^public", "^public", ".*")
    else:
        wrong = {"password": {"password": "wrong"}, "user": {"user": "nobody1"}, "vhost": {"vhost": "/billing"}}[way]
        broker.serve(rng, service=who.other, pooled=False, pause_s=0.5, target=wrong)
    place.wait_for("ACCESS_REFUSED|NOT_ALLOWED", since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return broker.told(
        cause=f"RabbitMQ on {who.host} refuses a client ({way})",
        entity=(who.user, who.other, who.service),
        truth=(
            "ACCESS_REFUSED",
            "NOT_ALLOWED",
            "access_refused",
            "not_allowed",
            "login refused",
            r"access to (vhost|queue|exchange) .*(refused|not found)",
            r"vhost /billing not found",
        ),
        broke_at=broke,
        accepted=("config_env_error",) if way == "vhost" else (),
        alert=_alert(rng, broker),
    )


def connection_limit(place: Place, rng: random.Random) -> Told:
    """A service opens connections and keeps them, until the virtual host takes no more."""
    broker = make(place, rng)
    who = broker.cast
    limit = rng.randint(6, 14)
    broker.start()
    broker.control("set_vhost_limits", "-p", "/", json.dumps({"max-connections": limit}))
    broker.serve(rng, pooled=False, pause_s=0.5)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    keep = (Route(name="open", steps=(f"declare {who.queue}", "sleep 30"), ok=0),)
    leak = broker.serve(rng, service=who.other, routes=keep, threads=limit + 2, pause_s=0.5, quiet=True)
    place.wait_for("connection limit", since=broke, timeout_s=25)
    let_run(rng, 2.0, 3.5)
    mended = perhaps_mended(place, rng, 0.4, lambda: place.stop(leak), (1.0, 2.0))
    return broker.told(
        cause=f"all {limit} connections of RabbitMQ on {who.host} are taken, held by {who.other}",
        truth=("connection limit",),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, broker, "RabbitmqTooManyConnections"),
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """A start with a line in rabbitmq.conf that RabbitMQ does not take."""
    wrong, value = rng.choice(
        (
            ("vm_memory_high_watermarks.relative", "0.6"),
            ("disk_free_limit.absolute", "lots"),
            ("listeners.tcp.default", "five"),
            ("heartbeats", "30"),
            ("default_user_tag.administrator", "yes"),
            ("tcp_listen_option.backlog", "many"),
            ("log.console.level", "verbose"),
        )
    )
    broker = make(place, rng, {wrong: value})
    who = broker.cast
    broker.serve(rng, pause_s=0.5, pooled=False)
    broke = 0.0
    for _ in range(rng.randint(1, 2)):
        broker.start(ready=False).wait(60)
        let_run(rng, 0.8, 1.5)
    return broker.told(
        cause=f"rabbitmq.conf of {who.host} has a line that RabbitMQ refuses: {wrong} = {value}",
        entity=(wrong, value, who.host),
        truth=(
            "Conf file attempted to set unknown variable",
            "You've tried to set",
            "there is no setting with that name",
            r"(Error transforming|Transforming) datatype for",
            r"cannot be converted|can't be converted|is not (a|one of|allowed)",
            "Error preparing configuration in phase",
        ),
        broke_at=broke,
        began_at=0.0,
        alert=_alert(rng, broker, "RabbitmqDown"),
        severity="critical",
    )


def wrong_cookie(place: Place, rng: random.Random) -> Told:
    """A node, or a tool, comes with another Erlang cookie."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    broker.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    for _ in range(rng.randint(1, 2)):
        broker.control("--erlang-cookie", "OTHERCOOKIE", "status", heard="rabbitmqctl")
    let_run(rng, 0.5, 1.5)
    return broker.told(
        cause=f"a node or tool that talks to RabbitMQ on {who.host} has another Erlang cookie",
        truth=(
            "Invalid challenge reply",
            "Authentication failed|rejected by the remote node",
            "suggestion: check if the Erlang cookie is identical",
        ),
        broke_at=broke,
        accepted=("authn_authz",),
        alert=_alert(rng, broker, "RabbitmqNodeDown"),
    )


def lost_clients(place: Place, rng: random.Random) -> Told:
    """The network between clients and broker falls silent."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    with Relay("127.0.0.1", broker.port) as relay:
        broker.serve(rng, pause_s=0.25, target={"port": relay.port, "heartbeat_s": 1, "timeout_s": 3})
        let_run(rng, 1.5, 2.5)
        broke = place.now
        relay.go_silent()
        place.wait_for("missed heartbeats from client", since=broke, timeout_s=25)
        let_run(rng, 2.0, 4.0)
        mended = perhaps_mended(place, rng, 0.5, relay.mend, (1.5, 3.0))
        return broker.told(
            cause=f"the network between {who.service} and RabbitMQ on {who.host} is silent",
            truth=("missed heartbeats from client", "Timeout reading from", "handshake_timeout"),
            broke_at=broke,
            mended_at=mended,
            hide={str(relay.port): "5672"},
            alert=_alert(rng, broker, "RabbitmqConnectionsLost"),
        )


def other_arguments(place: Place, rng: random.Random) -> Told:
    """A new version of a service declares its queue in another way than it was."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    old = broker.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(old)
    major, minor, _ = who.version.split(".")
    version = f"{major}.{int(minor) + 1}.0"
    changed = (Route(name=f"publish {who.queue}", steps=(f"transient {who.queue}", f"pub {who.queue} {{uid}}"), ok=0),)
    broker.serve(rng, routes=changed, version=version, pause_s=0.4)
    place.wait_for("PRECONDITION_FAILED", since=broke, timeout_s=20)
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"{who.service} {version} declares {who.queue} otherwise than it exists",
        entity=who.service,
        truth=("PRECONDITION_FAILED", "precondition_failed", "inequivalent arg", f"starting {who.service} {version}"),
        broke_at=broke,
        accepted=("config_env_error",),
        alert=_alert(rng, broker),
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The broker's certificate expires while services connect by TLS."""
    secure = place.free_port()
    folder = place.folder / "tls"
    keys = {
        f"ssl_options.{key}": folder / name for key, name in (("certfile", "server.crt"), ("keyfile", "server.key"))
    }
    broker = make(place, rng, {"listeners.ssl.1": f"127.0.0.1:{secure}", "ssl_options.verify": "verify_none", **keys})
    who = broker.cast
    certificate(place, "server", host=who.host, lasts_s=3600, user=broker.user)
    broker.start()
    healthy_s = rng.uniform(2.5, 4.0)
    certificate(place, "server", host=who.host, lasts_s=healthy_s, user=broker.user)
    expires = place.now + healthy_s - 1.5
    broker.serve(rng, pooled=False, pause_s=0.5, target={"ca": str(folder / "ca.crt"), "port": secure, "shown": 5671})
    place.wait_for("certificate has expired", timeout_s=40)
    let_run(rng, 2.0, 3.5)
    return broker.told(
        cause=f"the TLS certificate of RabbitMQ on {who.host} has expired",
        truth=("certificate has expired", "Certificate Expired", "certificate_expired"),
        broke_at=expires,
        hide={str(secure): "5671"},
        alert=_alert(rng, broker),
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """The broker is stopped and started for maintenance; clients come back. A false alarm."""
    broker = make(place, rng)
    who = broker.cast
    process = broker.start()
    broker.serve(rng, pause_s=0.6)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    place.stop(process)
    broker.start()
    mended = place.now
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"RabbitMQ on {who.host} was restarted as planned, and its clients are back",
        truth=("SIGTERM received - shutting down", "Successfully stopped RabbitMQ", READY),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, broker, "RabbitmqDown"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start and traffic; clients that go away without a word, which the broker notes."""
    broker = make(place, rng)
    broker.start()
    broker.serve(rng, pause_s=rng.uniform(0.25, 0.5), pooled=rng.random() < 0.6)
    let_run(rng, 3.0, 5.0)
    return broker.told(cause="nothing is wrong: RabbitMQ serves", entity="", severity="info")


FAULTS = (
    staged(FAMILY, "oom_memory", NEEDS, memory_alarm),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), disk_alarm),
    staged(FAMILY, "queue_backlog", NEEDS, backlog),
    staged(FAMILY, "authn_authz", NEEDS, access_refused),
    staged(FAMILY, "connection_exhaustion", NEEDS, connection_limit),
    staged(FAMILY, "config_env_error", NEEDS, bad_configuration),
    staged(FAMILY, "config_env_error", NEEDS, wrong_cookie),
    staged(FAMILY, "network_connectivity", NEEDS, lost_clients),
    staged(FAMILY, "deploy_regression", NEEDS, other_arguments),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), expired_certificate),
    staged(FAMILY, "benign_false_alarm", NEEDS, planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, daily_load, kind="healthy"),
)
