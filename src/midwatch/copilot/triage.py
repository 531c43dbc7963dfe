"""What is wrong with this incident? Evidence, one constrained call, checks, and a confidence that decides who is
asked next.

The path: `evidence.py` reads the log → one call to the local model (`prompt.ask_local`) → every id it names is
checked against what it was shown → `confidence.py` → if that is too low and a bigger model is configured, one
redacted call to it, checked the same way. Without a usable answer the rules alone make the diagnosis and say so in
`note`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

import orjson

from midwatch.copilot import prompt, taxonomy
from midwatch.copilot.confidence import CALIBRATED, action_of, confidence_of, token_margin_of
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Case, Citation, Diagnosis, Evidence, Finding, Severity
from midwatch.copilot.parsing import clean, clip
from midwatch.copilot.prompt import Question
from midwatch.copilot.redact import redact_request, restore_value
from midwatch.errors import ProviderError
from midwatch.gateway.providers import Provider
from midwatch.gateway.wire import Completion
from midwatch.settings import CopilotSettings

RULES_PROVIDER = "rules"
MIN_CITATIONS = 2
"""Where the rules stand on so many lines, so many are cited."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A checked answer: everything in it was allowed, cited lines exist."""

    category: str
    severity: Severity
    entity: str
    summary: str
    cited: tuple[str, ...]
    steps: tuple[str, ...]
    rejected: int = 0
    note: str = ""


@dataclass(slots=True)
class _Bill:
    """What the calls of one diagnosis took together."""

    provider: str = RULES_PROVIDER
    model: str = "signature rules"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    ttft_ms: float = 0.0

    def add(self, completion: Completion) -> None:
        if not self.prompt_tokens:
            self.ttft_ms = completion.ttft_ms
        self.provider, self.model = completion.provider, completion.model
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.cost_usd += completion.cost_usd


class Triage:
    """Diagnoses cases. `local` may be None: then only the rules speak (and the escalation host, if there is one)."""

    def __init__(self, local: Provider | None, escalation: Provider | None, settings: CopilotSettings) -> None:
        self._local = local
        self._escalation = escalation
        self._settings = settings

    async def diagnose(self, case: Case) -> Finding:
        """Evidence and diagnosis of a case.

        Raises `ProviderError` only where asking the local model again can help (`retryable`); a host that refuses for
        good leaves a diagnosis by the rules with a note. A failed escalation leaves the local answer and asks a person.
        """
        started = time.perf_counter()
        evidence = await asyncio.to_thread(build_evidence, case, self._settings.evidence_tokens)
        return await self.explain(case, evidence, started=started)

    async def explain(self, case: Case, evidence: Evidence, *, started: float | None = None) -> Finding:
        """The diagnosis from evidence that is already gathered (`started`: `time.perf_counter()` at its beginning)."""
        began = time.perf_counter() - evidence.mining_ms / 1000 if started is None else started
        bill = _Bill()
        notes: list[str] = []
        question = prompt.ask_local(case, evidence)
        answer, confidence = _by_rules(evidence, question, ""), 0.0
        margin: float | None = None
        asked = False
        if self._local is not None and evidence.lines:
            try:
                answer, completion = await _ask(self._local, question, evidence, free=False)
                bill.add(completion)
                margin, asked = token_margin_of(completion.logprobs, "category"), True
            except ProviderError as error:
                if error.retryable:
                    raise
                notes.append(f"The local model refused ({error.what}); the rules alone decided.")
        elif not evidence.lines:
            notes.append("The log is empty, so no line can be cited; only the alert's own words were judged.")
        if answer.note:
            notes.append(answer.note)
        confidence = confidence_of(
            answer.category,
            evidence.ranking,
            answer.cited,
            choices=len(question.categories) if asked else 1,
            token_margin=margin,
        )
        action = action_of(confidence, self._settings.confidence_threshold, can_escalate=self._escalation is not None)
        escalated = False
        if action == "escalate" and self._escalation is not None:
            try:
                better, completion = await _ask(
                    self._escalation, prompt.ask_remote(case, evidence), evidence, free=True
                )
                bill.add(completion)
                answer, escalated = better, True
                notes += [better.note] if better.note else []
                confidence = confidence_of(answer.category, evidence.ranking, answer.cited, free=True)
                action = action_of(confidence, self._settings.confidence_threshold, can_escalate=False)
            except ProviderError as error:
                notes.append(f"The escalation host failed ({error.what}); this is the local answer.")
                action = "ask_person"
        return Finding(
            evidence=evidence,
            diagnosis=_diagnosis(
                evidence,
                answer,
                bill,
                confidence=confidence,
                action=action,
                escalated=escalated,
                notes=notes,
                latency_ms=(time.perf_counter() - began) * 1000,
            ),
        )

    async def explain_by_rules(
        self,
        case: Case,
        evidence: Evidence,
        reason: str,
        *,
        started: float | None = None,
    ) -> Finding:
        """The rules' diagnosis without asking anyone; `reason` says why and becomes the note."""
        finding = await Triage(None, None, self._settings).explain(case, evidence, started=started)
        note = " ".join(part for part in (reason, finding.diagnosis.note) if part)
        return replace(finding, diagnosis=replace(finding.diagnosis, note=note))


async def _ask(provider: Provider, question: Question, evidence: Evidence, *, free: bool) -> tuple[_Answer, Completion]:
    """Ask once and check the answer. What goes to a remote host is redacted, what comes back is restored."""
    request, redactor = question.request, None
    if provider.remote:
        request, redactor = redact_request(request)
    completion = await provider.complete(request)
    parsed = _parse(completion.text)
    if parsed is None:
        if free:
            raise ProviderError(f"{provider.name} did not answer with a JSON object.", retryable=False)
        return _by_rules(evidence, question, "The model's answer was not usable; the rules alone decided."), completion
    if redactor is not None:
        parsed = restore_value(parsed, redactor)
    return _check(parsed, question, evidence), completion


def _parse(text: str) -> dict[str, Any] | None:
    """The JSON object of an answer, which may stand in a code fence; None if there is none."""
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        return None
    try:
        value = orjson.loads(text[begin : end + 1])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _check(parsed: dict[str, Any], question: Question, evidence: Evidence) -> _Answer:
    """Keep of an answer what is allowed and true: shown ids, listed names, catalogued steps, a usable sentence."""
    named = [str(item) for item in _list(parsed.get("citations"))[:20]]
    shown = {line.id for line in evidence.lines}
    cited = [line_id for line_id in dict.fromkeys(named) if line_id in shown][: prompt.MAX_CITATIONS]
    rejected = len([line_id for line_id in named if line_id not in shown])
    category = taxonomy.canonical(str(parsed.get("category", "")))
    note = ""
    if category not in question.categories:
        category, note = (
            question.categories[0],
            "The model named a category that was not offered; the rules' first was taken.",
        )
    strongest = next((item.line_ids for item in evidence.ranking if item.category == category), ())
    missing = [line_id for line_id in strongest if line_id not in cited]
    if missing and (len(cited) < MIN_CITATIONS or not set(strongest[:2]) & set(cited)):
        added = missing[: max(1, MIN_CITATIONS - len(cited))]
        cited = [*added, *cited][: prompt.MAX_CITATIONS]
        note = f"{note} The rules added {', '.join(added)} to the cited lines.".strip()
    quoted = prompt.quotable(evidence, category) if question.sentences else None
    if quoted is not None and quoted.id not in cited:  # the sentence stands on it
        cited = [quoted.id, *cited][: prompt.MAX_CITATIONS]
    order = {line.id: line.line_number for line in evidence.lines}
    cited.sort(key=lambda line_id: order[line_id])
    severity = parsed.get("severity")
    entity = str(parsed.get("entity", "unknown"))
    steps = [
        question.steps[key][1]
        for key in dict.fromkeys(map(str, _list(parsed.get("next_steps"))))
        if key in question.steps and question.steps[key][0] == category
    ][: prompt.MAX_STEPS]
    return _Answer(
        category=category,
        severity=next((item for item in question.severities if item == severity), question.severities[0]),
        entity=entity if entity in question.entities else "unknown",
        summary=_summary(parsed.get("summary"), category, question, evidence),
        cited=tuple(cited),
        steps=tuple(steps or taxonomy.steps_of(category)[: prompt.MAX_STEPS]),
        rejected=rejected,
        note=note,
    )


def _summary(value: Any, category: str, question: Question, evidence: Evidence) -> str:
    """The model's sentence if it is usable, else one built from the category and its line to quote."""
    text = " ".join(clean(value).split()) if isinstance(value, str) else ""
    opening = prompt.sentence(category, None).rstrip(".")
    if question.sentences:
        if text in question.sentences and text.startswith(opening):
            return text
    elif (
        15 <= len(text) <= 2 * prompt.MAX_SUMMARY_CHARS and "<log>" not in text and len(set(text.lower().split())) >= 4
    ):
        return clip(text, prompt.MAX_SUMMARY_CHARS)
    return prompt.sentence(category, prompt.quotable(evidence, category))


def _by_rules(evidence: Evidence, question: Question, note: str) -> _Answer:
    category = question.categories[0]
    lines = prompt.telling(evidence, (category,)) if evidence.lines else []
    cited = (
        sorted(lines[: prompt.MAX_CITATIONS], key=lambda line: line.line_number)
        if category != taxonomy.UNKNOWN
        else lines[:3]
    )
    return _Answer(
        category=category,
        severity=question.severities[0],
        entity=question.entities[0],
        summary=prompt.sentence(category, prompt.quotable(evidence, category)),
        cited=tuple(line.id for line in cited),
        steps=taxonomy.steps_of(category)[: prompt.MAX_STEPS],
        note=note,
    )


def _diagnosis(
    evidence: Evidence,
    answer: _Answer,
    bill: _Bill,
    *,
    confidence: float,
    action: Any,
    escalated: bool,
    notes: list[str],
    latency_ms: float,
) -> Diagnosis:
    by_id = {line.id: line for line in evidence.lines}
    citations = tuple(
        Citation(id=line_id, line_number=by_id[line_id].line_number, text=by_id[line_id].text)
        for line_id in answer.cited
    )
    subject = answer.entity if answer.entity != "unknown" else "NAME"
    return Diagnosis(
        category=answer.category,
        severity=answer.severity,
        entity=answer.entity,
        summary=answer.summary,
        confidence=confidence,
        calibrated=CALIBRATED,
        action=action,
        citations=citations,
        next_steps=tuple(step.replace("{entity}", subject) for step in answer.steps),
        provider=bill.provider,
        model=bill.model,
        prompt_tokens=bill.prompt_tokens,
        completion_tokens=bill.completion_tokens,
        cost_usd=bill.cost_usd,
        ttft_ms=bill.ttft_ms,
        latency_ms=latency_ms,
        ranking=evidence.ranking,
        rejected_citations=answer.rejected,
        escalated=escalated,
        note=" ".join(notes),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
