"""etcd broken in many ways, and healthy."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.foundry.place import Place
from midwatch.foundry.stage import Cast, Route, Told, cast, certificate, let_run, quietly, serve, small_disk, staged

FAMILY = "etcd"
NEEDS = ("etcd", "etcdctl")
_TOKEN = "prod"  # noqa: S105 - a cluster's name
READY = "ready to serve client requests|serving client traffic"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member of a cluster: its ports, its folder and how it logs."""

    place: Place
    cast: Cast
    name: str
    client: int
    peer: int
    data: Path
    logger: str
    scheme: str = "http"

    def start(self, *flags: str, cluster: str = "", ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it, alone or in a cluster (`name=url,...`), and wait until it serves."""
        since = self.place.now
        peer = f"http://127.0.0.1:{self.peer}"
        client = f"{self.scheme}://127.0.0.1:{self.client}"
        process = self.place.start(
            self.name,
            (
                *("etcd", "--name", self.name, "--data-dir", str(self.data), "--logger", self.logger),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", cluster or f"{self.name}={peer}", "--initial-cluster-token", _TOKEN),
                *(("--log-outputs", "stderr") if self.logger == "zap" else ()),
                *flags,
            ),
        )
        if ready:
            self.place.wait_for(READY, source=self.name, since=since)
            self.place.wait_until(self._listens, what="etcd")
        return process

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.client), 1):
            return True
        return False

    def ask(self, *words: str) -> str:
        """A command of etcdctl, unheard."""
        return quietly(("etcdctl", "--endpoints", f"http://127.0.0.1:{self.client}", *words), what="etcdctl")

    def serve(self, rng: random.Random, *, service: str = "", routes: Sequence[Route] = (), **options: Any) -> Any:
        """Start a service that keeps its settings and leases in etcd."""
        target = {"host": self.cast.host, "port": self.client, "shown": 2379}
        return serve(
            self.place,
            rng,
            service or self.cast.service,
            driver="etcdclient",
            target={**target, **options.pop("target", {})},
            routes=routes or usual_routes(self.cast),
            greeting=(f"etcd endpoint {self.scheme}://{self.cast.host}:2379",),
            **{"version": self.cast.version, **options},
        )

    def told(self, **values: Any) -> Told:
        """`Told` with what every fault of etcd hides and names."""
        who = self.cast
        names = {who.service: "service", who.other: "service", who.host: "host", who.user: "user"}
        hide = {
            "/srv/volume": "/var/lib/etcd",
            f"/srv/{self.data.name}": f"/var/lib/etcd/{self.name}.etcd",
            str(self.client): "2379",
            str(self.peer): "2380",
            "127.0.0.1": who.address,
        }
        given = {"ended_at": self.place.now, "entity": (self.name, who.host), **values}
        given["names"] = {**names, **values.get("names", {})}
        given["hide"] = {**values.get("hide", {}), **hide}
        return Told(**given)


def usual_routes(who: Cast) -> tuple[Route, ...]:
    """Settings that are read, and leases that are renewed."""
    return (
        Route(name="read settings", steps=(f"get /{who.table}/settings/{{id}}",), weight=3),
        Route(name="list instances", steps=(f"range /{who.table}/instances/",)),
        Route(name="renew instance", steps=(f"put /{who.table}/instances/{{id}} {{word}}",), weight=2),
    )


def make(place: Place, rng: random.Random, *, data: Path | None = None, scheme: str = "http") -> Member:
    """A member, not started."""
    who = cast(rng)
    return Member(
        place=place,
        cast=who,
        name=rng.choice(("etcd", "etcd0", "etcd-1", "infra0")),
        client=place.free_port(),
        peer=place.free_port(),
        data=data or place.folder / "data.etcd",
        logger=rng.choice(("capnslog", "zap", "zap")),
        scheme=scheme,
    )


def _alert(rng: random.Random, member: Member, *titles: str) -> tuple[str, str]:
    who = member.cast
    say = ("", f"etcd cluster {_TOKEN} on {who.host}", f"{who.service} fails")
    return rng.choice((*titles, "HighErrorRate", f"{who.service} error rate")), rng.choice(say)


def space_exceeded(place: Place, rng: random.Random) -> Told:
    """Keys fill the quota of the database, an alarm is raised, and writes are refused."""
    member = make(place, rng)
    who = member.cast
    quota_mb = rng.randint(2, 5)
    member.start("--quota-backend-bytes", str(quota_mb * 2**20))
    member.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    big = (Route(name="save state", steps=(f"put /{who.table}/state/{{uid}} {{blob}}",), ok=204),)
    member.serve(rng, service=who.other, routes=big, threads=2, pause_s=0.05, quiet=True)
    place.wait_for("database space exceeded", since=broke, timeout_s=25)
    let_run(rng, 2.0, 3.5)
    return member.told(
        cause=f"the database of etcd on {who.host} has reached its quota of {quota_mb} MB, so writes are refused",
        truth=("database space exceeded", "NOSPACE"),
        broke_at=broke,
        alert=_alert(rng, member, "etcdDatabaseQuotaLowSpace", "etcdBackendQuotaLowSpace"),
        severity="critical",
    )


def disk_full(place: Place, rng: random.Random) -> Told:
    """The disk under the write-ahead log is full."""
    with small_disk(place, "volume", mb=rng.uniform(130, 136)) as disk:
        member = make(place, rng, data=disk / "member")
        who = member.cast
        member.start("--snapshot-count", "100000")
        member.serve(rng, pause_s=0.35)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        filler = disk / "backup.tar"
        free = quietly(("stat", "-f", "-c", "%a %S", str(disk)), what="stat").split()
        filler.write_bytes(b"\0" * max(0, int(free[0]) * int(free[1]) - rng.randint(50, 400) * 1024))
        big = (Route(name="save state", steps=(f"put /{who.table}/state/{{uid}} {{blob}}",), ok=204),)
        member.serve(rng, service=who.other, routes=big, threads=2, pause_s=0.05, quiet=True)
        place.wait_for("no space left on device", since=broke, timeout_s=25)
        let_run(rng, 1.5, 3.0)
        return member.told(
            cause=f"the disk of etcd on {who.host} is full",
            truth=("no space left on device",),
            broke_at=broke,
            alert=_alert(rng, member, "NodeFilesystemAlmostOutOfSpace", "etcdMembersDown"),
            severity="critical",
        )


def slow_disk(place: Place, rng: random.Random) -> Told:
    """Writes take far longer than they should, as on a slow or busy disk."""
    member = make(place, rng)
    who = member.cast
    process = member.start()
    member.serve(rng, pause_s=0.2, threads=3)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    delay_ms = rng.choice((180, 300, 500, 1200))
    slower = ("-e", "trace=fdatasync,fsync", "-e", f"inject=fdatasync,fsync:delay_enter={delay_ms * 1000}")
    place.start("strace", ("strace", "-f", "-qq", "-o", "/dev/null", *slower, "-p", str(process.pid)))
    place.wait_for("took too long|sync duration|slow fdatasync", source=member.name, since=broke, timeout_s=25)
    let_run(rng, 3.0, 4.5)
    return member.told(
        cause=f"etcd on {who.host} takes far too long for its requests, as its disk is too slow",
        truth=(
            "took too long",
            "sync duration",
            "slow fdatasync",
            "failed to send out heartbeat on time",
            "overloaded",
        ),
        broke_at=broke,
        alert=_alert(rng, member, "etcdHighFsyncDurations", "etcdHighCommitDurations", "HighLatency"),
    )


def lost_quorum(place: Place, rng: random.Random) -> Told:
    """A member can no longer reach its peers, so there is no leader."""
    first = make(place, rng)
    who = first.cast
    members = [first]
    for number in (2, 3):
        members.append(
            Member(
                place=place,
                cast=who,
                name=f"{first.name}-m{number}",
                client=place.free_port(),
                peer=place.free_port(),
                data=place.folder / f"m{number}.etcd",
                logger=first.logger,
            )
        )
    cluster = ",".join(f"{member.name}=http://127.0.0.1:{member.peer}" for member in members)
    processes = [member.start(cluster=cluster, ready=False) for member in members]
    for member in members:
        place.wait_for(READY, source=member.name)
    first.serve(rng, pause_s=0.4, target={"timeout_s": 1.5})
    let_run(rng, 1.5, 2.5)
    broke = place.now
    for process in processes[1:]:
        process.send_signal(signal.SIGSTOP if rng.random() < 0.4 else signal.SIGKILL)
    place.wait_for("lost leader|no leader|lost the TCP streaming", source=first.name, since=broke, timeout_s=25)
    let_run(rng, 4.0, 6.0)
    hide = {str(member.client): "2379" for member in members[1:]} | {str(member.peer): "2380" for member in members[1:]}
    return first.told(
        cause=f"{first.name} cannot reach its peers, so the cluster has no leader and takes no writes",
        truth=(
            "lost leader",
            "no leader",
            r"lost (the|TCP) .*stream",
            "lost TCP streaming connection",
            "prober detected unhealthy status",
            "health check for peer .* could not connect",
            "failed to reach the peer URL",
            r"dial tcp .*(connection refused|i/o timeout)",
            "peer became inactive",
            "became inactive",
        ),
        broke_at=broke,
        hide=hide,
        alert=_alert(rng, first, "etcdNoLeader", "etcdInsufficientMembers", "etcdMembersDown"),
        severity="critical",
    )


def wrong_login(place: Place, rng: random.Random) -> Told:
    """A password is changed, or a role loses a right."""
    member = make(place, rng)
    who = member.cast
    member.start()
    for words in (
        ("user", "add", "root:rootpw"),
        ("role", "add", "root"),
        ("user", "grant-role", "root", "root"),
        ("user", "add", f"{who.user}:first"),
        ("role", "add", "services"),
        ("role", "grant-permission", "services", "--prefix=true", "readwrite", f"/{who.table}/"),
        ("user", "grant-role", who.user, "services"),
        ("auth", "enable"),
    ):
        member.ask(*words)
    member.serve(rng, pooled=False, pause_s=0.45, target={"user": who.user, "password": "first"})
    let_run(rng, 1.0, 2.5)
    broke = place.now
    root = ("--user", "root:rootpw")
    if rng.random() < 0.5:
        member.ask(*root, "role", "revoke-permission", "services", "--prefix=true", f"/{who.table}/")
    else:
        other = {"user": who.user, "password": "wrong"} if rng.random() < 0.6 else {}
        member.serve(rng, service=who.other, pooled=False, pause_s=0.5, target=other)
    truth = (
        "authentication failed, invalid user ID or password",
        "invalid password",
        "permission denied",
        "user name is empty",
        "invalid auth",
    )
    place.wait_for("|".join(truth), since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return member.told(
        cause=f"etcd on {who.host} refuses a login or a right",
        entity=(who.user, who.other, who.service),
        truth=truth,
        broke_at=broke,
        alert=_alert(rng, member),
    )


def bad_configuration(place: Place, rng: random.Random) -> Told:
    """A restart with options that etcd does not take."""
    member = make(place, rng)
    who = member.cast
    process = member.start()
    member.serve(rng, pause_s=0.45)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(process)
    wrong = rng.choice(
        (
            ("--quota-backend-byte", "8589934592"),
            ("--heartbeat-interval", "fast"),
            ("--election-timeout", "200", "--heartbeat-interval", "100"),
            ("--listen-metrics-urls", "127.0.0.1:2381"),
            ("--initial-cluster-state", "running"),
            ("--auto-compaction-retention", "1hour"),
            ("--cert-file", "/etc/etcd/pki/server.crt", "--key-file", "/etc/etcd/pki/server.key"),
            ("--auto-compaction-mode", "daily"),
            ("--client-cert-auth", "maybe"),
        )
    )
    if wrong[0] == "--cert-file":
        member = Member(**{**vars(member), "scheme": "https"})
    for _ in range(rng.randint(1, 3)):
        member.start(*wrong, ready=False).wait(20)
        let_run(rng, 0.8, 1.5)
    return member.told(
        cause=f"etcd on {who.host} does not start with the options {' '.join(wrong)}",
        entity=(wrong[0].strip("-"), wrong[1], who.host),
        truth=(
            "flag provided but not defined",
            "invalid value",
            "error verifying flags",
            "should be at least|failed to verify flags",
            r"open /etc/etcd/pki",
            r"error parsing \w+|invalid boolean|(unknown|undefined|unsupported).*compaction",
        ),
        broke_at=broke,
        alert=_alert(rng, member, "etcdMembersDown"),
        severity="critical",
    )


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The member's certificate expires while services connect by TLS."""
    member = make(place, rng, scheme="https")
    who = member.cast
    healthy_s = rng.uniform(4.0, 5.5)
    folder = certificate(place, "server", host=who.host, lasts_s=healthy_s)
    expires = place.now + healthy_s - 1.5
    member.start("--cert-file", str(folder / "server.crt"), "--key-file", str(folder / "server.key"))
    member.serve(rng, pause_s=0.5, target={"ca": str(folder / "ca.crt")})
    place.wait_for("certificate has expired", timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return member.told(
        cause=f"the TLS certificate of etcd on {who.host} has expired",
        entity=who.host,
        truth=("certificate has expired", "expired certificate", "remote error: tls", "rejected connection.*tls: "),
        broke_at=expires,
        alert=_alert(rng, member, "etcdGRPCRequestsFailed"),
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """The member is restarted on purpose; clients come back. A false alarm."""
    member = make(place, rng)
    who = member.cast
    process = member.start()
    member.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.0)
    broke = place.now
    place.stop(process)
    let_run(rng, 0.2, 0.8)
    member.start()
    mended = place.now
    let_run(rng, 2.0, 3.5)
    return member.told(
        cause=f"etcd on {who.host} was restarted as planned, and its clients are back",
        truth=("received terminated signal, shutting down", "received signal; shutting down", READY),
        broke_at=broke,
        mended_at=mended,
        alert=_alert(rng, member, "etcdMembersDown"),
        severity="info",
    )


def daily_load(place: Place, rng: random.Random) -> Told:
    """A start, traffic, compaction and a defragmentation."""
    member = make(place, rng)
    member.start("--snapshot-count", rng.choice(("20", "100000")))
    member.serve(rng, pause_s=rng.uniform(0.2, 0.4))
    let_run(rng, 1.5, 2.5)
    if rng.random() < 0.7:
        member.ask("compact", "3")
        member.ask("defrag")
    let_run(rng, 1.0, 2.5)
    return member.told(cause="nothing is wrong: etcd serves and compacts", entity="", severity="info")


FAULTS = (
    staged(FAMILY, "disk_storage_full", NEEDS, space_exceeded),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), disk_full),
    staged(FAMILY, "database_slow_or_locked", (*NEEDS, "strace"), slow_disk),
    staged(FAMILY, "network_connectivity", NEEDS, lost_quorum),
    staged(FAMILY, "authn_authz", NEEDS, wrong_login),
    staged(FAMILY, "config_env_error", NEEDS, bad_configuration),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), expired_certificate),
    staged(FAMILY, "benign_false_alarm", NEEDS, planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, daily_load, kind="healthy"),
)
