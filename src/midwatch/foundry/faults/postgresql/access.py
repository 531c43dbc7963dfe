"""PostgreSQL refuses: wrong password, no entry for the client, an unknown role, no right, an expired certificate."""

from __future__ import annotations

import random
from dataclasses import replace

from midwatch.foundry.faults.postgresql.server import Cluster, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Told, cast, certificate, let_run

_SCRAM = "host all all 127.0.0.1/32 scram-sha-256\n"


def _told(
    rng: random.Random, cluster: Cluster, *, broke: float, cause: str, truth: tuple[str, ...], entity: str
) -> Told:
    who = cluster.cast
    cluster.place.wait_for("|".join(truth), since=broke, timeout_s=20)
    let_run(rng, 2.0, 3.5)
    return cluster.told(
        cause=cause,
        entity=entity,
        truth=truth,
        broke_at=broke,
        alert=rng.choice(
            (
                ("HighErrorRate", f"{who.service} answers 5xx to more than 5% of requests"),
                (f"{who.service} down", f"no successful request of {who.service} for 1m"),
                ("PostgresqlAuthFailures", f"failed logins on {who.host}"),
            )
        ),
    )


def wrong_password(place: Place, rng: random.Random) -> Told:
    """The role's password is changed, and a service still uses the old one."""
    who = cast(rng)
    cluster = make(place, rng, who, hba=_SCRAM)
    cluster.start()
    cluster.serve(rng, pooled=False, pause_s=rng.uniform(0.3, 0.6))
    let_run(rng, 1.0, 2.5)
    broke = place.now
    cluster.sql(f"ALTER ROLE {who.user} PASSWORD 'rotated-{rng.getrandbits(24):06x}'")
    truth = ("password authentication failed for user", r"Connection matched pg_hba\.conf line")
    cause = f"{who.service} logs in as {who.user} with a wrong password"
    return _told(rng, cluster, broke=broke, cause=cause, truth=truth, entity=who.user)


def no_hba_entry(place: Place, rng: random.Random) -> Told:
    """An edit of pg_hba.conf leaves out the network, the role or the database of a service."""
    who = cast(rng)
    cluster = make(place, rng, who, hba=_SCRAM)
    cluster.start()
    cluster.serve(rng, pooled=False, pause_s=rng.uniform(0.3, 0.6))
    let_run(rng, 1.0, 2.5)
    broke = place.now
    rule = rng.choice(("host all all 10.250.0.0/16 scram-sha-256\n", "hostssl all all all scram-sha-256\n", ""))
    rule = rng.choice((rule, f"host all {who.user} 127.0.0.1/32 reject\n"))
    (cluster.data / "pg_hba.conf").write_text(f"local all all trust\n{rule}", encoding="utf-8")
    cluster.reload()
    cause = f"pg_hba.conf of {who.host} lets {who.user} of {who.service} not in"
    truth = ("no pg_hba.conf entry for host", "pg_hba.conf rejects connection for host")
    return _told(rng, cluster, broke=broke, cause=cause, truth=truth, entity=who.user)


def missing_role(place: Place, rng: random.Random) -> Told:
    """A service comes up with a role that nobody made."""
    who = cast(rng)
    cluster = make(place, rng, who, hba=rng.choice(("host all all 127.0.0.1/32 trust\n", _SCRAM)))
    cluster.start()
    cluster.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    role = rng.choice(("app_v2", "svc_reports", "tenant_admin", "analytics_ro"))
    cluster.serve(
        rng, service=who.other, pooled=False, parameters={"user": role}, greeting=(f"database role is {role}",)
    )
    truth = (f'role "{role}" does not exist', f'Role "{role}" does not exist', "password authentication failed for")
    cause = f"{who.other} logs in as {role}, a role that does not exist"
    told = _told(rng, cluster, broke=broke, cause=cause, truth=truth, entity=role)
    return replace(told, names={**told.names, role: "user"})


def permission_denied(place: Place, rng: random.Random) -> Told:
    """A right on a table or a schema is taken away."""
    who = cast(rng)
    cluster = make(place, rng, who)
    cluster.start()
    cluster.serve(rng, pause_s=0.4, pooled=False)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    revoke = rng.choice(
        (
            f"REVOKE ALL ON {who.table} FROM {who.user}",
            f"REVOKE INSERT, UPDATE ON {who.table} FROM {who.user}",
            f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {who.user}",
            f"REVOKE CONNECT ON DATABASE {who.database} FROM public",
        )
    )
    cluster.sql(revoke, database=who.database)
    truth = (r"permission denied for (table|database|sequence)", "User does not have CONNECT privilege")
    cause = f"{who.user} has no right on what {who.service} uses"
    return _told(rng, cluster, broke=broke, cause=cause, truth=truth, entity=who.user)


def expired_certificate(place: Place, rng: random.Random) -> Told:
    """The server's certificate, or a client's, expires while all run."""
    who = cast(rng)
    soon_s, later_s = rng.uniform(4.0, 5.5), 86400.0
    ends = rng.choice(("server", "server", "client"))
    rule = "hostssl all all 127.0.0.1/32 trust" + (" clientcert=verify-ca\n" if ends == "client" else "\n")
    cluster = make(place, rng, who, hba=rule)
    certificate(place, "server", host=who.host, lasts_s=soon_s if ends == "server" else later_s, user=cluster.user)
    folder = certificate(place, "client", host=who.user, lasts_s=soon_s if ends == "client" else later_s)
    expires = place.now + soon_s - 1.5
    settings = {
        "ssl": "on",
        "ssl_ca_file": folder / "ca.crt",
        "ssl_cert_file": folder / "server.crt",
        "ssl_key_file": folder / "server.key",
    }
    cluster.start(settings=settings)
    parameters: dict[str, object] = {"sslmode": "verify-full", "sslrootcert": folder / "ca.crt"}
    if ends == "client":
        parameters |= {"sslcert": folder / "client.crt", "sslkey": folder / "client.key"}
    cluster.serve(rng, pooled=False, pause_s=0.4, parameters=parameters)
    owner = who.host if ends == "server" else who.user
    cause = f"the TLS certificate of {owner} has expired, so connections to PostgreSQL fail"
    truth = ("certificate verify failed", "certificate expired", "certificate has expired")
    return _told(rng, cluster, broke=expires, cause=cause, truth=truth, entity=owner)
