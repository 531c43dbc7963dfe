"""Python services: real interpreters of several versions, their tracebacks, their logging."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import random
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from midwatch.foundry.place import Place
from midwatch.foundry.props import dependency, limited
from midwatch.foundry.recording import Recording
from midwatch.foundry.services.calm import CALM
from midwatch.foundry.services.defects import IN_CODE
from midwatch.foundry.services.kit import Defect, Kit, Release, faults_of
from midwatch.foundry.services.limits import LIMITS
from midwatch.foundry.services.outside import OUTSIDE
from midwatch.foundry.services.service import Runtime, Service

_SYSTEM = "/usr/bin/python3"
_NEEDED = (3, 8)


def _interpreters() -> list[str]:
    """Every Python here that is new enough for our service: the one that runs this, the system's, pyenv's."""
    found = [sys.executable, *([_SYSTEM] if Path(_SYSTEM).exists() else [])]
    for folder in sorted(Path("~/.pyenv/versions").expanduser().glob("3.*")):
        if tuple(int(part) for part in folder.name.split(".")[:2]) >= _NEEDED and (folder / "bin" / "python3").exists():
            found.append(str(folder / "bin" / "python3"))
    return found


def _command(place: Place, rng: random.Random) -> list[str]:
    flags = rng.choice(((), (), ("-X", "no_debug_ranges")))
    return [rng.choice(_interpreters()), "-B", *flags, "main.py"]


def _swaps(place: Place) -> Mapping[str, str]:
    homes = {str(Path(sys.base_prefix).resolve()): "/usr/local"}
    for folder in Path("~/.pyenv/versions").expanduser().glob("3.*"):
        homes[str(folder)] = "/usr/local"
    return homes


RUNTIME = Runtime(
    family="python",
    formats=("plain", "plain", "pid", "short", "pipes", "dashes", "thread", "json", "json-gcp", "json-ecs", "logfmt"),
    command=_command,
    swaps=_swaps,
)
_ADDRESS = {"name": "A. Reader", "address": {"country": "DE"}}
DEFECTS = (
    Defect(fields={"coupon": "STAFF"}, error=r"KeyError: 'percent'"),
    Defect(fields={"coupon": "BLACKWEEK"}, error=r"KeyError: 'BLACKWEEK'"),
    Defect(fields={"customer": None}, error=r"TypeError: 'NoneType' object is not subscriptable"),
    Defect(fields={"customer": {"address": {}}}, error=r"KeyError: 'country'"),
    Defect(fields={"customer": {"address": {"country": None}}}, error=r"AttributeError: 'NoneType' object has no attribute 'lower'"),
    Defect(fields={"lines": []}, error=r"ZeroDivisionError: division by zero"),
    Defect(fields={"lines": [{"price": "12,50"}]}, error=r"InvalidOperation: \[<class 'decimal.ConversionSyntax'>\]"),
    Defect(fields={"due": "31/12/2026"}, error=r"ValueError: time data '31/12/2026' does not match"),
    Defect(fields={"note": "//79"}, error=r"UnicodeDecodeError: 'utf-8' codec can't decode byte"),
    Defect(fields={"note": "abcde"}, error=r"binascii.Error: "),
    Defect(fields={"extra": "{'gift': 1}"}, error=r"JSONDecodeError: Expecting property name"),
    Defect(fields={"region": 3}, error=r"IndexError: list index out of range"),
    Defect(fields={"currency": "CHF"}, error=r"UnboundLocalError: "),
    Defect(fields={"points": "900"}, error=r"TypeError: '>' not supported between instances of 'str' and 'int'"),
    Defect(fields={"refund": 20, "paid": 10}, error=r"AssertionError: refund is larger"),
    Defect(fields={"lines": [{"price": "9.90", "category": "boots"}]}, error=r"RecursionError: maximum recursion depth exceeded"),
    Defect(fields={"lines": [{"price": "9.90", "category": "hats"}]}, error=r"KeyError: 'hats'"),
    Defect(fields={"postal": {"customer": None}}, error=r"TypeError: 'NoneType' object is not subscriptable", job=True),
    Defect(fields={"postal": {"customer": {"address": {"country": 49}}}}, error=r"AttributeError: 'int' object has no attribute 'lower'", job=True),
    Defect(fields={"postal": {"customer": {}}}, error=r"KeyError: 'address'", job=True),
    Defect(fields={"postal": {"customer": [1]}}, error=r"TypeError: list indices must be integers or slices, not str", job=True),
)  # fmt: skip
RELEASES = (
    Release(file="orders.py", before='lines = order.get("lines")', after='lines = order["positions"]', error=r"KeyError: 'positions'"),
    Release(file="orders.py", before='Decimal(line["price"])', after='Decimal(line["price_cents"]) / 100', error=r"KeyError: 'price_cents'"),
    Release(file="orders.py", before="(100 - percent) / 100", after="(1 - percent / 100)", error=r"TypeError: unsupported operand type\(s\) for \*: 'decimal.Decimal' and 'float'"),
    Release(file="orders.py", before="def due_date(order):", after="def due_on(order):", error=r"NameError: name 'due_date' is not defined", at_start=True),
    Release(file="store.py", before='os.environ.get("RELEASE_SCHEMA") == "2"', after="True", error=r"OperationalError: table orders has no column named currency|table orders has no column named currency"),
    Release(file="main.py", before="import upstream\n", after="import upstream\nfrom orders import net_total\n", error=r"ImportError: cannot import name 'net_total' from 'orders'", at_start=True),
    Release(file="main.py", before="import upstream\n", after="import upstream\nimport opentelemetry.trace\n", error=r"ModuleNotFoundError: No module named 'opentelemetry'", at_start=True),
    Release(file="main.py", before="self.store.insert(order_id, amount, time.time())", after="self.store.insert(order_id, amount)", error=r"TypeError: (Store\.)?insert\(\) missing 1 required positional argument: 'created'"),
    Release(file="upstream.py", before='json.dumps(body).encode()', after='json.dumps(body)', error=r"TypeError: POST data should be bytes|TypeError: .*bytes.*"),
)  # fmt: skip
SETTINGS = (
    ("PAYMENTS_TOKEN", None, r"KeyError: 'PAYMENTS_TOKEN'"),
    ("PAYMENTS_URL", None, r"KeyError: 'PAYMENTS_URL'"),
    ("DATABASE_PATH", None, r"KeyError: 'DATABASE_PATH'"),
    ("POOL_SIZE", None, r"KeyError: 'POOL_SIZE'"),
    ("DATA_DIR", None, r"KeyError: 'DATA_DIR'"),
    ("POOL_SIZE", "ten", r"ValueError: invalid literal for int\(\) with base 10: 'ten'"),
    ("WORKERS", "", r"ValueError: invalid literal for int\(\) with base 10: ''"),
    ("PAYMENTS_TIMEOUT", "2s", r"ValueError: could not convert string to float: '2s'"),
    ("PAYMENTS_URL", "payments:8080", r"ValueError: PAYMENTS_URL: unsupported scheme"),
    ("PORT", "eighty", r"ValueError: invalid literal for int\(\) with base 10: 'eighty'"),
    ("PORT", "99999", r"OverflowError: (bind\(\): )?port must be 0-65535"),
    ("LOG_LEVEL", "VERBOSE", r"ValueError: Unknown level: 'VERBOSE'"),
    ("LIMITS_FILE", "FILE", r"JSONDecodeError: "),
    ("LIMITS_FILE", "/etc/limits/missing.json", r"FileNotFoundError: \[Errno 2\].*missing\.json"),
)


def _tight_memory(service: Service) -> tuple[Callable[[Sequence[str]], list[str]], dict[str, str]]:
    kib = service.rng.choice((150_000, 200_000, 260_000))
    return lambda command: limited(command, v=kib), {"MALLOC_ARENA_MAX": "2"}


def _locked(service: Service, kit: Kit) -> Recording:
    """Another process keeps a transaction of the database file open."""
    with ExitStack() as stack:
        served = stack.enter_context(dependency())
        service.depends_on(served.port)
        service.start(env={"DATABASE_TIMEOUT": service.rng.choice(("0.1", "0.2", "0.4"))})
        service.ready()
        service.traffic().send(service.rng, 0.8)
        broke_at = service.place.now
        other = stack.enter_context(closing(sqlite3.connect(service.env["DATABASE_PATH"])))
        other.execute(service.rng.choice(("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")))
        service.traffic().send(service.rng, service.rng.uniform(1.5, 2.5))
        mended_at = None
        if service.rng.random() < 0.3:
            other.rollback()
            mended_at = service.place.now
            service.traffic().send(service.rng, 0.8)
        return service.record(
            category="database_slow_or_locked", truth=[r"database is locked"], broke_at=broke_at, mended_at=mended_at,
            cause="the SQLite database of {service} is locked by another process",
        )  # fmt: skip


KIT = Kit(
    runtime=RUNTIME,
    patterns={
        "oom": r"MemoryError|can't start new thread|Cannot allocate memory",
        "thread": r"Exception in thread ",
        "flag": r"KeyError: 'LOYAL'",
        "dns": r"Name or service not known|Temporary failure in name resolution|No address associated|Name does not resolve",
        "refused": r"Connection refused",
        "reset": r"Connection reset by peer",
        "close": r"Remote end closed connection without response",
        "deaf": r"timed out",
        "silent": r"timed out",
        "files": r"Too many open files",
        "tls_expired": r"certificate has expired",
        "tls_untrusted": r"self[- ]signed certificate|unable to get local issuer certificate",
        "tls_other": r"certificate is not valid for|doesn't match",
        "tls_alert": r"(?i)alert certificate expired",
        "full": r"No space left on device|database or disk is full",
        "volume_missing": r"No such file or directory",
        "volume_readonly": r"Read-only file system",
        "volume_denied": r"Permission denied",
    },
    defects=DEFECTS,
    releases=RELEASES,
    settings=SETTINGS,
    tight_memory=_tight_memory,
    heavy=lambda rng: f"/report?months={rng.choice((4000, 6000, 9000))}",
    slow_search=lambda rng: f"/search?q={'a' * rng.randrange(23, 26)}!",
    open_files=48,
    group_mb=64,
    user_command=lambda service: [_SYSTEM, "-B", "main.py"],
)
FAULTS = (
    *faults_of(KIT, {**IN_CODE, **LIMITS, **OUTSIDE, **CALM}, ()),
    *faults_of(KIT, {"sqlite-locked": ("database_slow_or_locked", _locked, ())}, ()),
)
