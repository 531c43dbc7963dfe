"""What stores and brokers need in order to be broken: names, users of them, small disks, certificates, a report."""

from __future__ import annotations

import json
import os
import platform
import pwd
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from midwatch.errors import FoundryError
from midwatch.foundry import apps
from midwatch.foundry.faults import Fault
from midwatch.foundry.place import Place
from midwatch.foundry.pools import listed
from midwatch.foundry.recording import Kind, RecordedLine, Recording

MAX_LINES = 300
_START, _BEFORE = 40, 20
_CODE = re.compile(r"\s+(raise|return|File|\^)[ ^]")
_KERNEL = "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1"
STYLES = ("plain", "dashes", "brackets", "json", "logfmt")
_SERVICES = listed("""
    orders-api checkout-web billing-worker catalog-api inventory-sync payments-api shipping-svc profile-api
    search-indexer notifier-svc ledger-api pricing-worker booking-web reviews-api loyalty-svc feed-builder
    media-api tickets-web claims-api fleet-tracker
""")
_DATABASES = listed("""
    shopdb crm_main ledger_prod fleetdata bookings_db hr_core warehouse2 portal_prod media_meta billing_eu
""")
_USERS = listed("app_rw svc_orders webuser backend_app reporting_ro etl_loader svc_core appadmin jobrunner svc_web")
_TABLES = listed(
    "invoices customers order_items shipments payments_log sessions_v2 products audit_trail parcels devices"
)
_QUEUES = listed("email.outbound order.events invoice-jobs thumbnails sms_send audit.stream webhook.retry export_jobs")
_HOSTS = listed("db-{n} store-{n} core-db-{n} prd-data-{n} eu1-db-{n} sql-{n}")


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Names of one run. No name is part of another, so that each can be renamed on its own."""

    service: str
    other: str
    database: str
    user: str
    table: str
    queue: str
    host: str
    address: str
    client: str
    version: str


def cast(rng: random.Random) -> Cast:
    """Draw the names of one run."""
    service, other = rng.sample(_SERVICES, 2)
    net = f"10.{rng.randint(0, 60)}.{rng.randint(0, 40)}"
    first, second = rng.sample(range(4, 250), 2)
    return Cast(
        service=service,
        other=other,
        database=rng.choice(_DATABASES),
        user=rng.choice(_USERS),
        table=rng.choice(_TABLES),
        queue=rng.choice(_QUEUES),
        host=rng.choice(_HOSTS).format(n=rng.randint(1, 9)),
        address=f"{net}.{first}",
        client=f"{net}.{second}",
        version=f"{rng.randint(1, 6)}.{rng.randint(1, 30)}.{rng.randint(0, 9)}",
    )


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a fault says about what it did; `staged` makes a recording of it and of what was heard.

    `truth` are patterns of lines that show the cause at or after `broke_at`; `late` are further patterns with their
    own moment (what shows a recovery only after it). Lines before `began_at` (a long start) and after `ended_at` (our
    own tidying up) are left out.
    `entity` is the first of its names that was printed. `hide` maps texts of this machine to what others print.
    """

    cause: str
    ended_at: float
    began_at: float = 0.0
    entity: str | tuple[str, ...] = ""
    truth: Sequence[str] = ()
    broke_at: float | None = None
    mended_at: float | None = None
    late: Sequence[tuple[str, float]] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    hide: Mapping[str, str] = field(default_factory=dict)
    alert: tuple[str, str] = ("", "")
    severity: str = "high"
    accepted: tuple[str, ...] = ()
    templated: bool = False


def staged(
    program: str,
    category: str,
    needs: Sequence[str],
    body: Callable[[Place, random.Random], Told],
    *,
    kind: Kind = "fault",
) -> Fault:
    """A fault from a function that breaks a program and tells what it did. It is named after the function."""
    name = f"{program}_{body.__name__.strip('_')}"

    def record(place: Place, rng: random.Random) -> Recording:
        told = body(place, rng)
        heard = place.lines(told.truth, since=told.broke_at or 0.0, hide={**_machine(), **told.hide})
        lines = _cut(tuple(_marked(line, told) for line in heard if told.began_at <= line.at <= told.ended_at))
        everything = "\n".join(f"{line.source} {line.text}" for line in lines)
        return Recording(
            id=f"{name}-{rng.getrandbits(32):08x}",
            program=program,
            fault=name,
            kind=kind,
            category=category,
            severity=told.severity,
            entity=next((name for name in _names(told.entity) if name in everything), ""),
            cause=told.cause,
            accepted=told.accepted,
            templated=told.templated,
            alert_title=told.alert[0],
            alert_message=told.alert[1],
            names={key: value for key, value in told.names.items() if key in everything},
            broke_at=_since(told.broke_at, told),
            mended_at=_since(told.mended_at, told),
            lines=lines,
        )

    return Fault(name=name, program=program, category=category, needs=tuple(needs), record=record)


def _names(entity: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entity,) if isinstance(entity, str) else entity


def _marked(line: RecordedLine, told: Told) -> RecordedLine:
    """A line at its time in the recording, marked if it shows the cause. Code of a stack trace never does."""
    late = any(line.at >= moment and re.search(pattern, line.text) for pattern, moment in told.late)
    truth = (line.truth or late) and not _CODE.match(line.text)
    return replace(line, at=line.at - told.began_at, truth=truth)


def _since(moment: float | None, told: Told) -> float | None:
    return None if moment is None else moment - told.began_at


def _machine() -> dict[str, str]:
    """What this machine says of itself, and what a plain Debian would say."""
    build = Path("/proc/version")
    return {
        **({build.read_text(encoding="utf-8").strip(): _KERNEL} if build.exists() else {}),
        platform.release(): "6.1.0-18-amd64",
        f"{Path(json.__file__).parents[1]}": "/usr/lib/python3.11",
        sys.executable: "/usr/bin/python3",
    }


def _cut(lines: tuple[RecordedLine, ...]) -> tuple[RecordedLine, ...]:
    """At most `MAX_LINES`: what comes after the start and shows nothing goes first, then the end."""
    spare = len(lines) - MAX_LINES
    if spare <= 0:
        return lines
    first = next((at for at, line in enumerate(lines) if line.truth), len(lines))
    dropped = min(spare, max(0, first - _START - _BEFORE))
    return (*lines[:_START], *lines[_START + dropped :])[:MAX_LINES]


def let_run(rng: random.Random, low_s: float, high_s: float) -> None:
    """Let what runs go on for a drawn time."""
    time.sleep(rng.uniform(low_s, high_s))


def perhaps_mended(
    place: Place, rng: random.Random, share: float, mend: Callable[[], object], runs_s: tuple[float, float]
) -> float | None:
    """Mend what is broken in a share of the runs and let it run on: when that was, None where it stays broken."""
    if rng.random() >= share:
        return None
    mend()
    mended = place.now
    let_run(rng, *runs_s)
    return mended


def user_if_root(name: str) -> str | None:
    """The user that a program which refuses root runs as: `name` where we are root, else ourselves."""
    return name if os.geteuid() == 0 else None


def give(path: Path, user: str | None) -> None:
    """Make a path and what is in it belong to a user."""
    if user is None:
        return
    entry = pwd.getpwnam(user)
    for item in (path, *path.rglob("*")):
        os.chown(item, entry.pw_uid, entry.pw_gid)


@contextmanager
def small_disk(place: Place, name: str, *, mb: float, user: str | None = None) -> Iterator[Path]:
    """A disk of a few megabytes at a folder of the place. Raises `FoundryError` where nothing may be mounted."""
    path = place.folder / name
    path.mkdir(parents=True, exist_ok=True)
    size = f"size={int(mb * 1024)}k,mode=0700"
    quietly(("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)), what="Mounting a small disk (root may)")
    try:
        give(path, user)
        yield path
    finally:
        place.close()
        quietly(("umount", "-l", str(path)), what="Unmounting a small disk")


def quietly(
    command: Sequence[str],
    *,
    what: str,
    timeout_s: float = 60.0,
    cwd: Path | None = None,
    user: str | None = None,
    text: str = "",
) -> str:
    """Run a program that is not part of the story, fed with `text`, and return what it printed.

    Raises `FoundryError` if it fails; `what` begins that sentence.
    """
    done = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=cwd,
        user=user,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    )
    if done.returncode:
        raise FoundryError(f"{what} failed: {done.stdout.strip()[-400:]}", "Is the program installed in full?")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Route:
    """Something that a service does: `steps` are texts for its driver, `weight` how often it is asked.

    With `refused`, a status, an error is an everyday thing of this route, told as a warning. `tells` (with one `%s`)
    says the last answer instead of a status, as a warning when that is a number above `limit`.
    """

    name: str
    steps: Sequence[str]
    ok: int = 200
    weight: float = 1.0
    refused: int = 0
    tells: str = ""
    limit: int = 0


def serve(
    place: Place,
    rng: random.Random,
    service: str,
    *,
    driver: str,
    target: Mapping[str, Any],
    routes: Sequence[Route],
    version: str = "1.4.2",
    threads: int = 2,
    pause_s: float = 0.3,
    pooled: bool = True,
    failing: str | None = None,
    style: str | None = None,
    quiet: bool = False,
    greeting: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start a service (apps/service.py) that uses a store through a driver of `apps`; it is heard under its name.

    `failing` says how it tells of an error (`traceback`, `line`, `retry`, or `bare`, which never names the cause).
    """
    home = place.folder / service
    if not home.exists():
        home.mkdir()
        for path in sorted(Path(apps.__path__[0]).glob("*.py")):
            shutil.copy(path, home / path.name)
        home.chmod(0o755)
    plan = {
        "service": service,
        "version": version,
        "style": style or rng.choice(STYLES),
        "driver": driver,
        "target": dict(target),
        "routes": [vars(route) for route in routes],
        "threads": threads,
        "pause_s": pause_s,
        "pooled": pooled,
        "failing": failing or rng.choice(("traceback", "line", "line", "retry")),
        "quiet": quiet,
        "greeting": list(greeting),
        "seed": rng.getrandbits(32),
    }
    path = place.write(f"{service}/plan-{rng.getrandbits(24):06x}.json", json.dumps(plan))
    return place.start(service, (sys.executable, "-u", "service.py", str(path)), cwd=home)


def certificate(place: Place, name: str, *, host: str, lasts_s: float, user: str | None = None) -> Path:
    """Make `name.crt` and `name.key` in the folder `tls` of the place, beside the `ca.crt` that signed them.

    They are for `host` and expire in `lasts_s` (whole seconds, rounded down). Returns the folder; `user` may read it.
    """
    folder = place.folder / "tls"
    folder.mkdir(exist_ok=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    between = ("-startdate", _openssl_time(-90 * 86400), "-enddate", _openssl_time(lasts_s))
    signer = ("-config", "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key")
    commands: list[tuple[str, ...]] = [
        ("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}"),
        ("ca", "-batch", "-notext", *signer, "-in", f"{name}.csr", "-out", f"{name}.crt", *between),
    ]
    if not (folder / "ca.crt").exists():
        (folder / "index.txt").write_text("")
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=x\n[x]\ndatabase=index.txt\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
            "rand_serial=yes\nunique_subject=no\nx509_extensions=e\n[p]\ncommonName=supplied\n"
            f"[e]\nsubjectAltName=DNS:{host},DNS:localhost,IP:127.0.0.1\n"
        )
        ca = ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "3650", "-subj", "/CN=Internal CA")
        commands.insert(0, ca)
    for command in commands:
        quietly(("openssl", *command), what="openssl", cwd=folder)
    (folder / f"{name}.key").chmod(0o600)
    for path in (folder / f"{name}.key", folder / f"{name}.crt"):
        give(path, user)
    folder.chmod(0o755)
    return folder


def _openssl_time(from_now_s: float) -> str:
    return time.strftime("%y%m%d%H%M%SZ", time.gmtime(time.time() + from_now_s))
