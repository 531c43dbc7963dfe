"""What runs out, or is not given: memory, files, connections, disk, CPU, workers, a healthy answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from midwatch.foundry.props import kernel_kill, limited, memory_group, private
from midwatch.foundry.recording import Recording
from midwatch.foundry.services.kit import Kit, Scenes, calm, supervised, with_dependency
from midwatch.foundry.services.service import Service


def out_of_memory(service: Service, kit: Kit) -> Recording:
    """A report that needs more memory than there is."""
    wrap, env = kit.tight_memory(service)
    watcher = supervised(service, kit, lambda: service.start(wrap=wrap, env=env))
    with ExitStack() as stack:
        with_dependency(service, stack)
        process = watcher.start()
        service.ready()
        calm(service)
        broke_at = service.place.now
        heavy = [("GET", kit.heavy(service.rng), "")]
        service.traffic([*service.calls(), *heavy * 4], timeout_s=6).send(
            service.rng, 4.0, lambda: process.poll() is not None
        )
        if process.poll() is not None:
            service.place.stop(process)
            watcher.died(process.returncode)
        return service.record(
            category="oom_memory",
            truth=[kit.patterns["oom"]],
            broke_at=broke_at,
            severity="critical",
            alert=service.rng.choice(("errors", "restarts")),
            cause="{service} ran out of memory while building a report",
        )


def killed_by_kernel(service: Service, kit: Kit) -> Recording:
    """A report that needs more memory than its control group has, so that the kernel kills the service."""
    group = f"{service.name}.{service.rng.randrange(16**8):08x}"
    with ExitStack() as stack:
        with_dependency(service, stack)
        wrap = stack.enter_context(memory_group(kit.group_mb, group))
        watcher = supervised(service, kit, lambda: service.start(wrap=lambda command: wrap(kit.roomy(command))))
        process = watcher.start()
        watcher.say("started", pid=process.pid)
        service.ready()
        calm(service)
        broke_at = service.place.now
        heavy = [("GET", kit.heavy(service.rng) + "0", "")]
        service.traffic([*service.calls(), *heavy * 4], timeout_s=6).send(
            service.rng, 8.0, lambda: process.poll() is not None
        )
        service.place.stop(process)
        said = kernel_kill(group)
        service.place.note("kernel", "\n".join(said if service.rng.random() < 0.6 else (said[0], *said[-2:])))
        watcher.died(process.returncode)
        if service.rng.random() < 0.5:
            again = watcher.start()
            watcher.say("started", pid=again.pid)
            service.ready()
            service.place.stop(again, kill=True)
        return service.record(
            category="oom_memory",
            truth=[r"invoked oom-killer|oom-kill:|ut of memory: Killed process", r"SIGKILL"],
            broke_at=broke_at,
            severity="critical",
            alert=service.rng.choice(("errors", "restarts")),
            cause="{service} used more memory than its limit, so the kernel killed it",
        )


def out_of_files(service: Service, kit: Kit) -> Recording:
    """Files that are never closed, until no more may be opened."""
    service.place.write("data/catalogue.csv", "sku,price\n1,9.90\n")
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start(wrap=lambda command: limited(command, n=kit.open_files))
        service.ready()
        calm(service)
        broke_at = service.place.now
        service.traffic([*service.calls(), *[("GET", "/catalogue", "")] * 8], rate=60).send(
            service.rng, 8.0, lambda: service.heard(kit.patterns["files"], broke_at)
        )
        calm(service, least=0.8)
        return service.record(
            category="connection_exhaustion",
            truth=[kit.patterns["files"]],
            broke_at=broke_at,
            cause="{service} has too many open files, up to its limit",
        )


def pool_exhausted(service: Service, kit: Kit) -> Recording:
    """Connections that are lent and not given back, until the pool is empty."""
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start()
        service.ready()
        calm(service)
        broke_at = service.place.now
        calls = [*service.calls(), *[("GET", "/lend", "")] * 3]
        service.traffic(calls, rate=30, workers=6).send(service.rng, service.rng.uniform(1.8, 2.8))
        return service.record(
            category="connection_exhaustion",
            truth=[service.said("pool_exhausted")],
            broke_at=broke_at,
            cause="the connection pool of {service} is exhausted",
        )


def disk_full(service: Service, kit: Kit) -> Recording:
    """The volume that receipts are written to is small and gets full."""
    data = Path(service.env["DATA_DIR"])
    receipts, database = service.place.folder / "files", service.rng.random() < 0.3
    receipts.mkdir()
    service.env["DATA_DIR"] = str(data if database else receipts)
    size = service.rng.choice((96, 128, 200))
    wrap = lambda command: private(command, f"-t tmpfs -o size={size}k tmpfs {service.env['DATA_DIR']}")  # noqa: E731
    with ExitStack() as stack:
        with_dependency(service, stack)
        broke_at = service.place.now
        service.start(wrap=wrap, env={"RECEIPTS": "1", "RECEIPT_BYTES": str(service.rng.choice((9000, 15000, 20000)))})
        service.ready()
        service.traffic(rate=20).send(service.rng, 8.0, lambda: service.heard(kit.patterns["full"], broke_at))
        calm(service, least=0.8)
        return service.record(
            category="disk_storage_full",
            truth=[kit.patterns["full"]],
            broke_at=broke_at,
            cause="the disk that {service} writes to is full",
        )


def bad_volume(service: Service, kit: Kit) -> Recording:
    """The volume for receipts is missing, read-only, or not ours to write to."""
    kind = service.rng.choice(("missing", "readonly", "denied"))
    volume = service.place.folder / "volume"
    service.hide[str(volume)] = service.rng.choice(("/mnt/receipts", "/data", "/var/lib/app/files", "/mnt/nfs/export"))
    service.env["DATA_DIR"] = str(volume / "outgoing" if kind == "missing" else volume)
    if kind != "missing":
        volume.mkdir(mode=0o755)
    wrap: Callable[[Sequence[str]], list[str]] = list
    if kind == "readonly":
        wrap = lambda command: private(command, f"-t tmpfs -o ro,size=64k tmpfs {volume}")  # noqa: E731
    with ExitStack() as stack:
        with_dependency(service, stack)
        broke_at = service.place.now
        if kind == "denied":
            service.command = kit.user_command(service)
        service.start(wrap=wrap, user="nobody" if kind == "denied" else None, env={"RECEIPTS": "1"})
        service.ready()
        service.traffic().send(service.rng, service.rng.uniform(1.5, 2.5))
        return service.record(
            category="storage_volume_mount",
            accepted=("authn_authz",) if kind == "denied" else (),
            broke_at=broke_at,
            truth=[kit.patterns[f"volume_{kind}"]],
            entity=service.hide[str(volume)],
            names={service.hide[str(volume)]: "path"},
            cause=f"{{service}} cannot use its volume ({kind})",
        )


def busy(service: Service, kit: Kit) -> Recording:
    """Requests that cost seconds of CPU each, so that nothing else gets its turn."""
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start(env={"WATCH_CPU": "1"})
        service.ready()
        calm(service)
        broke_at = service.place.now
        search = [("GET", kit.slow_search(service.rng), "") for _ in range(3)]
        service.traffic([*service.calls(), *search], workers=6, timeout_s=4).send(
            service.rng, service.rng.uniform(3.5, 5.0)
        )
        return service.record(
            category="cpu_saturation",
            truth=[service.said("busy")],
            broke_at=broke_at,
            alert="latency",
            cause="{service} uses all of its CPU, so that requests wait",
        )


def failing_probe(service: Service, kit: Kit) -> Recording:
    """The supervisor's health check fails, so it restarts a program that may well be working."""
    rng = service.rng
    kind = rng.choice(("unready", "path", "port"))
    reasons = ("warm-up of the cache not finished", "last sync is 312 s old", "migrations pending", "leader not known")
    env = {"BROKEN": rng.choice(reasons)} if kind == "unready" else {}
    watcher = supervised(service, kit, lambda: service.start(env=env))
    wrong = service.place.free_port()
    address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(2, 250)}"
    why = f'Get "http://{address}:8081/healthz": dial tcp {address}:8081: connect: connection refused'
    if kind == "path":
        watcher.probe = rng.choice(("/health", "/ready", "/live", "/status"))
    elif kind == "port":
        watcher.probe_port = wrong
    with ExitStack() as stack:
        with_dependency(service, stack)
        broke_at = service.place.now
        for _ in range(rng.choice((1, 2))):
            process = watcher.start()
            watcher.say("started", pid=process.pid)
            service.ready()
            calm(service, least=0.3, most=0.6)
            watcher.probing(process, why, port=service.port)
        truth = [
            r"(?i)probe failed|health checks? (of \S+ )?failed|did not pass|failed liveness|unhealthy|failed checks"
        ]
        return service.record(
            category="health_probe",
            truth=[*truth, service.said("unready")],
            broke_at=broke_at,
            alert="restarts",
            cause="the health check of {service} fails, so it is restarted",
        )


def backlog(service: Service, kit: Kit) -> Recording:
    """More work than the consumers can do; some of it ends as dead letters."""
    failing = service.rng.random() < 0.5
    with ExitStack() as stack:
        with_dependency(service, stack)
        env = {
            "JOB_SECONDS": "0.02" if failing else "0.4",
            "WORKERS": "1",
            "QUEUE_LIMIT": str(service.rng.choice((4, 6, 8))),
            "JOB_FAILURES": "0.9" if failing else "0",
        }
        service.start(env=env)
        service.ready()
        broke_at = service.place.now
        service.traffic(rate=30, workers=5).send(service.rng, service.rng.uniform(3.0, 4.5))
        return service.record(
            category="queue_backlog",
            truth=[service.said("queue_high"), service.said("dead_letter")],
            broke_at=broke_at,
            alert="queue",
            cause="the jobs of {service} pile up faster than its workers do them",
        )


LIMITS: Scenes = {
    "oom": ("oom_memory", out_of_memory, ()),
    "oom-killed": ("oom_memory", killed_by_kernel, ("dmesg",)),
    "open-files": ("connection_exhaustion", out_of_files, ()),
    "pool": ("connection_exhaustion", pool_exhausted, ()),
    "disk-full": ("disk_storage_full", disk_full, ("unshare",)),
    "volume": ("storage_volume_mount", bad_volume, ("unshare",)),
    "busy": ("cpu_saturation", busy, ()),
    "probe": ("health_probe", failing_probe, ()),
    "backlog": ("queue_backlog", backlog, ()),
}
"""Name: category, how it is done, and what it needs."""
