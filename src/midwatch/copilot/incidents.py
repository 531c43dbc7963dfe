"""Which incident does an event belong to? Deduplication, grouping and storm control, as pure code over plain values.

The store loads the few facts that a batch of deliveries needs into a `Board`, places every event in one fixed order,
and writes the board's changes back in the same transaction. The order is fixed by what the events say, never by which
came first, so neither order nor repetition of deliveries within a batch changes which incidents there are.

An event is placed by the first rule that fits:

1. the same delivery again (source, fingerprint, start and status alike) is counted and changes nothing else;
2. the same alert again joins the incident that it is in, while that is open;
3. an event of the same service within `group_window_s` of an incident's last trouble joins that incident;
4. an alert, or a log with a line that looks wrong, opens an incident; any other log is kept as context.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from midwatch.copilot.intake.labels import UNKNOWN_SERVICE
from midwatch.copilot.intake.source import TITLE_CHARS, one_line
from midwatch.copilot.model import Event, LogLine, Severity

SEVERITY_RANK: dict[Severity, int] = {"critical": 0, "high": 1, "medium": 2, "low": 3, "info": 4}
MAX_DIAGNOSES = 3
"""An incident is diagnosed at most so often, however its log grows."""
ALERT_LIFE_S = 86_400.0
"""An alert that nobody repeated or resolved for this long is over; the resolve was lost."""
GROUP_LIFE_WINDOWS = 8
"""An incident takes in its service's events for so many windows at most; else a trickle would hide new trouble."""

_LOOKED_AT_CHARS = 2_000
_WRONG = re.compile(
    r"\b(?:error|err|errors|fatal|panic|panicked|exception|traceback|denied|refused|killed|timeout|timed\s+out|fail(?:ed|ure|s)?"
    r"|crit(?:ical)?|emerg(?:ency)?|severe|oom|out\s+of\s+memory|no\s+space\s+left|segfault|core\s+dumped|unreachable|expired"
    r"|corrupt(?:ed|ion)?|deadlock|aborted|unhealthy|backoff|crashloopbackoff)\b"
    r"|(?:Error|Exception|Failure|Failed|Timeout)\b|^[EF]\d{4}\s",
    re.IGNORECASE,
)
_ALL_WELL = re.compile(
    r"\b(?:0|no|zero|without)\s+(?:errors?|failures?|failed)\b|\b(?:errors?|failed|failures?)[=:]\s*0\b", re.I
)
_FINE_LEVEL = re.compile(r"\b(?:level|severity|lvl)\"?[=:]\s*\"?(?:info|debug|trace|notice)\b", re.I)


def looks_wrong(text: str) -> bool:
    """A cheap test whether a log line speaks of trouble. Generous: the deeper look comes later, with the evidence."""
    head = text[:_LOOKED_AT_CHARS]
    found = _WRONG.search(head)
    if found is None or _FINE_LEVEL.search(head):
        return False
    return _WRONG.search(_ALL_WELL.sub(" ", head)) is not None


def first_wrong(lines: Iterable[LogLine]) -> str | None:
    """The first line that looks wrong, as it was received."""
    return next((line.text for line in lines if looks_wrong(line.text)), None)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The four times that decide, seconds, each explained in `CopilotSettings`."""

    group_window_s: float = 900.0
    settle_s: float = 1.0
    settle_max_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An event with what was found out about its lines before anything was locked."""

    event: Event
    trouble: str | None = (
        None  # for a log: its first wrong line, or its level where that is bad; None where it looks fine
    )

    @property
    def rank(self) -> tuple[int, str, int, str, str, float]:
        """The place in the fixed order: alerts, then logs with trouble, other logs, and what resolves them last."""
        event = self.event
        kind = {"firing": 0, "logs": 1 if self.trouble else 2, "resolved": 3}[event.status]
        return (
            kind,
            event.service,
            SEVERITY_RANK[event.severity],
            event.source,
            event.fingerprint,
            event.starts_at or 0.0,
        )


def arrival(event: Event) -> Arrival:
    """Look at an event's lines once, outside of any transaction."""
    if event.status != "logs":
        return Arrival(event=event)
    wrong = first_wrong(event.lines)
    if wrong is None and event.labels.get("level") and event.severity in ("critical", "high"):
        wrong = event.lines[0].text if event.lines else ""
    return Arrival(event=event, trouble=wrong)


@dataclass(kw_only=True)
class Incident:
    """An incident as the rules see it. `id` is negative until the store has given it one.

    Times are seconds since the epoch. `active_at` is when trouble was last heard of, `firing` counts the alerts that
    have not resolved, `news` the logs that came in while it was being diagnosed.
    """

    id: int
    service: str
    title: str
    severity: Severity
    sources: list[str]
    opened_at: float
    active_at: float
    updated_at: float
    waiting_since: float
    due_at: float
    state: Literal["waiting", "diagnosing", "diagnosed"] = "waiting"
    category: str = ""
    resolved_at: float | None = None
    firing: int = 0
    deliveries: int = 0
    events: int = 0
    attempts: int = 0
    diagnoses: int = 0
    news: int = 0
    changed: bool = False


@dataclass(kw_only=True)
class Alert:
    """The latest that is known of one named thing (source and fingerprint)."""

    key: str
    incident_id: int
    episode: str
    starts_at: float | None
    firing: bool
    seen_at: float
    changed: bool = False


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an event went. `reason` may hold `{incident}`, filled in once the incident has its id.

    `duplicate` events were known already; an `incident_id` of None means kept as context.
    """

    arrival: Arrival
    dedup_key: str
    incident_id: int | None
    duplicate: bool = False
    reason: str = ""


def alert_key(event: Event) -> str:
    """The name of the thing: an alert rule with its labels, or a posted text."""
    return f"{event.source}|{event.fingerprint}"


def dedup_key(event: Event, episode: str) -> str:
    """The name of one delivery, the same each time it is sent again."""
    return f"{event.source}|{event.status}|{episode}|{event.fingerprint}"


def episode_of(event: Event) -> str | None:
    """What tells one firing of an alert from the next: its start. None where the sender gives none."""
    if event.status == "logs":
        return ""
    return None if event.starts_at is None else f"{event.starts_at:.3f}"


@dataclass
class Board:
    """What is known about a batch's alerts, services and deliveries, and the rules that place the batch."""

    rules: Rules
    incidents: dict[int, Incident] = field(default_factory=dict)
    alerts: dict[str, Alert] = field(default_factory=dict)
    seen: dict[str, int | None] = field(default_factory=dict)  # dedup key -> incident, or None for kept context
    _by_service: dict[str, list[Incident]] = field(default_factory=dict)

    def place_all(self, arrivals: Sequence[Arrival], now: float) -> list[Placement]:
        """Place a batch; the answer is in the order of `arrivals`."""
        self._by_service = {}
        for incident in self.incidents.values():
            self._by_service.setdefault(incident.service, []).append(incident)
        placed: dict[int, Placement] = {}
        for index in sorted(range(len(arrivals)), key=lambda number: arrivals[number].rank):
            placed[index] = self._place(arrivals[index], now)
        return [placed[index] for index in range(len(arrivals))]

    def _place(self, item: Arrival, now: float) -> Placement:
        event = item.event
        known = self.alerts.get(alert_key(event))
        episode = episode_of(event)
        if episode is None:
            recent = known is not None and now - known.seen_at <= self.rules.group_window_s
            episode = known.episode if known is not None and recent else f"{now:.3f}"
        key = dedup_key(event, episode)
        if key in self.seen:
            return self._again(item, key, known, now)
        placement = self._new(item, key, episode, known, now)
        self.seen[key] = placement.incident_id
        return placement

    def _again(self, item: Arrival, key: str, known: Alert | None, now: float) -> Placement:
        incident = self.incidents.get(self.seen[key] or 0)
        if known is not None:
            known.seen_at, known.changed = now, True
        if incident is not None:
            incident.deliveries += 1
            incident.updated_at, incident.changed = now, True
        return Placement(arrival=item, dedup_key=key, incident_id=self.seen[key], duplicate=True)

    def _new(self, item: Arrival, key: str, episode: str, known: Alert | None, now: float) -> Placement:
        event = item.event
        if event.status == "resolved":
            return self._resolve(item, key, known, now)
        incident, reason = self._find(item, known, now)
        if incident is None:
            if event.status == "logs" and item.trouble is None:
                return Placement(arrival=item, dedup_key=key, incident_id=None)
            incident, reason = self._open(item, now), "opened this incident"
            if event.status == "logs":
                reason = "a line that looks wrong opened this incident"
        self._attach(incident, item, now)
        if event.status == "firing":
            self._fire(incident, event, episode, now)
        return Placement(arrival=item, dedup_key=key, incident_id=incident.id, reason=reason)

    def _find(self, item: Arrival, known: Alert | None, now: float) -> tuple[Incident | None, str]:
        """The incident that an event joins, and why."""
        if known is not None and item.event.status == "firing":
            incident = self.incidents.get(known.incident_id)
            alive = now - known.seen_at <= (ALERT_LIFE_S if known.firing else self.rules.group_window_s)
            if incident is not None and alive:
                return incident, "same alert again" if known.firing else "same alert again, after it had resolved"
        window_s = self.rules.group_window_s
        service = item.event.service
        if service == UNKNOWN_SERVICE:
            return None, ""
        near = [
            incident
            for incident in self._by_service.get(service, ())
            if now - incident.active_at <= window_s and now - incident.opened_at <= window_s * GROUP_LIFE_WINDOWS
        ]
        if not near:
            return None, ""
        incident = max(near, key=lambda found: (found.active_at, abs(found.id)))
        return incident, f"same service ({service}) within {window_s:g} s of incident {{incident}}"

    def _open(self, item: Arrival, now: float) -> Incident:
        event = item.event
        title = event.title
        if event.status == "logs" and item.trouble:
            title = one_line(f"{event.service}: {item.trouble}", TITLE_CHARS)
        incident = Incident(
            id=-1 - len(self.incidents),
            service=event.service,
            title=title,
            severity=event.severity,
            sources=[],
            opened_at=now,
            active_at=now,
            updated_at=now,
            waiting_since=now,
            due_at=now + self.rules.settle_s,
        )
        self.incidents[incident.id] = incident
        self._by_service.setdefault(incident.service, []).append(incident)
        return incident

    def _attach(self, incident: Incident, item: Arrival, now: float) -> None:
        event = item.event
        worse = SEVERITY_RANK[event.severity] < SEVERITY_RANK[incident.severity] and event.status == "firing"
        incident.changed, incident.updated_at = True, now
        incident.deliveries += 1
        incident.events += 1
        if event.source not in incident.sources:
            incident.sources.append(event.source)
        if event.status == "firing" or item.trouble:
            incident.active_at = now
        if worse:
            incident.severity = event.severity
        if incident.state == "diagnosing":
            incident.news += bool(event.lines)
        elif incident.state == "diagnosed":
            self._ask_again(incident, worse=worse, lines=bool(event.lines), now=now)
        elif incident.attempts == 0:
            incident.due_at = min(now + self.rules.settle_s, incident.waiting_since + self.rules.settle_max_s)

    def _ask_again(self, incident: Incident, *, worse: bool, lines: bool, now: float) -> None:
        """A made diagnosis stands, unless it was `unknown` and there is more to read, or worse trouble joined it."""
        if incident.diagnoses < MAX_DIAGNOSES and (worse or (lines and incident.category == "unknown")):
            incident.state, incident.waiting_since, incident.attempts = "waiting", now, 0
            incident.due_at = now + self.rules.settle_s

    def _fire(self, incident: Incident, event: Event, episode: str, now: float) -> None:
        """Record that an alert fires, unless its resolve came before it, or it is a text, which nobody resolves."""
        key = alert_key(event)
        known = self.alerts.get(key)
        if known is not None and (known.starts_at or 0.0) > (event.starts_at or 0.0):
            return  # an older firing, delivered late
        fires = event.source != "text" and f"{event.source}|resolved|{episode}|{event.fingerprint}" not in self.seen
        if known is not None and known.firing:
            self._stop(self.incidents.get(known.incident_id), now)
        if fires:
            incident.firing += 1
            incident.resolved_at = None
        elif event.source != "text" and incident.firing == 0:
            incident.resolved_at = now
        self.alerts[key] = Alert(
            key=key,
            incident_id=incident.id,
            episode=episode,
            starts_at=event.starts_at,
            firing=fires,
            seen_at=now,
            changed=True,
        )

    def _resolve(self, item: Arrival, key: str, known: Alert | None, now: float) -> Placement:
        event = item.event
        incident = self.incidents.get(known.incident_id) if known is not None else None
        if known is None or incident is None:
            return Placement(arrival=item, dedup_key=key, incident_id=None)
        incident.deliveries += 1
        incident.events += 1
        incident.updated_at, incident.changed = now, True
        stale = event.starts_at is not None and event.starts_at < (known.starts_at or 0.0)
        if known.firing and not stale:
            known.firing, known.changed, known.seen_at = False, True, now
            self._stop(incident, now)
        return Placement(
            arrival=item, dedup_key=key, incident_id=incident.id, reason="an alert of this incident resolved"
        )

    def _stop(self, incident: Incident | None, now: float) -> None:
        """One alert of an incident fires no more."""
        if incident is None:
            return
        incident.firing = max(0, incident.firing - 1)
        incident.updated_at, incident.changed = now, True
        if incident.firing == 0:
            incident.resolved_at = now
