"""What is wrong with this incident? Evidence, one constrained call, checks, and a confidence that decides who is
asked next.

The path: `evidence.py` reads the log → one call to the local model, and a few short draws that share its prompt →
every id it names is checked against what it was shown → `confidence.py` weighs rules and model into one calibrated
number → if that is too low and a bigger model is configured, one redacted call to it, checked the same way; both
answers are kept. Without a usable answer the rules alone make the diagnosis and say so in `note`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from midwatch.copilot import answers, confidence, opinion, prompt, recalled, taxonomy
from midwatch.copilot.answers import Answer
from midwatch.copilot.confidence import Calibration, Judgement
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Action, Case, Citation, Diagnosis, Evidence, Finding, Ranked, Recalled
from midwatch.copilot.opinion import Opinion
from midwatch.copilot.prompt import Question
from midwatch.copilot.redact import redact_request, restore_value
from midwatch.errors import MidwatchError, ProviderError
from midwatch.gateway.providers import Provider
from midwatch.gateway.wire import ChatRequest, Completion
from midwatch.settings import CopilotSettings

if TYPE_CHECKING:
    from midwatch.copilot.recall import Recall

RULES_PROVIDER = "rules"
HEARD = 0.005
"""The least share of a model's opinion that is kept."""
RANKED = 6
"""Categories of the ranking that are kept."""
_log = logging.getLogger("midwatch.copilot")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a triage answers; the switches are those of the ablation.

    `taught`: the local model is the triage adapter, and is asked briefly; otherwise it is asked in full. `rules`: their
    ranking takes part in the decision (they always help to choose lines). `samples`: short draws beside the answer.
    `calibrations`: by column, `local`, `rules`, `asked` (a local model that was not taught) and `escalated`; a column
    without one gives a confidence that says it is not calibrated.
    """

    taught: bool = True
    rules: bool = True
    samples: int = 3
    calibrations: dict[str, Calibration] = field(default_factory=dict)


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

    def __init__(
        self,
        local: Provider | None,
        escalation: Provider | None,
        settings: CopilotSettings,
        options: Options | None = None,
        recall: Recall | None = None,
    ) -> None:
        self._local = local
        self._escalation = escalation
        self._settings = settings
        self._options = options or Options()
        self._recall = recall

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
        similar = await self._look_back(case, evidence)
        first = await self._ask_local(case, evidence, bill, began)
        if first.action != "escalate" or self._escalation is None:
            return _finding(evidence, first, similar)
        try:
            better = await self._escalate(case, evidence, similar, bill, began)
        except ProviderError as error:
            note = f"{first.note} The escalation host failed ({error.what}); this is the local answer.".strip()
            latency_ms = (time.perf_counter() - began) * 1000
            failed = replace(first, action="ask_person", note=note, latency_ms=latency_ms)
            return _finding(evidence, failed, similar)
        return _finding(evidence, better, similar, first=first)

    async def explain_by_rules(
        self, case: Case, evidence: Evidence, reason: str, *, started: float | None = None
    ) -> Finding:
        """The rules' diagnosis without asking anyone; `reason` says why and becomes the note."""
        rules = Triage(None, None, self._settings, self._options, self._recall)
        finding = await rules.explain(case, evidence, started=started)
        note = " ".join(part for part in (reason, finding.diagnosis.note) if part)
        return replace(finding, diagnosis=replace(finding.diagnosis, note=note))

    async def _look_back(self, case: Case, evidence: Evidence) -> tuple[Recalled, ...]:
        """What looks similar. It only helps, so a memory that cannot be read never stops a diagnosis."""
        if self._recall is None:
            return ()
        try:
            return await asyncio.to_thread(self._recall.find, case, evidence)
        except MidwatchError as error:
            _log.warning("triage: nothing could be recalled: %s", error)
            return ()

    async def _ask_local(self, case: Case, evidence: Evidence, bill: _Bill, began: float) -> Diagnosis:
        """What the rules and the local model say together."""
        options, notes = self._options, list[str]()
        answer: Answer | None = None
        heard: Opinion | None = None
        question = prompt.ask_brief(case, evidence) if options.taught else prompt.ask_full(case, evidence)
        if not evidence.lines:
            notes.append("The log is empty, so no line can be cited; only the alert's own words were judged.")
        elif self._local is not None:
            try:
                answer, heard = await self._opinion(self._local, question, evidence, bill)
            except ProviderError as error:
                if error.retryable:
                    raise
                notes.append(f"The local model refused ({error.what}); the rules alone decided.")
            else:
                if answer is None:
                    notes.append("The model's answer was not usable; the rules alone decided.")
        column = "rules" if answer is None else "local" if options.taught else "asked"
        return self._judge(case, evidence, answer, heard, bill, column=column, notes=notes, began=began)

    async def _opinion(
        self, provider: Provider, question: Question, evidence: Evidence, bill: _Bill
    ) -> tuple[Answer | None, Opinion | None]:
        """One answer, checked, and the opinion behind it and its short draws."""
        answer, completion = await _ask(provider, question, evidence)
        bill.add(completion)
        drawn: Sequence[Completion] = ()
        if answer is not None and self._options.taught and self._options.samples:
            requests = [prompt.again(question, seed) for seed in range(1, self._options.samples + 1)]
            drawn = await asyncio.gather(*(_complete(provider, request) for request in requests))
            for item in drawn:
                bill.add(item)
        return answer, opinion.read([completion.logprobs, *(item.logprobs for item in drawn)])

    async def _escalate(
        self, case: Case, evidence: Evidence, similar: Sequence[Recalled], bill: _Bill, began: float
    ) -> Diagnosis:
        """What the bigger model says; asked again without notes where it says what they speak for.

        Raises `ProviderError` if it says nothing usable.
        """
        notes = recalled.as_prompt(similar)
        noted = await self._ask_bigger(case, evidence, notes, bill, began)
        if not notes or noted.category not in recalled.suggested(similar):
            return noted
        return recalled.settle(noted, await self._ask_bigger(case, evidence, "", bill, began))

    async def _ask_bigger(self, case: Case, evidence: Evidence, notes: str, bill: _Bill, began: float) -> Diagnosis:
        assert self._escalation is not None
        answer, completion = await _ask(self._escalation, prompt.ask_full(case, evidence, notes), evidence)
        bill.add(completion)
        if answer is None:
            raise ProviderError(f"{self._escalation.name} did not answer with a JSON object.", retryable=False)
        heard = opinion.said(answer.category)
        return self._judge(case, evidence, answer, heard, bill, column="escalated", notes=[], began=began)

    def _judge(
        self,
        case: Case,
        evidence: Evidence,
        answer: Answer | None,
        heard: Opinion | None,
        bill: _Bill,
        *,
        column: str,
        notes: list[str],
        began: float,
    ) -> Diagnosis:
        """Weigh the voices, keep of the answer what fits the winner, and decide who is asked next."""
        calibration = self._options.calibrations.get(column)
        if heard is None and answer is not None:
            heard = opinion.said(answer.category)
        judged = confidence.judge(
            evidence,
            heard,
            answer.cited if answer else (),
            calibration,
            said=answer.category if answer else "",
            rules=self._options.rules or answer is None,
        )
        category = answer.category if answer is not None and column == "escalated" else judged.category
        final = answers.settle(answer, category, case, evidence)
        threshold = self._threshold(calibration)
        can_escalate = self._escalation is not None and column != "escalated"
        certain = judged.confidence if category == judged.category else 1 - judged.confidence
        return _diagnosis(
            evidence,
            final,
            bill,
            replace(judged, confidence=round(certain, 4)),
            heard=heard,
            threshold=threshold,
            action=confidence.action_of(certain, threshold, can_escalate=can_escalate),
            escalated=column == "escalated",
            notes=[*notes, *([final.note] if final.note else [])],
            latency_ms=(time.perf_counter() - began) * 1000,
        )

    def _threshold(self, calibration: Calibration | None) -> float:
        if self._settings.confidence_threshold is not None:
            return self._settings.confidence_threshold
        if calibration is None:
            return UNCALIBRATED_THRESHOLD
        return calibration.threshold(self._settings.alpha)


UNCALIBRATED_THRESHOLD = 0.8
"""Where no fit keeps a promise, only a plain case is accepted."""


async def _ask(provider: Provider, question: Question, evidence: Evidence) -> tuple[Answer | None, Completion]:
    """Ask once and check the answer (None: unusable). What a remote host sees is redacted, what it says restored."""
    request, redactor = question.request, None
    if provider.remote:
        request, redactor = redact_request(request)
    completion = await provider.complete(request)
    parsed = answers.parse(completion.text)
    if parsed is not None and redactor is not None:
        parsed = restore_value(parsed, redactor)
    return (None if parsed is None else answers.check(parsed, question, evidence)), completion


async def _complete(provider: Provider, request: ChatRequest) -> Completion:
    """A short draw, redacted where it leaves the machine."""
    return await provider.complete(redact_request(request)[0] if provider.remote else request)


def _finding(
    evidence: Evidence, diagnosis: Diagnosis, similar: tuple[Recalled, ...], first: Diagnosis | None = None
) -> Finding:
    """The finding, with the steps of similar runbooks, each naming its source, after those of the category."""
    steps = (*diagnosis.next_steps, *recalled.steps_of(similar))
    return Finding(evidence=evidence, diagnosis=replace(diagnosis, next_steps=steps), first=first, recalled=similar)


def _diagnosis(
    evidence: Evidence,
    answer: Answer,
    bill: _Bill,
    judged: Judgement,
    *,
    heard: Opinion | None,
    threshold: float,
    action: Action,
    escalated: bool,
    notes: list[str],
    latency_ms: float,
) -> Diagnosis:
    by_id = {line.id: line for line in evidence.lines}
    rules = {item.category: item.line_ids for item in evidence.ranking}
    subject = answer.entity if answer.entity != taxonomy.UNKNOWN else "NAME"
    return Diagnosis(
        category=answer.category,
        severity=answer.severity,
        entity=answer.entity,
        summary=answer.summary,
        confidence=judged.confidence,
        calibrated=judged.calibrated,
        action=action,
        citations=tuple(
            Citation(id=line_id, line_number=by_id[line_id].line_number, text=by_id[line_id].text)
            for line_id in answer.cited
        ),
        next_steps=tuple(step.replace("{entity}", subject) for step in answer.steps),
        provider=bill.provider,
        model=bill.model,
        prompt_tokens=bill.prompt_tokens,
        completion_tokens=bill.completion_tokens,
        cost_usd=bill.cost_usd,
        ttft_ms=bill.ttft_ms,
        latency_ms=latency_ms,
        ranking=tuple(
            Ranked(category=name, score=round(share, 4), line_ids=rules.get(name, ()))
            for name, share in judged.ranking[:RANKED]
        ),
        rejected_citations=answer.rejected,
        escalated=escalated,
        note=" ".join(notes),
        threshold=round(threshold, 4),
        signals=judged.signals,
        heard={} if heard is None else {k: round(v, 4) for k, v in heard.shares.items() if v >= HEARD},
    )
