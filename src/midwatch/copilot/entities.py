# ruff: noqa: E501 - a pattern is easier to read on one line
"""What is it about? Names of services, hosts, units, databases, files and processes, mined from the shown lines and
the alert.

The result is a closed list: a model may choose one of these or `unknown`, never invent a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from midwatch.copilot.model import Case, EvidenceLine

MAX_ENTITIES = 6
MAX_NAME_CHARS = 80

_Q = r"\\?[\"'`«]"
_FINDERS: tuple[tuple[float, re.Pattern[str]], ...] = (
    (
        4.0,
        re.compile(
            rf"\b(?:pod|deployment|statefulset|daemonset|replicaset|cronjob|ingress|configmap|secret|persistentvolumeclaim|pvc|storageclass)s?(?:\.apps)?[ /=:]+{_Q}?([a-z0-9][\w.-]{{2,70}}(?:/[a-z0-9][\w.-]{{1,70}})?)",
            re.I,
        ),
    ),
    (
        4.0,
        re.compile(
            rf"\b(?:database|db|schema|relation|table|role|user|topic|queue|bucket|volume|group|service|upstream|backend|host|hostname|server|cluster|node|container|image|unit|job|lookup|app)\b(?: name)?[ =:]*{_Q}([\w.:/@-]{{2,78}}){_Q}",
            re.I,
        ),
    ),
    (4.0, re.compile(r"\b(?:killed process \d+,? ?\(|process \d+ \()([\w.:@-]{2,40})\)", re.I)),
    (
        3.5,
        re.compile(
            r"\b(?:lookup|resolve|resolving|host not found in upstream \"|getaddrinfo \w+|unknownhostexception:|unknown host|host:) ?['\"(]?([a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)*(?:\.[a-z]{2,}))\b",
            re.I,
        ),
    ),
    (3.0, re.compile(r"\b([\w@-]{2,50}\.(?:service|socket|timer|mount))\b")),
    (
        3.0,
        re.compile(
            r"(?:\b(?:https?|postgres(?:ql)?|mysql|redis|amqp|mongodb|kafka|tcp|grpc)://)(?:[^@\s/]{1,60}@)?([a-z0-9][\w.-]{1,60}(?::\d{2,5})?)",
            re.I,
        ),
    ),
    (
        2.5,
        re.compile(
            r"\b([a-z][a-z0-9]*(?:-[a-z0-9]+){0,4}-(?:service|svc|api|db|worker|gateway|server|proxy|queue|consumer|frontend|backend|cache|primary|replica))\b"
        ),
    ),
    (
        2.0,
        re.compile(
            r"(?<![\w.:/])((?:\d{1,3}\.){3}\d{1,3}:\d{2,5}|localhost:\d{2,5}|[a-z][a-z0-9-]*(?:\.[a-z0-9-]+){1,4}:\d{2,5})\b"
        ),
    ),
    (
        2.0,
        re.compile(
            r"(?<![\w.:/@-])([a-z][a-z0-9-]*(?:\.[a-z0-9-]+){0,3}\.(?:com|net|org|io|internal|local|svc|dev|cloud|lan|corp|example|test|invalid|cluster\.local))\b"
        ),
    ),
    (
        2.0,
        re.compile(
            r"(?<![\w.:/<])(?<!GET )(?<!POST )(?<!PUT )(?<!HEAD )(?<!DELETE )(?<!PATCH )(?!/\w+/[\w-]*\d)(/(?:[\w.@+-]+/){1,8}[\w.@+-]{1,60})"
        ),
    ),
    (1.5, re.compile(r"(?<![\w/.-])((?:[\w-]+/){1,6}[\w-]+\.(?:py|js|ts|tsx|go|java|rb|rs|c|cc|cpp|h|kt|php))\b")),
    (2.0, re.compile(r"^(?:[A-Z]+ )?([a-zA-Z][\w.@/-]{1,40}): ")),
    (1.0, re.compile(r"(?<![\w.:/])((?:\d{1,3}\.){3}\d{1,3})\b")),
)
_COMMON = frozenset(
    [
        "unknown",
        "error",
        "warning",
        "info",
        "debug",
        "fatal",
        "critical",
        "null",
        "none",
        "true",
        "false",
        "the",
        "this",
        "that",
        "localhost",
        "default",
        "main",
        "root",
        "public",
        "stdout",
        "stderr",
        "message",
        "error:",
        "failed",
        "exception",
        "java.lang",
        "log",
        "logs",
        "text",
        "test",
        "host",
        "name",
        "is",
        "not",
    ]
)
_BYSTANDERS = frozenset(
    [
        "kernel",
        "systemd",
        "supervisor",
        "supervisord",
        "cron",
        "kubelet",
        "dockerd",
        "containerd",
        "python",
        "python3",
        "node",
        "java",
    ]
)
"""Programs that tell of others' troubles, and names that say nothing about whose process it is."""
_ADDRESS = re.compile(r"^(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?$")
_SUBJECTS = {
    "dns_resolution": re.compile(r"^[a-z][\w-]*(?:\.[\w-]+)*\.[a-z]{2,}$", re.I),
    "tls_cert_expiry": re.compile(r"^[a-z][\w-]*(?:\.[\w-]+)*\.[a-z]{2,}(?::\d+)?$", re.I),
    "disk_storage_full": re.compile(r"^/(?!.*\.(?:py|js|go|java|rb|rs)$)"),
}
_NOT_HOST = re.compile(
    r"\.(?:py|js|ts|tsx|go|java|log|txt|json|ya?ml|conf|so|sh|html?|md|xml|jar|exe|dll|c|h|cc|cpp)(?::\d+)?$", re.I
)
_PATH_NOISE = re.compile(r"^/(?:dev/null|usr/(?:bin|lib|local/(?:bin|lib))/|lib/|proc/|HTTP/)")


def find(case: Case, lines: Sequence[EvidenceLine], telling: set[str], category: str = "") -> tuple[str, ...]:
    """Names found, the likeliest subject first.

    Names on the lines of ids in `telling` count more, so do names that the alert says too, and a name of the kind that
    `category` is usually about (a host for DNS, a path for a full disk).
    """
    scores: dict[str, float] = {}
    kind = _SUBJECTS.get(category)
    alert = f"{case.service}\n{case.title}\n{case.message}"[:2_000]
    for line in lines:
        bonus = 3.0 if line.id in telling else 0.0
        for name, weight in _names(line.shown):
            subject = 4.0 if kind is not None and bonus and kind.search(name) else 0.0
            scores[name] = max(scores.get(name, 0.0), weight + bonus + subject) + 0.2
    for name, weight in _names(alert):
        scores[name] = scores.get(name, 0.0) + weight
    if _valid(case.service):
        scores[case.service] = scores.get(case.service, 0.0) + 2.0
    for name in scores:
        if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", alert):
            scores[name] += 3.0
        if name.lower() in _BYSTANDERS:
            scores[name] -= 4.0
        if _ADDRESS.match(name):
            scores[name] -= 2.0
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return tuple(ranked[:MAX_ENTITIES])


def _names(text: str) -> Iterable[tuple[str, float]]:
    for weight, finder in _FINDERS:
        for match in finder.finditer(text[:2_000]):
            name = match[1].strip(".:/-") if not match[1].startswith("/") else match[1].rstrip(".:/-")
            if _valid(name) and not (weight == 2.0 and not name.startswith("/") and _NOT_HOST.search(name)):
                yield name, weight


def _valid(name: str) -> bool:
    return (
        2 <= len(name) <= MAX_NAME_CHARS
        and name.lower() not in _COMMON
        and name.isprintable()
        and any(letter.isalnum() for letter in name)
        and _PATH_NOISE.match(name) is None
        and not name.isdigit()
        and "·" not in name
    )
