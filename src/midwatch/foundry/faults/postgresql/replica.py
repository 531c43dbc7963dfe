"""PostgreSQL in two: a standby that loses its primary, writes that go to a standby, a name that nobody knows."""

from __future__ import annotations

import random
from dataclasses import replace

from midwatch.foundry.faults.postgresql.server import ADMIN, Cluster, make
from midwatch.foundry.place import Place
from midwatch.foundry.relay import Relay
from midwatch.foundry.stage import Told, cast, give, let_run, perhaps_mended, quietly

STANDBY = "postgres-standby"


def _standby(primary: Cluster, rng: random.Random, port: int, settings: dict[str, object]) -> Cluster:
    """A standby that streams from the primary through `port`. It is not started."""
    place = primary.place
    data = place.folder / "standby"
    source = f"host=127.0.0.1 port={primary.port} user={ADMIN}"
    quietly(
        ("pg_basebackup", "-d", source, "-D", str(data), "-X", "stream", "--checkpoint=fast"),
        what="pg_basebackup",
        cwd=place.folder,
    )
    standby = replace(primary, data=data, port=place.free_port(), shown=STANDBY)
    chosen = {
        "port": standby.port,
        "unix_socket_directories": data,
        "primary_conninfo": f"host=127.0.0.1 port={port} user={ADMIN} application_name=standby1",
        "wal_retrieve_retry_interval": f"{rng.choice((300, 500, 900))}ms",
        **settings,
    }
    text = "".join(f"{key} = '{value}'\n" for key, value in chosen.items())
    with (data / "postgresql.conf").open("a", encoding="utf-8") as stream:
        stream.write(text)
    (data / "standby.signal").write_text("")
    give(data, primary.user)
    return standby


def _pair(place: Place, rng: random.Random, **settings: object) -> tuple[Cluster, Cluster, Relay]:
    who = cast(rng)
    hba = "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"
    primary = make(place, rng, who, hba=hba, settings={"wal_sender_timeout": "1s"})
    primary.start()
    relay = Relay("127.0.0.1", primary.port)
    standby = _standby(primary, rng, relay.port, settings)
    return primary, standby, relay


def _hide(standby: Cluster, relay: Relay) -> dict[str, str]:
    return {str(standby.port): "5432", str(relay.port): "5432", "/srv/standby": "/var/lib/postgresql/15/standby"}


def lost_primary(place: Place, rng: random.Random) -> Told:
    """The network between a standby and its primary is cut: refused, or silent until a timeout."""
    primary, standby, relay = _pair(place, rng, wal_receiver_timeout="1s")
    who = primary.cast
    with relay:
        standby.start()
        primary.serve(rng, pause_s=0.3)
        place.wait_for("started streaming WAL", source=STANDBY)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        silent = rng.random() < 0.4
        if silent:
            relay.go_silent()
        else:
            relay.cut()
        let_run(rng, 3.5, 5.0)
        mended = perhaps_mended(place, rng, 0.4, relay.mend, (1.5, 2.5))
        return primary.told(
            cause="the standby cannot reach its primary over the network, so replication stands still",
            entity=who.host,
            truth=(
                "could not connect to the primary server",
                "could not receive data from WAL stream",
                "could not send data to WAL stream",
                "unexpected EOF on standby connection",
                "terminating walreceiver due to timeout",
                "terminating walsender process due to replication timeout",
                "streaming replication receiver .* could not connect",
                r"^\s*Is the server running on that host and accepting",
            ),
            broke_at=broke,
            mended_at=mended,
            hide=_hide(standby, relay),
            alert=rng.choice(
                (("PostgresqlReplicationLag", f"standby of {who.host} lags"), ("PostgresqlReplicationBroken", ""))
            ),
        )


def written_standby(place: Place, rng: random.Random) -> Told:
    """After a change of addresses a service writes to a standby, which is read-only."""
    primary, standby, relay = _pair(place, rng)
    who = primary.cast
    with relay:
        standby.start()
        place.wait_for("started streaming WAL", source=STANDBY)
        old = primary.serve(rng, pause_s=0.3)
        let_run(rng, 1.0, 2.0)
        broke = place.now
        place.stop(old)
        standby.serve(rng, pause_s=0.35, parameters={"port": standby.port}, failing=rng.choice(("traceback", "line")))
        place.wait_for("in a read-only transaction", source=STANDBY, since=broke)
        let_run(rng, 2.5, 4.0)
        return primary.told(
            cause=f"{who.service} writes to a standby of {who.database}, which takes reads only",
            entity=who.database,
            truth=(r"cannot execute \w+ in a read-only transaction",),
            broke_at=broke,
            hide=_hide(standby, relay),
            alert=("HighErrorRate", f"writes of {who.service} fail"),
        )


def unknown_host(place: Place, rng: random.Random) -> Told:
    """A service comes up with a server name that no resolver knows."""
    who = cast(rng)
    cluster = make(place, rng, who)
    cluster.start()
    old = cluster.serve(rng, pause_s=0.3)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    place.stop(old)
    name = f"{who.host}.{rng.choice(('internal', 'prod.svc.cluster.local', 'db.corp', 'eu.example.net'))}"
    wrong = {"host": f"{who.host}.invalid", "hostaddr": "''"}
    cluster.serve(rng, pause_s=0.35, parameters=wrong, pooled=False, greeting=(f"database {who.database} at {name}",))
    place.wait_for("could not translate host name", since=broke)
    let_run(rng, 2.5, 4.0)
    return cluster.told(
        cause=f"the name {name} of the PostgreSQL server cannot be resolved",
        entity=name,
        truth=("could not translate host name",),
        broke_at=broke,
        hide={f"{who.host}.invalid": name},
        names={name: "host"},
        alert=("HighErrorRate", f"{who.service} answers 5xx to more than 5% of requests"),
    )
