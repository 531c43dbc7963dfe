"""What of a model's answer may be shown? Ids that exist, names from the list, steps from the catalogue, a sentence that
the evidence bears out.

`check` reads an answer, `settle` makes it fit the category that was decided (which need not be the model's own).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import orjson

from midwatch.copilot import prompt, taxonomy
from midwatch.copilot.confidence import CITED_BY_RULES
from midwatch.copilot.model import Case, Evidence, EvidenceLine, Severity
from midwatch.copilot.parsing import clean, clip
from midwatch.copilot.prompt import Question

_CHECKED = re.compile(r"[\w.:/@-]*\d[\w.:/@-]*|\"[^\"]{3,80}\"|`[^`]{2,80}`")
"""Words of a sentence that must stand in the evidence: numbers and names with digits, and anything quoted."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A checked answer: everything in it was allowed, cited lines exist.

    `rejected` counts ids that were named but never shown. `summary` and `steps` are empty where the code writes them.
    """

    category: str
    severity: Severity
    entity: str
    summary: str
    cited: tuple[str, ...]
    steps: tuple[str, ...]
    rejected: int = 0
    note: str = ""


def parse(text: str) -> dict[str, Any] | None:
    """The JSON object of an answer, which may stand in a code fence; None if there is none."""
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        return None
    try:
        value = orjson.loads(text[begin : end + 1])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def check(parsed: dict[str, Any], question: Question, evidence: Evidence) -> Answer:
    """Keep of an answer what is allowed and true."""
    named = [str(item) for item in _list(parsed.get("citations"))[:20]]
    cited = [line_id for line_id in dict.fromkeys(named) if line_id in question.line_ids]
    written = str(parsed.get("category", ""))
    category = taxonomy.canonical(written)
    offered = category != taxonomy.UNKNOWN or written == taxonomy.UNKNOWN
    severity = parsed.get("severity")
    entity = str(parsed.get("entity", taxonomy.UNKNOWN))
    steps = [
        question.steps[key][1]
        for key in dict.fromkeys(map(str, _list(parsed.get("next_steps"))))
        if key in question.steps and question.steps[key][0] == category
    ]
    return Answer(
        category=category,
        severity=cast(Severity, severity) if severity in prompt.SEVERITIES else taxonomy.severity_of(category),
        entity=entity if entity in question.entities else taxonomy.UNKNOWN,
        summary=_own_sentence(parsed.get("summary"), evidence) if question.writes else "",
        cited=tuple(cited[: prompt.MAX_CITATIONS]),
        steps=tuple(steps[: prompt.MAX_STEPS]),
        rejected=len([line_id for line_id in named if line_id not in question.line_ids]),
        note="" if offered else "The model named a category that was not offered.",
    )


def settle(answer: Answer | None, category: str, case: Case, evidence: Evidence) -> Answer:
    """The answer that is shown for the decided category: the model's where it named that one, else the rules' lines."""
    by_id = {line.id: line for line in evidence.lines}
    mine = answer is not None and answer.category == category
    cited = list(answer.cited) if answer is not None and mine else []
    if not cited:
        lines = prompt.telling(evidence, (category,))
        cited = [line.id for line in lines[: CITED_BY_RULES if category != taxonomy.UNKNOWN else 2]]
    order = {line.id: line.line_number for line in evidence.lines}
    cited.sort(key=lambda line_id: order[line_id])
    entities = (*evidence.entities, taxonomy.UNKNOWN)
    note = answer.note if answer is not None else ""
    if answer is not None and not mine and taxonomy.UNKNOWN not in (category, answer.category):
        note = f"{note} The model alone would have said {answer.category}.".strip()
    return Answer(
        category=category,
        severity=answer.severity if answer is not None and mine else prompt.severity_for(case, category),
        entity=answer.entity if answer is not None and answer.entity != taxonomy.UNKNOWN else entities[0],
        summary=(answer.summary if answer is not None and mine else "")
        or prompt.sentence(category, _quoted(category, cited, by_id, evidence)),
        cited=tuple(cited),
        steps=(answer.steps if answer is not None and mine else ()) or taxonomy.steps_of(category)[: prompt.MAX_STEPS],
        rejected=answer.rejected if answer is not None else 0,
        note=note,
    )


def _quoted(category: str, cited: list[str], by_id: dict[str, EvidenceLine], evidence: Evidence) -> EvidenceLine | None:
    """The line that the sentence quotes: a cited one, one that the rules found too if there is such."""
    ruled = next((item.line_ids for item in evidence.ranking if item.category == category), ())
    agreed = [by_id[line_id] for line_id in ruled if line_id in cited]
    return prompt.quotable(agreed or [by_id[line_id] for line_id in cited])


def _own_sentence(value: Any, evidence: Evidence) -> str:
    """The model's own sentence, if it says something and every number and quoted word in it stands in the evidence."""
    text = " ".join(clean(value).split()) if isinstance(value, str) else ""
    if not 15 <= len(text) <= 2 * prompt.MAX_SUMMARY_CHARS or "<log>" in text or len(set(text.lower().split())) < 4:
        return ""
    known = " ".join((*evidence.entities, *(f"{line.id} {line.line_number} {line.text}" for line in evidence.lines)))
    words = [match.group().strip('"`.:,/-').lower() for match in _CHECKED.finditer(text)]
    return clip(text, prompt.MAX_SUMMARY_CHARS) if all(word in known.lower() for word in words) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
