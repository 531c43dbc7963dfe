"""What can be found, in which words, and how it is shown: sections of runbooks, and incidents of known cause."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from midwatch.copilot import runbooks as books
from midwatch.copilot.memory import PastIncident
from midwatch.copilot.model import Case, Evidence, Recalled
from midwatch.copilot.parsing import clean, clip
from midwatch.copilot.runbooks import Runbook

Key = tuple[str, str]
"""Kind and name of what can be found."""

TITLE_WEIGHT = 3
"""How often a title's words count: what a runbook is about stands there."""
MAX_LINES = 3
MAX_LINE_CHARS = 200
MAX_QUESTION_CHARS = 1_200
MAX_EXCERPT_CHARS = 300
MAX_STEPS = 5
STEPS_OF_A_SECTION = 2

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_/]")
_TELLS = re.compile(
    r"mitigat|resol|remediat|fix|recover|repair|action|what to do|how to|steps|solution|procedure|diagnos|investigat"
    r"|troubleshoot|debug",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A piece of text that can be found: a section of a runbook, or a past incident."""

    key: Key
    title: str
    body: str
    section: str = ""
    runbook: Runbook | None = None
    incident: PastIncident | None = None

    @property
    def text(self) -> str:
        """What is indexed."""
        name = self.runbook.name if self.runbook is not None else ""
        return "\n".join([*[self.title] * TITLE_WEIGHT, name, self.section, self.body])

    @property
    def sentence(self) -> str:
        """What is encoded: names in humps as words."""
        return " ".join(f"{spaced(self.title)}. {self.section}. {books.plain(self.body)}".split())[:MAX_QUESTION_CHARS]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is looked for. `alert` is the alert in words, `lines` are what the log says of it."""

    alert: str
    lines: str = ""


def question_of(case: Case, evidence: Evidence) -> Question:
    """The question of a case: its alert, and the lines that the rules' first category stands on (else the first)."""
    wanted = evidence.ranking[0].line_ids if evidence.ranking else ()
    lines = [line for line in evidence.lines if line.id in wanted] or list(evidence.lines)
    alert = " ".join(dict.fromkeys(part for part in (case.title, case.message, case.service) if part))
    return Question(
        alert=clip(clean(alert), MAX_QUESTION_CHARS),
        lines="\n".join(line.shown[:MAX_LINE_CHARS] for line in lines[:MAX_LINES]),
    )


def spaced(text: str) -> str:
    """Text with names in humps, paths and snake case as words: `KubePodNotReady` becomes `Kube Pod Not Ready`."""
    return _HUMPS.sub(" ", text)


def entries_of(runbooks: Iterable[Runbook], incidents: Iterable[PastIncident]) -> list[Entry]:
    """Everything that can be found: each section of each runbook, and each incident whole."""
    found = [
        Entry(
            key=("runbook", runbook.name),
            title=runbook.title,
            section=section.heading,
            body=section.text,
            runbook=runbook,
        )
        for runbook in runbooks
        for section in runbook.sections
    ]
    for incident in incidents:
        diagnosis = incident.finding.diagnosis
        lines = [item.text[:MAX_LINE_CHARS] for item in diagnosis.citations[:MAX_LINES]]
        body = "\n".join([incident.service, diagnosis.summary, *lines, incident.note])
        found.append(
            Entry(key=("incident", str(incident.id)), title=incident.title, body=clean(body), incident=incident)
        )
    return found


def recalled_from(entry: Entry, score: float, likeness: float, *, with_steps: bool) -> Recalled:
    """An entry as it is shown. `with_steps` says whether it is near enough for a runbook's steps to help."""
    kind, ref = entry.key
    excerpt = entry.body
    steps: tuple[str, ...] = ()
    if entry.runbook is not None:
        excerpt = books.plain(entry.body)
        steps = _steps(entry.runbook, entry.section) if with_steps else ()
    elif entry.incident is not None:
        excerpt = " ".join(part for part in (entry.incident.finding.diagnosis.summary, entry.incident.note) if part)
    return Recalled(
        kind="runbook" if kind == "runbook" else "incident",
        ref=ref,
        title=entry.title,
        score=round(score, 4),
        similarity=round(min(max(likeness, 0.0), 1.0), 4),
        excerpt=clip(clean(excerpt), MAX_EXCERPT_CHARS),
        section=entry.section,
        url=entry.runbook.url if entry.runbook is not None else "",
        steps=steps,
        category=entry.incident.category if entry.incident is not None else "",
    )


def _steps(runbook: Runbook, matched: str) -> tuple[str, ...]:
    """What a runbook tells to do: of the sections that are about doing, the matched one first, else of the matched."""
    doing = [section for section in runbook.sections if _TELLS.search(section.heading)]
    doing.sort(key=lambda section: section.heading != matched)
    wanted = doing or [section for section in runbook.sections if section.heading == matched]
    found = ((section.heading or runbook.title, books.steps(section.text)) for section in wanted)
    return tuple(f"{heading}: {clean(step)}" for heading, steps in found for step in steps[:STEPS_OF_A_SECTION])[
        :MAX_STEPS
    ]
