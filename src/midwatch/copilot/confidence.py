"""How sure are we? One number from what can be checked, never from what a model says about itself.

    confidence = 0.10 + 0.70 · strength · (0.55 + 0.45 · lead) + 0.10 · coverage + agreement      (clipped to 0..0.95)

    strength   how plainly the rules name the category: its share of all weight, from 0.40 (a hint) to 0.70 (a plain
    statement)
    lead       its share less the next category's, from 0 to 0.50
    coverage   the part of the lines behind it (two are enough) that the answer cites
    agreement  where a model had a choice: 0.05 to 0.10 with its token margin if it chose what the rules rank first,
    else -0.20

A host that may choose any category (`free`) is believed at 0.55 for a category that no rule speaks for, and a rule that
agrees adds to that. `unknown` is at most 0.20. The number is not yet fitted on labelled incidents; `calibrated` says
so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import exp

from midwatch.copilot.model import Action, Ranked
from midwatch.copilot.taxonomy import UNKNOWN
from midwatch.gateway.wire import TokenLogprob

CALIBRATED = False
MAX_CONFIDENCE = 0.95
MAX_UNKNOWN = 0.20
_FREE_BASE = 0.55


def confidence_of(
    category: str,
    ranking: Sequence[Ranked],
    cited: Collection[str],
    *,
    choices: int = 1,
    token_margin: float | None = None,
    free: bool = False,
) -> float:
    """P(the category is right), from 0 to 0.95, by the formula above.

    `choices` is how many categories the model could choose from (1: the rules had decided), `token_margin` the least
    gap between the likeliest and the next token of its choice (0 to 1; None if unknown), `free` a host with the whole
    taxonomy.
    """
    mine = next((ranked for ranked in ranking if ranked.category == category), None)
    if category == UNKNOWN:
        return MAX_UNKNOWN if not ranking else MAX_UNKNOWN / 2
    if mine is None:
        return _FREE_BASE if free else MAX_UNKNOWN
    others = max((ranked.score for ranked in ranking if ranked is not mine), default=0.0)
    strength = _unit((mine.score - 0.40) / 0.30)
    lead = _unit((mine.score - others) / 0.50)
    needed = min(2, len(mine.line_ids))
    coverage = _unit(len(set(cited) & set(mine.line_ids)) / needed) if needed else 0.0
    agreement = 0.0
    if choices > 1:
        agrees = mine is ranking[0]
        agreement = 0.05 + 0.05 * (token_margin or 0.0) if agrees else -0.20
    value = 0.10 + 0.70 * strength * (0.55 + 0.45 * lead) + 0.10 * coverage + agreement
    if free:
        value = max(value, _FREE_BASE + 0.3 * strength)
    return round(min(max(value, 0.0), MAX_CONFIDENCE), 3)


def action_of(confidence: float, threshold: float, *, can_escalate: bool) -> Action:
    """Accept at or above the threshold; below it ask the bigger model if there is one, else a person."""
    if confidence >= threshold:
        return "accept"
    return "escalate" if can_escalate else "ask_person"


def token_margin_of(logprobs: Sequence[TokenLogprob], key: str) -> float | None:
    """The least probability gap between first and second choice over the tokens of a key's string value; None if not
    known."""
    text = "".join(item.token for item in logprobs)
    begin = text.find(f'"{key}"')
    begin = text.find('"', text.find(":", begin)) + 1 if begin >= 0 else 0
    end = text.find('"', begin)
    if begin <= 0 or end < 0:
        return None
    margins: list[float] = []
    at = 0
    for item in logprobs:
        if begin <= at + len(item.token) - 1 and at < end and len(item.top) >= 2:
            first, second = sorted((exp(logprob) for _, logprob in item.top), reverse=True)[:2]
            margins.append(first - second)
        at += len(item.token)
    return min(margins) if margins else None


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
