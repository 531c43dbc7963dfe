# ruff: noqa: E501 - a pattern is easier to read on one line
"""What is it about? Names of services, hosts, units, databases, files and processes, mined from the shown lines and
the alert.

The result is a closed list: a model may choose one of these or `unknown`, never invent a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from midwatch.copilot import taxonomy
from midwatch.copilot.model import Case, EvidenceLine
from midwatch.copilot.parsing import parse

MAX_ENTITIES = 6
MAX_NAME_CHARS = 80
_TELLING = 0.6
_FIELD = re.compile(
    r"\"(?:host|hostname|node|pod|service|app|db|database|user|username|container|queue|topic|bucket|resource|name|target|job|instance"
    r"|volume|table|domain|key|namespace|cluster|pod_name|container_name|objectName|resourceName|involvedObject)\": ?\"([^\"\\]{2,80})\""
)
_PORT = re.compile(r"^[\w.-]+:\d{2,5}$")
_OF_POD = re.compile(r"^([a-z][\w.-]*?[a-z0-9])(?:-[a-z0-9]{7,10}-[a-z0-9]{5}|-\d{1,6}-[a-z0-9]{5})$")
_NUMBERED = re.compile(r"^([a-z][\w.-]*?[a-z])-\d{1,6}$")
_NO_NAME = re.compile(
    r"(?:thread|exec|pool|scheduling|executor)-\d+$|_pkey$|^(?:x86_64|amd64|arm64|linux|ubuntu)\b|^\d+(?:\.\d+)?$|^(?:GET|POST|PUT|DELETE|PATCH|HEAD|OPTIONS)$"
    r"|-rss$|^oom-|^E[A-Z]{3,}$|^(?:java|javax|org|com|io|net)\.\w+$|^(?:non|anti)-|/_temp/|^\d{4}-\d\d-|^[0-9a-f]{8,64}$|^[A-Z]{2,8}$|^[a-z]+[A-Z]\w*$|^(?:CONSTRAINT|GFP|ERR|LOGIN|UNKNOWN)_"
    r"|^(?:[\w.]+\.)?\w*(?:Exception|Error)$|^(?:github|gitlab|docs|developer|kubernetes|redis|www)\.(?:\w+\.)?(?:com|io|org|dev|net)$|^/(?:bin|sbin|api|v\d|metrics|health\w*|home/runner/work)\b"
)
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
            r"(?<![\w./@-])([a-z][a-z0-9]*(?:-[a-z0-9]+){0,4}-(?:service|svc|api|db|worker|gateway|server|proxy|queue|consumer|frontend|backend|cache|primary|replica|processor|manager|sync|core|web|job)(?:-\d+)?)(?![\w/@-])"
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
    (1.0, re.compile(r"(?<![\w.:/])((?:\d{1,3}\.){3}\d{1,3})\b")),
    (
        3.0,
        re.compile(
            r"\b[\w-]{1,60}@([\w-]{2,60})(?= (?:LOG|ERROR|FATAL|PANIC|WARNING|DETAIL|STATEMENT|HINT|CONTEXT):|:\[)"
        ),
    ),
    (
        1.5,
        re.compile(
            r"(?<![\w.])([\w-]{2,60})@[\w-]{2,60}(?= (?:LOG|ERROR|FATAL|PANIC|WARNING|DETAIL|STATEMENT|HINT|CONTEXT):|:\[)"
        ),
    ),
    (
        2.5,
        re.compile(
            rf"\b(?:db|database|dbname|user|username|account|host|hostname|node|pod|container|topic|queue|bucket|table|volume|job|service|app|image|name|unit|cluster|group|stream|index|secret|configmap|target|upstream|server|function|resource|device|partition|zone|domain|pvc|claim|disk|interface|repository|repo)(?: ?[=:] ?|=)[\"'\[]?{_Q}?([A-Za-z0-9/][\w.:/@-]{{1,78}})",
            re.I,
        ),
    ),
    (
        1.8,
        re.compile(
            r"\b(?:user|role|host|node|database|table|topic|queue|job|volume|bucket|parameter|zone|domain|server|service|pod|container|image|repository|function|task|index|stream|account|for|of|on)(?: name)? (?!for |of |to |on |in |is |was |the |and |from |with |by |not |has |at |a )([A-Za-z][\w.-]*[-_.\d][\w.-]*\w)",
            re.I,
        ),
    ),
    (1.8, re.compile(rf"(?<![\w\\]){_Q}([A-Za-z][\w.:@-]{{2,60}}|/[\w.@+/-]{{2,78}})[\"'`»]")),
    (
        3.0,
        re.compile(
            r"(?<![\w./:-])((?:[a-z0-9][\w.-]*(?::\d+)?/){1,4}[a-z0-9][\w.-]*:[\w][\w.-]{0,60}?)(?=[\s,;)\"'`\]]|: |$)"
        ),
    ),
    (2.5, re.compile(r"(?:github|gitlab|bitbucket)\.(?:com|org)[/:]([\w.-]{1,60}/[\w-]{1,60})")),
    (1.0, re.compile(r"^(?:[A-Z]+ )?([a-zA-Z][\w.@/-]{1,40}): ")),
    (1.8, re.compile(r"(?<![\w.])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?![\w(])")),  # a setting
    (
        2.0,
        re.compile(r"(?<![\w.$])(?:\w+\.)*?((?:Test[A-Z]\w+|[A-Z]\w*Tests?)(?:\.\w+)?|(?:test|should)_\w+)(?![\w/.-])"),
    ),
    (
        1.5,
        re.compile(
            r"(?<![\w/.-])(?:\./)?([\w-]+\.(?:py|js|ts|tsx|go|java|rb|rs|c|cc|cpp|h|kt|php|sh|scala|ex))(?=[:(,\s]|$)"
        ),
    ),
    (
        2.0,
        re.compile(
            r"(?<![\w:/.@-])((?!(?:linux|application|text|refs|origin|src|lib|tests?|pkg|internal|source|app|cmd|github|usr|v\d+)/)[a-z][\w-]{2,40}/[a-z][\w-]{2,40})(?![\w/.:-])"
        ),
    ),  # namespace or owner, name
    (1.8, re.compile(r"\(([a-z][a-z0-9]*[-_][\w-]{1,40})\)")),
    (
        1.8,
        re.compile(
            r"(?<![\w./-])([a-z][a-z0-9]*(?:[-_.][a-z0-9]+){1,6})(?= (?:answered|returned|is (?:not|un|down|full|being)|has (?:exceeded|been|no)|does not|did not|failed|exceeded|timed out|refused|not found|behind|depth|lag))"
        ),
    ),
    (1.5, re.compile(r"(?:serviceName|upstream|backend|cluster|alloc|task)[=: ]\"?([a-z][\w-]{2,50})@")),
    (3.0, re.compile(r"(?<![\w./-])([a-z][\w.-]{1,60})/(?:\d{1,3}\.){3}\d{1,3}\b")),
    (
        1.8,
        re.compile(
            r"(?<![\w.:/@-])((?!(?:com|org|net|io|java|javax|jdk|sun)\.)[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+){1,5}\.[a-z]{2,12})(?![\w/(-])"
        ),
    ),
    (1.2, re.compile(r"\[([a-z][\w.-]{0,60}[._-][\w.-]{1,60})\]")),
    (1.8, re.compile(r"\bat ([a-z][\w.-]{2,60}):\d{2,5}\b")),
    (
        1.2,
        re.compile(
            r"(?<![\w./@=$%-])((?!(?:read|write|non|re|pre|post|self|long|short|back|in|out|one|two|multi|sub|auto|over|under|up|down|time|fail|high|low|built|end|run|roll|on|off|pod|user|set|so|well|no|per|key|life|round|fall|sign|log|check|clean|shut|start|stand|hand|warm|x|utf|sha|http|https)-)[a-z][a-z0-9]*(?:[-_][a-z0-9]+){1,6})(?![\w/@=(-])"
        ),
    ),
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
        *(
            "is",
            "not",
            "level",
            "logger",
            "timestamp",
            "service",
            "status",
            "attr",
            "ctx",
            "connection",
            "server",
            "stop",
            "step",
        ),
        *(
            "exceeded",
            "reading",
            "shutting",
            "starting",
            "control",
            "time",
            "type",
            "source",
            "caller",
            "code",
            "reason",
            "cause",
        ),
        *(
            "unavailable",
            "secret",
            "local",
            "step",
            "unknown]",
            "started",
            "stopped",
            "request",
            "response",
            "check_mk",
            "key",
            "value",
        ),
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
    "config_env_error": re.compile(r"^[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+$"),
    "ci_test_failure": re.compile(r"^(?:Test[A-Z]\w+|[A-Z]\w*Tests?(?:\.\w+)?|test_\w+)$"),
    "disk_storage_full": re.compile(r"^/(?!.*\.(?:py|js|go|java|rb|rs)$)"),
}
_OF_SETTINGS = frozenset(
    {"config_env_error", "ci_build_dependency", "ci_test_failure", "code_defect_crash", "deploy_regression"}
)
"""Categories of which a name in capitals, such as an environment variable's, may be the subject."""
_NOT_HOST = re.compile(
    r"\.(?:py|js|ts|tsx|go|java|log|txt|json|ya?ml|conf|so|sh|html?|md|xml|jar|exe|dll|c|h|cc|cpp)(?::\d+)?$", re.I
)
_PATH_NOISE = re.compile(r"^/(?:dev/null|usr/(?:bin|lib|local/(?:bin|lib))/|lib/|proc/|HTTP/)")


def find(
    case: Case, lines: Sequence[EvidenceLine], weights: Mapping[str, float], category: str = ""
) -> tuple[str, ...]:
    """Names found, the likeliest subject first.

    `weights` (0 to 1, by line id) say how telling each line is; names on telling lines count more, so do names that the
    alert says too, and a name of the kind that `category` is usually about (a host for DNS, a path for a full disk).
    """
    scores: dict[str, float] = {}
    kind = _SUBJECTS.get(category)
    alert = f"{case.service}\n{case.title}\n{case.message}"[:2_000]
    for line in lines:
        telling = weights.get(line.id, 0.0)
        parsed = parse(line.text)
        found = [*_names(parsed.message)]
        own = parsed.program and parsed.host.startswith(f"{parsed.program}-")  # a pod: its program's name says enough
        printers = ((parsed.program, 2.0),) if own else ((parsed.host, 2.0), (parsed.program, 2.0))
        found += [(name, weight) for name, weight in printers if _valid(name)]
        if '":' in line.text:
            found += [(name, 2.0) for name in _FIELD.findall(line.text) if _valid(name)]
        found += [(whole, weight * share) for name, weight in found for whole, share in _wholes(name)]
        best: dict[str, float] = {}
        for name, weight in found:
            if name.isupper() and category not in _OF_SETTINGS:
                continue
            subject = 3.0 if kind is not None and telling > _TELLING and kind.search(name) else 0.0
            best[name] = max(best.get(name, 0.0), weight + subject)
        for name, weight in best.items():
            scores[name] = max(scores.get(name, 0.0), weight * (0.3 + 0.7 * telling) + 3.0 * telling) + 0.1
    for name, weight in _names(alert):
        scores[name] = scores.get(name, 0.0) + weight
    if _valid(case.service):
        scores[case.service] = scores.get(case.service, 0.0) + 0.5
    for name in scores:
        if len(name) > 2 and re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", alert):
            scores[name] += 1.0
        if name.lower() in _BYSTANDERS:
            scores[name] -= 4.0
        if _ADDRESS.match(name):
            scores[name] -= 2.0
    ranked = _distinct(sorted(scores, key=lambda name: (-scores[name], name)))
    if case.service in ranked[MAX_ENTITIES:]:
        ranked[MAX_ENTITIES - 1] = case.service
    return tuple(ranked[:MAX_ENTITIES])


def _distinct(names: Sequence[str]) -> list[str]:
    """Names without those that say again what a better one says: the same with a port, as one pod, in a namespace."""
    kept: list[str] = []
    bare: set[str] = set()
    for name in names:
        plain = name if name.startswith("/") else name.partition("://")[2] or name
        plain = plain if plain.startswith("/") else plain.partition(":")[0].rpartition("/")[2]
        pod = _OF_POD.match(plain)
        plain = pod[1] if pod is not None else plain
        if plain not in bare:
            bare.add(plain)
            kept.append(name)
    return kept


def _wholes(name: str) -> Iterable[tuple[str, float]]:
    """What a name is a part of, and how likely that is meant: a pod's deployment, a file's folder, a run's job."""
    if name.startswith("/"):
        folder = name.rpartition("/")[0]
        if folder.count("/") >= 2:
            yield folder, 0.9
        return
    name, _, port = name.partition(":") if _PORT.search(name) else (name, "", "")
    if port:
        yield name, 1.0
    for pattern, share in ((_OF_POD, 0.9), (_NUMBERED, 0.35)):
        match = pattern.match(name)
        if match is not None and _valid(match[1]):
            yield match[1], share


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
        and _NO_NAME.search(name) is None
        and name not in taxonomy.CATEGORIES
    )
