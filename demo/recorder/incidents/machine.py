"""A full volume, a process killed for memory, and a Redis that may not grow."""

from __future__ import annotations

import os
import random
import subprocess
import threading

from recorder import house
from recorder.incident import Alert, Incident
from recorder.servers import call, redis, version
from recorder.stage import Stage

_WWW = "10.20.0.20"


def _disk(stage: Stage) -> None:
    data = stage.folder("data")
    subprocess.run([house.find("mount"), "-t", "tmpfs", "-o", "size=24m", "data", str(data)], check=True)
    version(stage, "tar", "--version", word=3)
    stage.python("receipt_archive")
    stage.wait_port(_WWW, 8080)
    stage.begin()
    stage.python("node_agent", str(data), "2")
    numbers = iter(range(1, 100_000))

    def receipt(rng: random.Random) -> None:
        if rng.random() < 0.35:
            call(_WWW, 8080, "GET", f"/receipts/{rng.randrange(1, 60)}")
        else:
            call(_WWW, 8080, "PUT", f"/receipts/{next(numbers)}", body=rng.randbytes(rng.randrange(6_000, 30_000)))

    with stage.traffic(receipt, seed=2, rate_per_s=10, clients=1):
        stage.wait_for("receipt-archive", r" 201 ", count=60)
        stage.start("backup", ["/bin/sh", stage.shop("backup.sh")])
        stage.wait_for("receipt-archive", r"PUT .* 500 ", count=3)
        stage.fire()
        stage.wait_for("receipt-archive", r"PUT .* 500 ", count=12)
        stage.wait_for("backup", "failed with status")


DISK_FULL = Incident(
    name="disk-full",
    service="receipt-archive",
    delivery="alertmanager+loki",
    category="disk_storage_full",
    severity="critical",
    entity="/srv/shop/data",
    title="receipt-archive fails to store receipts",
    broken="A 24 MB tmpfs as data volume; the backup job keeps every archive on the same volume until it is full.",
    reasoning="ENOSPC in the service, in SQLite and in tar.",
    shows=(r"No space left on device", r"database or disk is full", r"used_percent=100"),
    needs=("tar",),
    root=True,
    run=_disk,
    alert=Alert(
        name="ReceiptsNotStored",
        severity="critical",
        summary="receipt-archive fails to store receipts",
        description="receipt-archive has answered 500 to several PUT requests in the last minute.",
        expr='increase(http_requests_total{service="receipt-archive",method="PUT",code="500"}[1m]) > 2',
    ),
)


def _kernel_log(stage: Stage) -> None:
    """Collect the kernel's report of a kill in our memory cgroup, and nothing else that the kernel says."""
    release, neutral = house.neutral_release()
    kmsg = os.open("/dev/kmsg", os.O_RDONLY)
    os.lseek(kmsg, 0, os.SEEK_END)

    def read() -> None:
        report: list[str] = []
        while True:
            try:
                record = os.read(kmsg, 8192).decode("utf-8", "replace")
            except OSError:  # EPIPE: the ring buffer went past us; the next read goes on
                continue
            text = record.split(";", 1)[-1].splitlines()[0].replace(release, neutral)
            if "invoked oom-killer" in text:
                report = []
            elif not report:
                continue
            report.append(text)
            if text.startswith(("Memory cgroup out of memory", "Out of memory", "oom_reaper")):
                if any(house.CGROUP in line for line in report):
                    for line in report:
                        stage.add("kernel", 0, line)
                report = []

    threading.Thread(target=read, daemon=True).start()


def _oom(stage: Stage) -> None:
    house.remove_cgroup()
    group = house.memory_cgroup()
    group.mkdir()
    v1 = (group / "memory.limit_in_bytes").exists()
    (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(96 * 2**20))
    stage.versions["kernel"] = house.neutral_release()[1]
    rng = random.Random(6)
    photos = stage.folder("photos")
    for number in range(52):
        side = rng.randrange(600, 2600)
        (photos / f"{8800 + number}").write_text(f"{side}x{side * 3 // 4}")
    (photos / "8839").write_text("11648x8736")  # a hundred-megapixel panorama among phone pictures
    _kernel_log(stage)
    stage.begin()
    stage.python("node_agent", str(stage.root), "3")
    worker = [house.find("python3"), stage.shop("thumbnailer.py")]
    stage.python("supervise", "--name", "thumbnailer", "--cgroup", str(group), *worker, name="thumbnailer")
    stage.wait_for("thumbnailer", "exited with code 137", count=2)
    stage.fire()
    stage.wait_for("thumbnailer", "exited with code 137", count=3)
    stage.wait_for("kernel", "Memory cgroup out of memory", count=3)


OOM_KILL = Incident(
    name="oom-kill",
    service="thumbnailer",
    delivery="loki+alertmanager",
    category="oom_memory",
    severity="high",
    entity="thumbnailer",
    title="thumbnailer keeps restarting",
    broken="A worker with a memory limit of 96 MiB decodes a photo that needs four times as much; the kernel "
    "kills it, the supervisor starts it again, and the same photo is still first in the queue.",
    reasoning="Exit code 137 and the kernel's own report of the kill.",
    shows=(r"exited with code 137", r"Memory cgroup out of memory", r"invoked oom-killer", r"oom-kill:constraint"),
    root=True,
    run=_oom,
    alert=Alert(
        name="WorkerRestarting",
        severity="warning",
        summary="thumbnailer keeps restarting",
        description="The worker of thumbnailer has restarted more than once in a minute; its queue does not shrink.",
        expr='increase(process_restarts_total{service="thumbnailer"}[1m]) > 1',
    ),
)


def _redis(stage: Stage) -> None:
    redis(stage, "maxmemory 6mb\nmaxmemory-policy noeviction\nsave 5 200\n")
    stage.begin()
    stage.python("cart_service")
    stage.wait_port(_WWW, 8080)

    def cart(rng: random.Random) -> None:
        number = rng.randrange(1, 300)
        if rng.random() < 0.4:
            call(_WWW, 8080, "GET", f"/carts/{number}")
        else:
            call(_WWW, 8080, "PUT", f"/carts/{number}", body=b'{"items": [' + b"17," * rng.randrange(10, 300) + b"0]}")

    with stage.traffic(cart, seed=10, rate_per_s=9, clients=3):
        stage.wait_for("cart-service", r" 201 ", count=60)
        stage.python("recommendations")
        stage.wait_for("cart-service", "not saved", count=6)
        stage.fire()
        stage.wait_for("cart-service", "not saved", count=30)


REDIS_FULL = Incident(
    name="redis-maxmemory",
    service="cart-service",
    delivery="loki+alertmanager",
    category="oom_memory",
    severity="critical",
    entity="redis",
    title="cart-service answers 503",
    broken="Redis with maxmemory 6mb and noeviction; a warm-up of recommendations fills it with keys that never "
    "expire, so that a cart can be read but not saved.",
    reasoning="What has run out is memory, and Redis says OOM; nobody is slowed down for asking too often, so it is "
    "not quota_rate_limit, although the limit is a configured one.",
    shows=(r"OOM command not allowed",),
    needs=("redis-server",),
    run=_redis,
    alert=Alert(
        name="HighErrorRate",
        severity="critical",
        summary="cart-service answers 503",
        description="More than 5% of the requests to cart-service have failed for the last minute.",
        expr='sum(rate(http_requests_total{service="cart-service",code=~"5.."}[1m])) / '
        'sum(rate(http_requests_total{service="cart-service"}[1m])) > 0.05',
    ),
)
