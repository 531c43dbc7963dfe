"""Small recordings and bank entries to compose incidents of. Telling lines hold the word TELLING, old names `old`."""

from __future__ import annotations

from pathlib import Path

from midwatch.foundry import bank
from midwatch.foundry.bank import Entry
from midwatch.foundry.recording import Kind, RecordedLine, Recording

OLD_NAMES = {"oldshop-api": "service", "olddb": "database", "olduser": "user", "old-db-3": "host"}
_BANK = {
    "oom_memory.toml": """
[[entry]]
program = "kubernetes"
shape = ["klog", "plain", "json"]
entity = "{pod}"
alert = ["KubePodCrashLooping {pod}"]
cause = "{pod} was killed"
lines = ["TELLING killed process {pid} ({service})", "@warn TELLING pod {pod} was evicted"]
symptoms = ["back-off restarting {pod}"]
before = ["started container {service}"]
""",
    "ci_test_failure.toml": """
[[entry]]
program = "pytest"
shape = ["gha", "plain"]
entity = "{test}"
cause = "{test} fails"
lines = ["TELLING FAILED tests/x.py::{test} - assert 1 == 2"]
before = ["collected {n} items"]
[[entry]]
program = "go-test"
shape = ["gha"]
entity = "{test}"
cause = "{test} fails"
lines = ["TELLING --- FAIL: {test} (0.01s)"]
""",
    "queue_backlog.toml": """
[[entry]]
program = "kafka"
shape = ["java", "logfmt", "json"]
entity = "{topic}"
cause = "{topic} is not consumed"
lines = ["TELLING lag of {topic} is {n}", "  TELLING of partition {n2:0-9}"]
""",
    "benign_false_alarm.toml": """
[[entry]]
program = "prometheus"
shape = ["logfmt"]
cause = "the watchdog alert always fires"
alert = ["Watchdog"]
scary = ["alert Watchdog is firing"]
lines = ["@info TELLING this alert is meant to fire always"]
""",
    "healthy.toml": """
[[entry]]
program = "nginx"
shape = ["access"]
lines = ['{ip} - - [{clf}] "GET /{table} HTTP/1.1" 200 {n} "-" "curl/8.5.0"']
[[entry]]
program = "java"
shape = ["java", "json"]
lines = ["GET /{table}/{n} 200 {ms}ms", "@warn retry of {domain} succeeded"]
[[entry]]
program = "redis"
shape = ["plain"]
lines = ["1:M {day} * Background saving terminated with success"]
[[entry]]
program = "pytest"
shape = ["gha"]
lines = ["tests/x.py::{test} PASSED"]
""",
}


def bank_of(folder: Path) -> tuple[Entry, ...]:
    """A small bank of two categories of faults, one of jobs, a false alarm and healthy programs."""
    for name, text in _BANK.items():
        (folder / name).write_text(text, encoding="utf-8")
    return bank.load(folder)


def recorded(program: str = "postgresql", kind: Kind = "fault", category: str = "connection_exhaustion") -> Recording:
    """A recording of twelve seconds: a service that loses its database, and comes back."""
    began = "2026-10-02 13:32:"
    lines = [
        RecordedLine(at=0.1, source="postgres", text=f"{began}01.100 UTC [4711] LOG:  listening on 127.0.0.1:5432"),
        RecordedLine(at=1.0, source="oldshop-api", text='time="2026-10-02T13:32:02Z" level=info msg="GET / 200"'),
        RecordedLine(
            at=3.0,
            source="postgres",
            text=f"{began}04.000 UTC [4712] olduser@olddb FATAL:  TELLING sorry, too many clients already",
            truth=kind == "fault",
        ),
        RecordedLine(
            at=3.2,
            source="oldshop-api",
            text='time="2026-10-02T13:32:04Z" level=error msg="TELLING no connection to old-db-3 (127.0.0.1:40123)"',
            truth=kind == "fault",
        ),
        RecordedLine(at=3.201, source="oldshop-api", text="  at connect (olddb)"),
        RecordedLine(at=12.0, source="oldshop-api", text='time="2026-10-02T13:32:13Z" level=info msg="GET / 200"'),
    ]
    if kind == "healthy":
        lines = [line for line in lines if "TELLING" not in line.text]
    return Recording(
        id=f"{program}_{kind}/0",
        program=program,
        fault=f"{program}_{kind}",
        kind=kind,
        category="" if kind == "healthy" else category,
        entity="old-db-3" if kind == "fault" else "",
        cause="oldshop-api finds no free connection of olddb" if kind == "fault" else "",
        alert_title="oldshop-api is down" if kind == "fault" else "",
        names=dict(OLD_NAMES),
        broke_at=2.5 if kind == "fault" else None,
        lines=tuple(lines),
    )


def recordings() -> list[Recording]:
    """A fault and healthy times of a program that may be learnt from, and of one that may not."""
    return [
        recorded(),
        recorded(kind="healthy"),
        recorded("redis", category="oom_memory"),
        recorded("redis", kind="healthy"),
    ]
