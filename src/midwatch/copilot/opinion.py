"""What did a model think of each category, and how sure was it of its words? Read from its tokens' probabilities.

A model that is closed by a grammar chooses the category within one or two tokens; the probabilities of what it could
have written there are its whole opinion. Several answers, each after citations of its own, average to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

from midwatch.copilot.taxonomy import IDS
from midwatch.gateway.wire import TokenLogprob

LEAST = 1e-4
"""The least probability that a category is given: what a model leaves out is unlikely, never impossible."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """P(category), of all answers together (sums to 1), and how it came about.

    `agreement` is the share of the answers whose own likeliest category is the overall one, `spread` the largest
    difference that an answer makes to it. `entity_margin` is the least gap between first and second choice while the
    entity was written, `mean_logprob` that of the first answer's chosen tokens (nats).
    """

    shares: Mapping[str, float]
    agreement: float = 1.0
    spread: float = 0.0
    entity_margin: float = 0.0
    mean_logprob: float = 0.0
    answers: int = 1

    @property
    def best(self) -> str:
        """The likeliest category."""
        return max(self.shares, key=lambda name: self.shares[name])

    @property
    def margin(self) -> float:
        """The gap between the likeliest category and the next."""
        first, second = sorted(self.shares.values(), reverse=True)[:2]
        return first - second


def read(answers: Sequence[Sequence[TokenLogprob]]) -> Opinion | None:
    """The opinion behind some answers to one question, the main one first; None if they carry no probabilities."""
    each = [found for found in (category_shares(tokens) for tokens in answers) if found is not None]
    if not each:
        return None
    shares = {name: sum(found[name] for found in each) / len(each) for name in IDS}
    best = max(shares, key=lambda name: shares[name])
    chosen = [token.logprob for token in answers[0] if token.top]
    return Opinion(
        shares=shares,
        agreement=sum(max(found, key=lambda name: found[name]) == best for found in each) / len(each),
        spread=max(abs(found[best] - shares[best]) for found in each),
        entity_margin=margin_of(answers[0], "entity"),
        mean_logprob=sum(chosen) / len(chosen) if chosen else 0.0,
        answers=len(each),
    )


def said(category: str, share: float = 0.9) -> Opinion:
    """The opinion of a host that gives no probabilities: what it said, and a little for everything else."""
    rest = (1 - share) / (len(IDS) - 1)
    return Opinion(shares={name: share if name == category else rest for name in IDS})


def category_shares(tokens: Sequence[TokenLogprob], key: str = "category") -> dict[str, float] | None:
    """P(category) from the tokens in which an answer names it; None if they carry no alternatives."""
    weights = dict.fromkeys(IDS, LEAST)
    left, told, mass = list(IDS), False, 1.0
    written = ""
    for before, token in _value(tokens, key):
        if len(token.top) >= 2:
            told = True
            said: dict[str, float] = {}
            for text, logprob in token.top:
                rest = (before + text).split('"')[0]
                fitting = [name for name in left if name.startswith(rest) and rest != written]
                for name in fitting:
                    said[name] = said.get(name, 0.0) + mass * exp(logprob) / len(fitting)
            weights.update((name, max(share, LEAST)) for name, share in said.items())
            mass *= exp(token.logprob)
        written = (before + token.token).split('"')[0]
        left = [name for name in left if name.startswith(written)]
        if len(left) <= 1:
            break
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if told else None


def margin_of(tokens: Sequence[TokenLogprob], key: str) -> float:
    """The least probability gap between first and second choice over a key's value; 1 if none was open."""
    margins = [1.0]
    for _, token in _value(tokens, key):
        if len(token.top) >= 2:
            first, second = sorted((exp(logprob) for _, logprob in token.top), reverse=True)[:2]
            margins.append(first - second)
    return min(margins)


def _value(tokens: Sequence[TokenLogprob], key: str) -> list[tuple[str, TokenLogprob]]:
    """The tokens of a key's string value, each with what of the value was written before it."""
    text = "".join(token.token for token in tokens)
    begin = text.find(f'"{key}"')
    begin = text.find('"', text.find(":", begin)) + 1 if begin >= 0 else 0
    end = text.find('"', begin)
    if begin <= 0 or end < 0:
        return []
    found, at = [], 0
    for token in tokens:
        if at < end and at + len(token.token) > begin:
            found.append((text[begin:at] if at > begin else "", token if at >= begin else _behind(token, begin - at)))
        at += len(token.token)
    return found


def _behind(token: TokenLogprob, skip: int) -> TokenLogprob:
    """The part of a token that lies in the value (a token may begin with the quotation mark before it)."""
    head = token.token[:skip]
    top = tuple((text[skip:], logprob) for text, logprob in token.top if text.startswith(head))
    return TokenLogprob(token=token.token[skip:], logprob=token.logprob, top=top)
