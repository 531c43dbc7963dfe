"""One answer beside the truth: what the measures are computed from, and how it is kept on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from midwatch.copilot.model import Finding
from midwatch.copilot.taxonomy import UNKNOWN
from midwatch.foundry.incident import Incident, Truth

_CHANGING = re.compile(r"\b(?=[a-fA-F-]*\d)[0-9a-fA-F-]{8,}\b|\d[\d:.,TZ-]*")
_POD = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}$")
"""What Kubernetes appends to a deployment's name (its alphabet has no vowels and none of 0, 1, 3)."""
MIN_WORDING_CHARS = 4
"""A line with fewer characters beside its times and numbers is compared by its place alone."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A line that was read as evidence. `true` says that it, or a line of the same wording, shows the cause."""

    number: int
    text: str
    true: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one column (`rules`, `local`, `escalated`) said about one incident.

    `ranking` are categories, best first (the answer is the first; `unknown` abstains). `confidence` is P(right) as
    shown, `accepted` whether it was shown without asking further. `cited` and `shown` are 1-based line numbers.

    Lines are counted against the truth by wording (`wording`): a repeated error is as telling as its first occurrence.
    `cited_right` are the cited lines that are true. `truth_total` counts the different wordings of the true lines (0
    where lines are not labelled); `truth_cited` and `truth_shown` count those that were cited and shown.
    `features` are what the confidence was computed from. `seconds` is the whole diagnosis; `sent_tokens` estimates the
    prompt that a bigger host would get for it. `first_category` is what the local model had said before an escalation.
    """

    incident: str
    source: str
    column: str
    truth: Truth
    ranking: tuple[str, ...]
    confidence: float
    accepted: bool
    entity: str
    cited: tuple[int, ...]
    shown: tuple[int, ...]
    cited_right: int
    truth_cited: int
    truth_shown: int
    truth_total: int
    seconds: float
    cost_usd: float
    summary: str = ""
    cited_text: tuple[str, ...] = ()
    features: dict[str, float] = field(default_factory=dict)
    alert: str = ""
    evidence: tuple[Shown, ...] = ()
    model: str = ""
    note: str = ""
    escalated: bool = False
    first_category: str = ""
    first_confidence: float = 0.0
    tokens: int = 0
    sent_tokens: int = 0
    lines: int = 0

    @property
    def category(self) -> str:
        """The answer."""
        return self.ranking[0] if self.ranking else UNKNOWN

    @property
    def right(self) -> bool:
        """Whether the answer is right. An abstention is, where the lines show no cause (the truth is `unknown`)."""
        return self.truth.right(self.category)

    @property
    def labelled(self) -> bool:
        """Whether the cause is known, so that the answer can be judged."""
        return bool(self.truth.category)

    @property
    def answered(self) -> bool:
        """Whether a cause was named at all."""
        return self.category != UNKNOWN

    @property
    def accepted_wrong(self) -> bool:
        """Whether a wrong cause was shown without asking further: what the promise bounds."""
        return self.accepted and self.answered and not self.right

    @property
    def entity_right(self) -> bool:
        """Whether the named entity is one of the true ones."""
        return any(same_entity(self.entity, name) for name in self.truth.entities)


def of(incident: Incident, finding: Finding, column: str, *, sent_tokens: int = 0) -> Verdict:
    """The verdict on an incident from what triage found."""
    diagnosis, evidence, truth = finding.diagnosis, finding.evidence, incident.truth
    lines = incident.case.lines
    true = {_key(number, lines) for number in truth.lines if 1 <= number <= len(lines)}
    cited = tuple(item.line_number for item in diagnosis.citations)
    shown = tuple(
        Shown(number=line.line_number, text=line.text[:1000], true=_key(line.line_number, lines) in true)
        for line in evidence.lines
    )
    keys = [_key(number, lines) for number in cited]
    others = [item.category for item in diagnosis.ranking if item.category != diagnosis.category]
    case = incident.case
    return Verdict(
        incident=incident.id,
        source=incident.source,
        column=column,
        truth=truth,
        ranking=(diagnosis.category, *others),
        confidence=diagnosis.confidence,
        accepted=diagnosis.action == "accept",
        entity=diagnosis.entity,
        cited=cited,
        shown=tuple(line.number for line in shown),
        cited_right=sum(key in true for key in keys),
        truth_cited=len(true & set(keys)),
        truth_shown=len(true & {_key(line.number, lines) for line in shown}),
        truth_total=len(true),
        seconds=diagnosis.latency_ms / 1000,
        cost_usd=diagnosis.cost_usd,
        summary=diagnosis.summary,
        cited_text=tuple(item.text[:1000] for item in diagnosis.citations),
        alert=" — ".join(part for part in (case.service, case.title, case.message) if part),
        evidence=shown,
        model=diagnosis.model,
        note=diagnosis.note,
        escalated=diagnosis.escalated,
        features=diagnosis.signals,
        first_category=finding.first.category if finding.first is not None else "",
        first_confidence=finding.first.confidence if finding.first is not None else 0.0,
        tokens=diagnosis.prompt_tokens + diagnosis.completion_tokens,
        sent_tokens=sent_tokens,
        lines=len(lines),
    )


def wording(line: str) -> str:
    """A line without its times, numbers and long hexadecimal ids."""
    return " ".join(_CHANGING.sub("", line).split())[:200]


def same_entity(first: str, second: str) -> bool:
    """Whether two names mean one thing: case, a port and the suffix that Kubernetes gives to a pod do not matter."""
    return _bare(first) == _bare(second)


def as_object(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a JSON object."""
    out = {item.name: getattr(verdict, item.name) for item in fields(verdict)}
    out["truth"] = {item.name: getattr(verdict.truth, item.name) for item in fields(Truth)}
    out["truth"]["lines"] = sorted(verdict.truth.lines)
    out["evidence"] = [[line.number, line.text, line.true] for line in verdict.evidence]
    return out


def from_object(value: dict[str, Any]) -> Verdict:
    """A verdict from its JSON object. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    truth = _tuples(value["truth"])
    truth["lines"] = frozenset(truth["lines"])
    evidence = tuple(Shown(number=number, text=text, true=true) for number, text, true in value["evidence"])
    return Verdict(**{**_tuples(value), "truth": Truth(**truth), "evidence": evidence})


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


def _key(number: int, lines: tuple[str, ...]) -> str | int:
    said = wording(lines[number - 1])
    return said if len(said) >= MIN_WORDING_CHARS else number


def _bare(name: str) -> str:
    return _POD.sub("", name.strip().casefold().partition(":")[0])
