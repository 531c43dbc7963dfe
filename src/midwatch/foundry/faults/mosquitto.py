"""Mosquitto, an MQTT broker, broken in several ways, and healthy."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from midwatch.foundry.stage import user_if_root as user_for

FAMILY = "mosquitto"
NEEDS = ("mosquitto",)
_STAMPS = ("", "log_timestamp_format %Y-%m-%dT%H:%M:%S\n")


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker with its configuration file, and who uses it."""

    place: Place
    cast: Cast
    port: int
    config: Path

    def start(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it and wait until it listens."""
        user = user_for("mosquitto")
        process = self.place.start("mosquitto", ("mosquitto", "-c", str(self.config)), user=user)
        if ready:
            self.place.wait_until(self._listens, what="mosquitto")
        return process

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that publishes."""
        name = service or self.cast.service
        target = {"client": f"{name}-*", "host": self.cast.host, "port": self.port, "shown": 1883}
        return serve(
            self.place,
            rng,
            name,
            driver="mqttclient",
            target={**target, **options.pop("target", {})},
            routes=routes or usual_routes(self.cast),
            greeting=(f"mqtt broker is {self.cast.host}:1883",),
            **{"version": self.cast.version, **options},
        )

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of the broker hides and names."""
        who = self.cast
        names = {who.service: "service", who.other: "service", who.host: "host", who.user: "user"}
        hide = {f"/srv/{self.config.name}": "/etc/mosquitto/mosquitto.conf", "/srv/volume": "/var/lib/mosquitto"}
        given = {"ended_at": self.place.now, "entity": (who.host, who.service), **values}
        given["names"] = {**names, **values.get("names", {})}
        given["hide"] = {**values.get("hide", {}), **hide, str(self.port): "1883", "127.0.0.1": who.address}
        return Told(**given)


def usual_routes(who: Cast) -> tuple[Route, ...]:
    """Readings and states of devices."""
    return (
        Route(name="publish reading", steps=(f"pub site/{who.table}/{{id}}/temperature {{other}}",), ok=0, weight=4),
        Route(name="publish state", steps=(f"pub site/{who.table}/{{id}}/state {{word}}",), ok=0),
    )


def make(
    place: Place, rng: random.Random, settings: Mapping[str, object] | None = None, *, before: str = "", logs: str = ""
) -> Broker:
    """A broker, not started. `before` goes before the listener, `settings` after it."""
    port = place.free_port()
    wanted = logs or rng.choice(("", "", "log_type all\n"))
    chosen = {"allow_anonymous": "true", **(settings or {})}
    lines = "".join(f"{key} {value}\n" for key, value in chosen.items())
    text = f"log_dest stderr\n{wanted}{rng.choice(_STAMPS)}{before}listener {port} 127.0.0.1\n{lines}"
    return Broker(place=place, cast=cast(rng), port=port, config=place.write("mosquitto.conf", text))


def _alert(rng: random.Random, broker: Broker, *titles: str) -> tuple[str, str]:
    who = broker.cast
    say = ("", f"check the MQTT broker on {who.host}", f"{who.service} loses messages")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)


def _passwords(broker: Broker, password: str) -> Path:
    """A password file with the cast's user."""
    path = broker.place.folder / "passwd"
    quietly(("mosquitto_passwd", "-b", "-c", str(path), broker.cast.user, password), what="mosquitto_passwd")
    path.chmod(0o644)
    return path


def not_authorised(place: Place, rng: random.Random) -> Told:
    """A service logs in with a wrong password, or without one, after the broker asks for it."""
    broker = make(place, rng, {"allow_anonymous": "false", "password_file": place.folder / "passwd"})
    who = broker.cast
    _passwords(broker, "right")
    process = broker.start()
    login = {"user": who.user, "password": "right"}
    broker.serve(rng, pooled=False, pause_s=0.5, target=login)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    if rng.random() < 0.5:
        _passwords(broker, "rotated")
        process.send_signal(1)
    else:
        wrong = {} if rng.random() < 0.5 else {"user": who.user, "password": "wrong"}
        broker.serve(rng, service=who.other, pooled=False, pause_s=0.5, target=wrong)
    truth = ("not authorised", "bad user name or password", "Not authorized")
    place.wait_for("|".join(truth), since=broke)
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"the MQTT broker on {who.host} refuses a client's login",
        entity=(who.user, who.other, who.service),
        truth=truth,
        broke_at=broke,
        alert=_alert(rng, broker),
    )


def topic_denied(place: Place, rng: random.Random) -> Told:
    """The access list no longer allows what a service publishes."""
    acl = place.folder / "acl"
    acl.write_text("topic readwrite #\n", encoding="utf-8")
    broker = make(place, rng, {"acl_file": acl}, logs="log_type all\n")
    who = broker.cast
    process = broker.start()
    broker.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    acl.write_text(
        f"topic read #\ntopic write site/{who.table}/+/{rng.choice(('state', 'config'))}\n", encoding="utf-8"
    )
    process.send_signal(1)
    place.wait_for("Denied PUBLISH", since=broke)
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"the access list of the MQTT broker on {who.host} denies what {who.service} publishes",
        entity=who.service,
        truth=("Denied PUBLISH",),
        broke_at=broke,
        alert=_alert(rng, broker),
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """A restart with a line that Mosquitto does not take."""
    broker = make(place, rng)
    who = broker.cast
    process = broker.start()
    broker.serve(rng, pause_s=0.5)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    wrong = rng.choice(
        (
            "max_conections 200",
            "persistance true",
            "allow_anonymous maybe",
            "password_file /etc/mosquitto/missing-passwd",
            "acl_file /etc/mosquitto/missing-acl",
            "log_type verbose",
            "listener 99999",
            "max_packet_size 5",
            "protocol amqp",
            "plugin /usr/lib/mosquitto_auth.so",
        )
    )
    with broker.config.open("a", encoding="utf-8") as stream:
        stream.write(wrong + "\n")
    for _ in range(rng.randint(1, 3)):
        broker.start(ready=False).wait(20)
        let_run(rng, 0.8, 1.5)
    return broker.told(
        cause=f"the configuration of the MQTT broker on {who.host} has a line that it refuses: {wrong}",
        entity=(wrong.split(" ")[0], wrong.split(" ")[1], who.host),
        truth=(
            "Unknown configuration variable",
            "Error found at",
            r"Error: Invalid \w+ value",
            "Error: Unable to (open|load)",
            "Error opening (acl|password) file",
            "Load error: ",
        ),
        broke_at=broke,
        alert=_alert(rng, broker, "MqttBrokerDown"),
        severity="critical",
    )


def connection_limit(place: Place, rng: random.Random) -> Told:
    """Devices come back all at once, and the listener takes no more."""
    limit = rng.randint(6, 14)
    broker = make(place, rng, {"max_connections": limit})
    who = broker.cast
    broker.start()
    broker.serve(rng, pause_s=0.4)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    keep = (Route(name="subscribe", steps=(f"sub site/{who.table}/#", "sleep 30"), ok=0),)
    broker.serve(rng, service=who.other, routes=keep, threads=limit + 4, pause_s=0.5, quiet=True)
    place.wait_for("denied|max_connections|exceeded", source="mosquitto", since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return broker.told(
        cause=f"all {limit} connections of the MQTT broker on {who.host} are taken",
        truth=("max_connections", "connection.*denied", "connection limit"),
        broke_at=broke,
        alert=_alert(rng, broker, "MqttConnectionsHigh"),
    )


def messages_dropped(place: Place, rng: random.Random) -> Told:
    """A subscriber is away, its queue is full, and messages are dropped."""
    broker = make(place, rng, before=f"max_queued_messages {rng.randint(8, 25)}\n")
    who = broker.cast
    broker.start()
    read = (Route(name=f"reading of site/{who.table}", steps=(f"sub site/{who.table}/#", "next"), ok=0),)
    keep = {"client": f"{who.other}-1", "keep": True}
    consumer = broker.serve(rng, service=who.other, routes=read, threads=1, pause_s=0.3, target=keep)
    broker.serve(rng, pause_s=0.15)
    let_run(rng, 1.5, 2.5)
    broke = place.now
    place.stop(consumer, kill=True)
    place.wait_for("being dropped", since=broke, timeout_s=25)
    let_run(rng, 2.0, 4.0)
    return broker.told(
        cause=f"{who.other} does not take its messages, so the MQTT broker drops them at its queue limit",
        entity=who.other,
        truth=("messages are being dropped for client",),
        broke_at=broke,
        alert=_alert(rng, broker, "MqttMessagesDropped"),
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The broker's certificate expires while services connect by TLS."""
    healthy_s = rng.uniform(3.0, 4.5)
    folder = place.folder / "tls"
    keys = {"cafile": folder / "ca.crt", "certfile": folder / "server.crt", "keyfile": folder / "server.key"}
    broker = make(place, rng, keys)
    who = broker.cast
    certificate(place, "server", host=who.host, lasts_s=healthy_s, user=user_for("mosquitto"))
    expires = place.now + healthy_s - 1.5
    broker.start()
    broker.serve(rng, pooled=False, pause_s=0.5, target={"ca": str(folder / "ca.crt")})
    place.wait_for("certificate has expired", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return broker.told(
        cause=f"the TLS certificate of the MQTT broker on {who.host} has expired",
        truth=("certificate has expired", "certificate expired"),
        broke_at=expires,
        alert=_alert(rng, broker),
    )


def lost_clients(place: Place, rng: random.Random) -> Told:
    """The network between clients and broker falls silent."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    with Relay("127.0.0.1", broker.port) as relay:
        far = {"port": relay.port, "alive_s": 1, "timeout_s": 1.5}
        broker.serve(rng, pause_s=0.3, target=far)
        let_run(rng, 1.5, 2.5)
        broke = place.now
        relay.go_silent()
        place.wait_for("exceeded timeout", source="mosquitto", since=broke, timeout_s=20)
        let_run(rng, 1.5, 3.0)
        mended = perhaps_mended(place, rng, 0.5, relay.mend, (1.5, 2.5))
        return broker.told(
            cause=f"the network between {who.service} and the MQTT broker on {who.host} is silent",
            truth=("has exceeded timeout, disconnecting", "Timeout reading from"),
            broke_at=broke,
            mended_at=mended,
            hide={str(relay.port): "1883"},
            alert=_alert(rng, broker, "MqttClientsLost"),
        )


def disk_full(place: Place, rng: random.Random) -> Told:
    """The broker's store no longer fits on its disk."""
    with small_disk(place, "volume", mb=rng.uniform(0.3, 0.8), user=user_for("mosquitto")) as disk:
        before = f"persistence true\npersistence_location {disk}/\nautosave_interval 1\nmax_queued_messages 0\n"
        broker = make(place, rng, before=before, logs="log_type error\nlog_type notice\nlog_type information\n")
        who = broker.cast
        broker.start()
        keep = {"client": f"{who.other}-archive", "keep": True}
        read = (Route(name="reading", steps=(f"sub site/{who.table}/#", "sleep 0.1"), ok=0),)
        archive = broker.serve(rng, service=who.other, routes=read, threads=1, pause_s=0.2, target=keep)
        broker.serve(rng, pause_s=0.4)
        let_run(rng, 1.5, 2.5)
        broke = place.now
        place.stop(archive, kill=True)
        bulk = (Route(name="publish image", steps=(f"pub site/{who.table}/{{id}}/image {{blob}}",), ok=0),)
        broker.serve(rng, routes=bulk, pause_s=0.05, quiet=True)
        place.wait_for("[Nn]o space left|Error saving|Error: .*persist", source="mosquitto", since=broke, timeout_s=25)
        let_run(rng, 2.0, 3.5)
        return broker.told(
            cause=f"the disk of the MQTT broker on {who.host} is full, so it cannot save its store",
            truth=("[Nn]o space left on device", "Error saving in-memory database", "Error during saving"),
            broke_at=broke,
            alert=_alert(rng, broker, "NodeFilesystemAlmostOutOfSpace"),
        )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """The broker is restarted on purpose; clients come back. A false alarm."""
    broker = make(place, rng)
    who = broker.cast
    process = broker.start()
    broker.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    place.stop(process)
    let_run(rng, 0.2, 0.8)
    broker.start()
    mended = place.now
    let_run(rng, 2.5, 4.0)
    return broker.told(
        cause=f"the MQTT broker on {who.host} was restarted as planned, and its clients are back",
        truth=("mosquitto version .* (terminating|running)",),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, broker, "MqttBrokerDown"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start, publishers, and a subscriber that comes and goes."""
    broker = make(place, rng)
    who = broker.cast
    broker.start()
    broker.serve(rng, pause_s=rng.uniform(0.3, 0.6), pooled=rng.random() < 0.5)
    read = (Route(name=f"reading of site/{who.table}", steps=(f"sub site/{who.table}/#", "next"), ok=0),)
    gone = broker.serve(rng, service=who.other, routes=read, threads=1, pause_s=0.4)
    let_run(rng, 2.0, 3.5)
    place.stop(gone)
    let_run(rng, 1.0, 2.0)
    return broker.told(cause="nothing is wrong: the broker serves", entity="", severity="info")


FAULTS = (
    staged(FAMILY, "authn_authz", (*NEEDS, "mosquitto_passwd"), not_authorised),
    staged(FAMILY, "authn_authz", NEEDS, topic_denied),
    staged(FAMILY, "config_env_error", NEEDS, bad_configuration),
    staged(FAMILY, "connection_exhaustion", NEEDS, connection_limit),
    staged(FAMILY, "queue_backlog", NEEDS, messages_dropped),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), expired_certificate),
    staged(FAMILY, "network_connectivity", NEEDS, lost_clients),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), disk_full),
    staged(FAMILY, "benign_false_alarm", NEEDS, planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, daily_load, kind="healthy"),
)
