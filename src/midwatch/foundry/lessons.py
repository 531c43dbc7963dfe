"""What is a model taught? A labelled incident as the copilot will ask it, and the true answer in the copilot's form.

The question is `prompt.ask_brief`'s own, so what is taught is what is asked. The answer cites shown lines that are true
(or word for word like a true one); an incident whose true lines the evidence missed teaches nothing and is left out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from midwatch.copilot import taxonomy
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Evidence, EvidenceLine
from midwatch.copilot.prompt import BRIEF_SYSTEM, MAX_CITATIONS, brief_text, severity_for
from midwatch.foundry.incident import Incident

BUDGETS = (400, 600, 800)
"""Evidence budgets that lessons are made with, tokens, so that the model does not learn one length."""


NAMELESS, THINNED, WORN = 0.35, 0.5, 0.4
"""How often a lesson loses the names of who printed its lines, lines that are not true, and words here and there."""
WORN_WORDS = 0.12
_PRINTER = re.compile(r"^((?:CRITICAL|ERROR|WARNING) )?[A-Za-z][\w./-]{1,40}: (?=\S)")
CHUNK = 250
"""Incidents that one process makes at a time."""
SEEDS = 1000
"""Seeds of the foundry that one seed of lessons may use."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A question and its answer, as three messages."""

    system: str
    user: str
    assistant: str
    tags: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        """One line of a file that `midwatch tune run` reads."""
        turns = (("system", self.system), ("user", self.user), ("assistant", self.assistant))
        messages = [{"role": role, "content": content} for role, content in turns]
        return json.dumps({"messages": messages, **self.tags}, ensure_ascii=False)


def lessons(incidents: Iterable[Incident], seed: int) -> Iterator[Lesson]:
    """A lesson from each incident whose truth the evidence shows."""
    for incident in incidents:
        draw = random.Random(f"{seed}/{incident.id}")
        evidence = varied(incident, build_evidence(incident.case, draw.choice(BUDGETS)), draw)
        answer = true_answer(incident, evidence)
        if answer is not None:
            yield Lesson(
                system=BRIEF_SYSTEM,
                user=brief_text(incident.case, evidence),
                assistant=answer,
                tags={"category": incident.truth.category, "incident": incident.id},
            )


def varied(incident: Incident, evidence: Evidence, draw: random.Random) -> Evidence:
    """The evidence as another day might have shown it: without who printed a line, with fewer lines beside the true,
    with words missing.

    The model then leans on what is said, and not on the name of a program, the company of a line, or one exact wording.
    """
    nameless, worn = draw.random() < NAMELESS, draw.random() < WORN
    share = draw.uniform(0.1, 0.8) if draw.random() < THINNED else 1.0
    true = {line.id for line in true_lines(incident, evidence)}
    kept = [line for line in evidence.lines if line.id in true or draw.random() < share] or evidence.lines
    lines = []
    for number, line in enumerate(kept, start=1):
        shown = _PRINTER.sub(r"\1", line.shown, count=1) if nameless else line.shown
        words = [word for word in shown.split(" ") if not worn or draw.random() > WORN_WORDS]
        lines.append(replace(line, id=f"L{number}", shown=" ".join(words) or shown))
    return replace(evidence, lines=tuple(lines))


def true_answer(incident: Incident, evidence: Evidence) -> str | None:
    """The answer that `ask_brief` would get from a model that knew the truth; None if no shown line tells it."""
    truth = incident.truth
    cited = true_lines(incident, evidence)
    if not evidence.lines or (not cited and truth.lines and truth.category != taxonomy.UNKNOWN):
        return None
    ids = [line.id for line in (cited or list(evidence.lines))[: MAX_CITATIONS if cited else 1]]
    entity = next((name for name in truth.entities if name in evidence.entities), taxonomy.UNKNOWN)
    severity = truth.severity or severity_for(incident.case, truth.category)
    answer = {"citations": ids, "category": truth.category, "severity": severity, "entity": entity}
    return json.dumps(answer, ensure_ascii=False)


def true_lines(incident: Incident, evidence: Evidence) -> list[EvidenceLine]:
    """Shown lines that are true or have the wording of a true one, one of each wording, in the log's order."""
    true = [line for line in evidence.lines if line.line_number in incident.truth.lines]
    wordings = {line.template for line in true}
    if not true and incident.truth.lines:
        said = {wording(incident.case.lines[number - 1]) for number in incident.truth.lines}
        true = [line for line in evidence.lines if wording(line.text) in said]
        wordings = {line.template for line in true}
    seen: set[str] = set()
    found = []
    for line in evidence.lines:
        if line.template in wordings and line.template not in seen:
            seen.add(line.template)
            found.append(line)
    return found


def wording(line: str) -> str:
    """A line without its digits: a repeated error is as telling as its first occurrence."""
    return "".join(letter for letter in line if not letter.isdigit())[:300]


def make_lessons(seed: int, count: int, *, jobs: int = 0) -> list[Lesson]:
    """Lessons from `count` incidents of programs that are for training (fewer: what the evidence misses is left out).

    The same for any number of `jobs` (processes; 0: one for each core).
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from os import cpu_count

    chunks = [(seed * SEEDS + index, min(CHUNK, count - index * CHUNK)) for index in range(-(-count // CHUNK))]
    jobs = min(jobs or cpu_count() or 1, len(chunks))
    if jobs <= 1:
        return [lesson for chunk in chunks for lesson in _chunk(chunk)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [lesson for made in pool.map(_chunk, chunks) for lesson in made]


def _chunk(chunk: tuple[int, int]) -> list[Lesson]:
    from midwatch.foundry import bank, compose

    seed, count = chunk
    made = compose.make(seed, count, part="train", recordings=compose.recorded(), bank=bank.load())
    return list(lessons(made, seed))
