"""Say things as a person would, and make other people's text harmless to read.

Jinja escapes markup; `visible` does what escaping does not: it spells out control characters and the invisible ones
that reorder or hide text, so that a line of a log cannot pretend to be another line.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

from midwatch.copilot.model import Diagnosis, IncidentView

State = Literal["waiting", "diagnosing", "diagnosed", "resolved"]
Tone = Literal["good", "warn", "bad", "plain"]

CATEGORIES = {
    "oom_memory": "Out of memory",
    "cpu_saturation": "CPU saturated",
    "disk_storage_full": "Disk full",
    "connection_exhaustion": "Connections exhausted",
    "quota_rate_limit": "Quota or rate limit",
    "scheduling_capacity": "No capacity to schedule",
    "image_pull_artifact": "Image or artifact pull",
    "config_env_error": "Configuration error",
    "deploy_regression": "Deploy regression",
    "code_defect_crash": "Crash in code",
    "health_probe": "Health probe failing",
    "dns_resolution": "DNS resolution",
    "network_connectivity": "Network connectivity",
    "service_routing": "Service routing",
    "tls_cert_expiry": "TLS certificate",
    "authn_authz": "Access denied",
    "dependency_failure": "Dependency failing",
    "database_slow_or_locked": "Database slow or locked",
    "queue_backlog": "Queue backlog",
    "storage_volume_mount": "Volume mount",
    "node_control_plane": "Node or control plane",
    "ci_test_failure": "CI test failure",
    "ci_build_dependency": "CI build or dependency",
    "ci_quality_gate": "CI quality gate",
    "ci_environment": "CI environment",
    "benign_false_alarm": "False alarm",
    "unknown": "Unknown",
}

_UNSAFE = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb]"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CODE = re.compile(r"`([^`]+)`")


def visible(text: str, limit: int = 2_000) -> str:
    """One line of other people's text, safe to read: colours dropped, invisible characters spelled out, cut at `limit`.

    A cut says how many characters it left out.
    """
    shown = _UNSAFE.sub(_spell, _ANSI.sub("", text[: limit + 64]))
    if len(text) > limit:
        return f"{shown[:limit]} … {len(text) - limit:,} more characters"
    return shown


def _spell(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def plain(text: str, limit: int = 300) -> str:
    """Text for a heading: safe as in `visible`, runs of white space made one space, an ellipsis where it was cut."""
    shown = " ".join(_UNSAFE.sub(_spell, _ANSI.sub("", text[: limit + 64])).split())
    return shown if len(shown) <= limit and len(text) <= limit + 64 else shown[:limit].rstrip() + "…"


def category(identifier: str) -> str:
    """The words for a category id; an id without words is shown as it is, without underscores."""
    return CATEGORIES.get(identifier) or identifier.replace("_", " ").capitalize()


def state(view: IncidentView) -> State:
    """The state a person asks for: resolved wins over where the diagnosis stands."""
    return "resolved" if view.resolved_at is not None else view.state


def severity(view: IncidentView) -> str:
    """The diagnosed severity, or the sender's until there is a diagnosis."""
    return view.finding.diagnosis.severity if view.finding else view.severity


def answered(diagnosis: Diagnosis) -> tuple[str, Tone]:
    """Who answered, in two or three words."""
    if diagnosis.action == "ask_person":
        return "person needed", "warn"
    if diagnosis.escalated:
        return "escalated", "plain"
    return "local", "plain"


def action(diagnosis: Diagnosis) -> tuple[str, Tone]:
    """What the confidence means for the reader, as a sentence."""
    if diagnosis.action == "accept":
        return (
            "The bigger model answered, above the threshold." if diagnosis.escalated else "Above the threshold."
        ), "good"
    if diagnosis.action == "escalate":
        return (
            "Not sure enough here: a bigger model answered."
            if diagnosis.escalated
            else "Not sure enough: ask the bigger model."
        ), "warn"
    if diagnosis.category == "unknown":
        return "The log does not say why: ask a person.", "warn"
    return "Not sure enough: ask a person.", "warn"


def trouble(view: IncidentView) -> str:
    """What went wrong with telling people of an answer that stands; "" if nothing did."""
    if view.last_error and view.state == "diagnosed":
        return f"People could not be told: {plain(view.last_error, 240)}"
    return ""


def waiting(view: IncidentView) -> str:
    """Why there is no diagnosis yet, in one line; of an incident that is read again, why the answer may change."""
    if view.finding is not None and not view.last_error:
        return "New events came in; the log is read again."
    if view.state == "diagnosing":
        return (
            f"The model is reading the log (attempt {view.attempts})."
            if view.attempts > 1
            else "The model is reading the log."
        )
    if view.last_error:
        tries = "1 attempt" if view.attempts == 1 else f"{view.attempts} attempts"
        return f"{tries} failed, will try again: {plain(view.last_error, 240)}"
    return "Waiting for the events to settle."


def duration(seconds: float | None) -> str:
    """A time span with a unit that fits: 640 ms, 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def age(seconds: float) -> str:
    """How long ago, in one unit: now, 12 s, 4 min, 3 h, 2 d. `static/app.js` keeps it current with the same steps."""
    if seconds < 5:
        return "now"
    for unit, size, limit in (("s", 1, 60), ("min", 60, 3_600), ("h", 3_600, 86_400)):
        if seconds < limit:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86_400)} d"


def dollars(usd: float) -> str:
    """Dollars with two significant digits below a cent, two decimals above."""
    if usd <= 0:
        return "$0"
    if usd >= 0.01:
        return f"${usd:,.2f}"
    digits = 1
    while usd * 10**digits < 1 and digits < 9:
        digits += 1
    return f"${usd:.{digits + 1}f}"


def clock(at: float) -> str:
    """A moment as 2026-11-23 09:54:12 UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at: float) -> str:
    """A moment as a machine reads it, for the `datetime` attribute."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def step_parts(text: str) -> list[tuple[bool, str]]:
    """A next step split at its `back-quoted` commands: (is a command, text) in order."""
    parts: list[tuple[bool, str]] = []
    for index, piece in enumerate(_CODE.split(visible(text, 1_000))):
        if piece:
            parts.append((index % 2 == 1, piece))
    return parts
