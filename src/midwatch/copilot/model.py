"""The nouns of the copilot: an event, a log line, evidence, a diagnosis. Plain frozen values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["critical", "high", "medium", "low", "info"]
Action = Literal["accept", "escalate", "ask_person"]
Verdict = Literal["right", "wrong"]


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of a log as it was received. `at` is the sender's time, seconds since the epoch, if it gave one."""

    text: str
    at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that a source told us, normalised: an alert that fires or resolves, or a batch of log lines.

    `fingerprint` names the thing itself, so that a repeated delivery is recognised as the same event.
    `external_id` is the sender's own id, if any. `raw` is the part of the body that it came from (JSON or text).
    """

    source: str
    fingerprint: str
    status: Literal["firing", "resolved", "logs"]
    service: str
    title: str
    severity: Severity = "medium"
    message: str = ""
    external_id: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    starts_at: float | None = None
    ends_at: float | None = None
    lines: tuple[LogLine, ...] = ()
    raw: str = ""


@dataclass(frozen=True, kw_only=True)
class EvidenceLine:
    """A numbered line that a model may cite. `line_number` is 1-based in the log it came from; `text` is the original.

    `shown` is what the model sees of it (one line, control characters removed, cut to a bounded length).
    `count` says how many lines of the log have the same template.
    """

    id: str
    line_number: int
    text: str
    shown: str
    template: str
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A category with its share (of the signature rules' weight, or of all probability; 0 to 1) and the ids of the
    lines that the rules found for it."""

    category: str
    score: float
    line_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was read and what will be shown. `tokens` is an upper estimate of the shown lines' length."""

    lines: tuple[EvidenceLine, ...]
    ranking: tuple[Ranked, ...]
    entities: tuple[str, ...]
    total_lines: int
    total_templates: int
    tokens: int
    mining_ms: float


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A cited line, checked against the lines shown, with the original text."""

    id: str
    line_number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The answer. `confidence` is P(the category is right), fitted on labelled incidents if `calibrated`.

    `ranking` are the categories that were weighed, best first, with their probabilities and the lines behind them.
    `threshold` is the least confidence at which it would have been accepted. `heard` is what a model alone gave each
    category (those of half a percent or more; empty if none was asked).
    `signals` are what the confidence was computed from (`confidence.py` names them); feedback refits it from them.
    `rejected_citations` counts ids the model named but was never shown. `tokens` is prompt plus answer.
    """

    category: str
    severity: Severity
    entity: str
    summary: str
    confidence: float
    calibrated: bool
    action: Action
    citations: tuple[Citation, ...]
    next_steps: tuple[str, ...]
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    ttft_ms: float
    latency_ms: float
    ranking: tuple[Ranked, ...] = ()
    rejected_citations: int = 0
    escalated: bool = False
    note: str = ""
    threshold: float = 0.5
    signals: dict[str, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What triage is given: an incident's alerts in words, and its log in order (line n is `lines[n - 1]`)."""

    service: str
    title: str
    severity: Severity = "medium"
    message: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A runbook's section or a past incident that looked similar. Shown beside a diagnosis, never part of it.

    `ref` names the runbook, or is the incident's number. `score` is the fused rank (1 where every ranking has it
    first). `similarity` is 0 to 1: the cosine of the two texts where vectors are used, else the share of the question's
    telling words. `steps` are what the section tells to do. `category` is what a person said of a past incident, ""
    for a runbook.
    """

    kind: Literal["runbook", "incident"]
    ref: str
    title: str
    score: float
    similarity: float
    excerpt: str
    section: str = ""
    url: str = ""
    steps: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What a person says of an incident's diagnosis. `category` is the true cause, "" where it was not stated.

    `version` is the number of the diagnosis that was judged; `at` is seconds since the epoch.
    """

    incident_id: int
    verdict: Verdict
    category: str = ""
    note: str = ""
    version: int = 0
    at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What triage gives back: the evidence that was read, the diagnosis made from it, and what looked similar.

    `first` is what the local model had said where a bigger one was asked afterwards; both are kept.
    """

    evidence: Evidence
    diagnosis: Diagnosis
    first: Diagnosis | None = None
    recalled: tuple[Recalled, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IncidentView:
    """An incident as a page or a terminal shows it. Times are seconds since the epoch.

    `deliveries` counts every accepted event, `events` the distinct ones, so deliveries - events were duplicates.
    `reasons` says for each attached event why it belongs here ("same service within 900 s", ...).
    """

    id: int
    state: Literal["waiting", "diagnosing", "diagnosed"]
    service: str
    title: str
    severity: Severity
    sources: tuple[str, ...]
    opened_at: float
    updated_at: float
    resolved_at: float | None
    diagnosed_at: float | None
    notified_at: float | None
    deliveries: int
    events: int
    attempts: int
    last_error: str
    finding: Finding | None = None
    reasons: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    feedback: Feedback | None = None
