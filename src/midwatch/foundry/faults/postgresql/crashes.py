"""PostgreSQL's processes are killed, or restarted as planned."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace

from midwatch.foundry.faults.postgresql.server import READY, Cluster, make
from midwatch.foundry.place import Place
from midwatch.foundry.stage import Route, Told, cast, let_run


def _busy(place: Place, rng: random.Random) -> Cluster:
    """A cluster under load, with a report that runs long; returned when the report has run for a while."""
    who = cast(rng)
    settings = {"restart_after_crash": "on", "max_parallel_workers_per_gather": 0}
    cluster = make(place, rng, who, settings=settings)
    cluster.start()
    cluster.serve(rng, pause_s=rng.uniform(0.3, 0.5))
    let_run(rng, 1.0, 2.5)
    report = rng.choice(
        (
            "SELECT a.note, b.note FROM {t} a CROSS JOIN {t} b CROSS JOIN {t} c CROSS JOIN {t} d ORDER BY 1, 2",
            "SELECT count(*) FROM generate_series(1, 90000000) n WHERE md5(n::text) LIKE 'ab%'",
            "SELECT note, string_agg(state, ',') FROM {t} CROSS JOIN generate_series(1, 900000) GROUP BY note",
        )
    ).format(t=who.table)
    cluster.serve(
        rng, service=who.other, routes=(Route(name="GET /reports/full", steps=(report,)),), threads=1, pause_s=0.2
    )
    place.wait_until(lambda: bool(_running_report(cluster)), timeout_s=20, what="the report")
    let_run(rng, 0.3, 0.9)
    return cluster


def _running_report(cluster: Cluster) -> list[int]:
    found = cluster.sql(
        "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query ~ 'generate_series|CROSS' "
        "AND pid <> pg_backend_pid()"
    )
    return [int(line) for line in found.split()]


def _kill(cluster: Cluster, signal_number: int) -> int:
    pid = _running_report(cluster)[0]
    os.kill(pid, signal_number)
    return pid


def killed_for_memory(place: Place, rng: random.Random) -> Told:
    """A backend is killed as the kernel kills for memory; the kernel's own words are written by hand."""
    cluster = _busy(place, rng)
    who = cluster.cast
    broke = place.now
    pid = _running_report(cluster)[0]
    since_boot = rng.uniform(90_000, 4_000_000)
    resident_kb = rng.randint(900_000, 14_000_000)
    virtual_kb = resident_kb + rng.randint(200_000, 900_000)
    group = rng.choice(("/system.slice/postgresql@15-main.service", "/system.slice/postgresql.service"))
    words = [
        "postgres invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0",
        f"oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg={group},"
        f"task=postgres,pid={pid},uid=101",
        f"Out of memory: Killed process {pid} (postgres) total-vm:{virtual_kb}kB, anon-rss:{resident_kb}kB, "
        f"file-rss:{rng.randint(0, 9000)}kB, shmem-rss:{rng.randint(1000, 180000)}kB, UID:101 "
        f"pgtables:{resident_kb // 480}kB oom_score_adj:0",
    ]
    for text in words[rng.choice((0, 0, 2)) :]:
        place.note("kernel", f"[{since_boot + place.now:.6f}] {text}")
    _kill(cluster, 9)
    place.wait_for(READY, source="postgres", since=broke, timeout_s=20)
    mended = place.now
    let_run(rng, 0.8, 2.0)
    return cluster.told(
        cause=f"the kernel killed a PostgreSQL backend on {who.host} since memory ran out; a query of {who.other} ran",
        entity="postgres",
        truth=(
            "oom-kill",
            "Out of memory: Killed process",
            r"was terminated by signal 9",
            r"Failed process was running",
        ),
        broke_at=broke,
        mended_at=mended,
        templated=True,
        alert=rng.choice((("PostgresqlRestarted", f"PostgreSQL on {who.host} restarted"), ("OomKill", who.host))),
        severity="critical",
    )


def segfault(place: Place, rng: random.Random) -> Told:
    """A backend dies of a segmentation fault, and the server restarts all others."""
    cluster = _busy(place, rng)
    who = cluster.cast
    broke = place.now
    number = rng.choice((11, 11, 11, 6, 7))
    _kill(cluster, number)
    place.wait_for(READY, source="postgres", since=broke, timeout_s=20)
    mended = place.now
    let_run(rng, 0.8, 2.0)
    return cluster.told(
        cause=f"a PostgreSQL backend on {who.host} crashed with signal {number} while it ran a query of {who.other}",
        entity=who.host,
        truth=(rf"was terminated by signal {number}", r"Failed process was running"),
        broke_at=broke,
        mended_at=mended,
        alert=rng.choice((("PostgresqlRestarted", f"PostgreSQL on {who.host} restarted"), ("HighErrorRate", ""))),
        severity="critical",
    )


def planned_restart(place: Place, rng: random.Random) -> Told:
    """The server is restarted on purpose; clients come back by themselves. A false alarm."""
    who = cast(rng)
    cluster = make(place, rng, who)
    server = cluster.start()
    cluster.serve(rng, pause_s=0.35)
    let_run(rng, 1.0, 2.5)
    broke = place.now
    server.send_signal(rng.choice((signal.SIGINT, signal.SIGINT, signal.SIGQUIT)))
    server.wait(20)
    let_run(rng, 0.2, 0.8)
    cluster.start()
    mended = place.now
    let_run(rng, 2.0, 4.0)
    told = cluster.told(
        cause=f"PostgreSQL on {who.host} was restarted as planned, and all clients are back",
        entity=who.host,
        truth=("received (fast|immediate) shutdown request",),
        broke_at=broke,
        mended_at=mended,
        alert=rng.choice(
            (("PostgresqlRestarted", f"PostgreSQL on {who.host} restarted"), (f"{who.service} error rate", ""))
        ),
        severity="info",
    )
    return replace(told, late=((READY, broke),))
