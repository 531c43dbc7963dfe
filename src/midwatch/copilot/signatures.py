"""What do the lines say is wrong? Rules over the lines, weighed into a ranking of categories with the lines that say
so.

Cause beats symptom: an expired certificate also refuses connections and makes a gateway answer 502, so where the
cause is plain its symptoms count little. Of two causes the one that began first counts more. A recovery after the
last symptom, a planned maintenance or a watchdog makes a false alarm only if nothing that cannot heal by itself is
left unresolved. Nothing that a log says about the diagnosis itself has any effect: only the signatures of `rules.py`
count.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from midwatch.copilot import rules
from midwatch.copilot.rules import RULES

MIN_SCORE = 2.5
"""A category below this weight is not named at all."""
UNSEEN = 4.0
"""Weight kept for what no rule knows; it keeps a lone hint from looking certain."""
PLAIN = 6.5
"""From this weight on a category is said plainly: what recovers then was an incident and no false alarm."""
ELSEWHERE, BESIDE = 0.35, 0.2
"""What a further rule of a category adds where it reads another line than a stronger one, and the same line."""
BACKGROUND = 0.5
"""What a log says from its beginning to its end says little about what broke within it."""
FIRST = 1.1
"""What began first is likelier the cause."""
LATER = 0.6
"""Of symptoms that follow from one another the later ones count less."""
MAX_MATCHES_PER_LITERAL = 400
MAX_MATCHES_PER_RULE = 100
"""After so many wordings a rule reads only the end of the log."""
MAX_LINE_CHARS = 1_500

_LEVEL_FACTOR = {"debug": 0.4, "info": 0.65, "warning": 0.95}
_BUSINESS = ("service_routing", "health_probe", "network_connectivity", "dependency_failure")

BEATS: dict[str, tuple[str, ...]] = {
    "dns_resolution": _BUSINESS,
    "tls_cert_expiry": (*_BUSINESS, "authn_authz"),
    "oom_memory": (
        *_BUSINESS,
        "code_defect_crash",
        "node_control_plane",
        "queue_backlog",
        "cpu_saturation",
        "scheduling_capacity",
    ),
    "disk_storage_full": (
        *_BUSINESS,
        "code_defect_crash",
        "queue_backlog",
        "node_control_plane",
        "database_slow_or_locked",
        "scheduling_capacity",
        "storage_volume_mount",
        "image_pull_artifact",
        "ci_test_failure",
        "ci_build_dependency",
    ),
    "connection_exhaustion": (*_BUSINESS, "queue_backlog"),
    "quota_rate_limit": (*_BUSINESS, "queue_backlog", "image_pull_artifact", "authn_authz"),
    "scheduling_capacity": (*_BUSINESS, "deploy_regression"),
    "image_pull_artifact": (*_BUSINESS, "authn_authz", "deploy_regression", "dns_resolution"),
    "config_env_error": (*_BUSINESS, "code_defect_crash"),
    "code_defect_crash": _BUSINESS,
    "deploy_regression": (*_BUSINESS, "database_slow_or_locked"),
    "authn_authz": (*_BUSINESS, "code_defect_crash"),
    "database_slow_or_locked": (*_BUSINESS, "queue_backlog"),
    "storage_volume_mount": (*_BUSINESS, "scheduling_capacity"),
    "node_control_plane": (*_BUSINESS, "scheduling_capacity"),
    "cpu_saturation": ("health_probe", "dependency_failure"),
    "network_connectivity": ("service_routing", "dependency_failure", "health_probe"),
    "service_routing": ("dependency_failure",),
    "queue_backlog": ("dependency_failure",),
    "ci_test_failure": (
        "code_defect_crash",
        "authn_authz",
        "config_env_error",
        "dns_resolution",
        "tls_cert_expiry",
        "deploy_regression",
        *_BUSINESS,
    ),
    "ci_build_dependency": ("code_defect_crash",),
}
"""Which categories are mere symptoms while a cause is plain."""

_SAME_LINE: dict[str, tuple[str, ...]] = {
    "health_probe": (
        "network_connectivity",
        "dependency_failure",
        "service_routing",
        "authn_authz",
        "code_defect_crash",
        "quota_rate_limit",
    ),
    "dns_resolution": ("network_connectivity", "dependency_failure", "service_routing"),
}
"""What a line says beside a plain statement is a detail of it: a probe that failed because it was refused."""

SOFT = frozenset(
    {
        "network_connectivity",
        "service_routing",
        "health_probe",
        "dependency_failure",
        "cpu_saturation",
        "queue_backlog",
        "node_control_plane",
        "dns_resolution",
        "database_slow_or_locked",
        "connection_exhaustion",
        "quota_rate_limit",
    }
)
"""Troubles that can pass by themselves; a recovery line after the last of them makes them a false alarm."""

_LETTERS = "".join(chr(code) if 97 <= code <= 122 or code == 10 else " " for code in range(128))
"""What is no letter parts words; lines stay lines."""
_RULES_OF: dict[str, list[int]] = defaultdict(list)
for _index, _rule in enumerate(RULES):
    for _literal in _rule.literals:
        _RULES_OF[_literal].append(_index)
_WORDS_OF: dict[str, frozenset[str]] = {}
"""The words of a literal that are looked for: its longest one, and those that are not short."""
_LITERALS_OF: dict[str, list[str]] = defaultdict(list)
"""Literals by their longest word."""
for _literal in _RULES_OF:
    _parts = _literal.translate(_LETTERS).split()
    _longest = max(_parts, key=len, default="")
    _WORDS_OF[_literal] = frozenset(part for part in _parts if len(part) > 3 or part == _longest)
    _LITERALS_OF[_longest].append(_literal)
_PATH = re.compile(
    r"[\w@.-]/[\w@.-]|^/\w|\w\.(?:js|jsx|ts|tsx|mjs|py|md|mdx|html?|css|go|rs|java|kt|rb|php|json|ya?ml|toml|txt|snap|c|cc|cpp|h|hpp)$"
)
_CI = frozenset({"ci_test_failure", "ci_build_dependency"})
_KNOCKED = frozenset({"authn_authz", "tls_cert_expiry", "service_routing"})
_LEVELLESS = _CI | {"benign_false_alarm"}
"""Said at any level: build servers print failures as plain output, and a false alarm is no error."""
_ONSET_CATEGORIES = frozenset({"code_defect_crash", "database_slow_or_locked", "cpu_saturation", *_BUSINESS})


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched a line (a position in the scanned sequence; -1 is the alert's own words)."""

    line: int
    category: str
    rule: int
    weight: float


@dataclass(frozen=True, slots=True)
class Signal:
    """A category with its weight, its share of all weight, and the lines that say so, the strongest first."""

    category: str
    score: float
    share: float
    lines: tuple[int, ...]


def scan(lines: Sequence[str], levels: Sequence[str] = (), alert: str = "") -> list[Hit]:
    """Find every rule's lines. `lines` are lower-case; `alert` is the alert's title and message.

    Lines that may hold a literal are found by its words, so a rule that has nothing to say costs a few microseconds and
    no pattern.
    """
    texts = [line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] for line in lines]
    candidates: dict[int, set[int]] = {}
    find = _Finder(texts)
    for literal in find.likely() if texts else ():
        found = find(literal)
        for index in _RULES_OF[literal] if found else ():
            candidates.setdefault(index, set()).update(found)
    hits: list[Hit] = []
    for index in sorted(candidates):
        rule = RULES[index]
        matched = 0
        for line in sorted(candidates[index]):
            if matched >= MAX_MATCHES_PER_RULE and line < len(texts) - MAX_MATCHES_PER_RULE:
                continue
            if _matches(rule, texts[line]):
                level = levels[line] if levels else ""
                factor = 1.0 if rule.category in _LEVELLESS else _LEVEL_FACTOR.get(level, 1.0)
                if rule.category in _KNOCKED and rules.AT_THE_DOOR.search(texts[line]) is not None:
                    factor *= 0.5
                hits.append(Hit(line, rule.category, index, rule.weight * factor))
                matched += 1
    if alert:
        said = scan(alert.lower()[: 4 * MAX_LINE_CHARS].splitlines())
        hits += [Hit(-1, hit.category, hit.rule, hit.weight * 0.5) for hit in said]
    return hits


class _Finder:
    """Where texts hold a literal: found by its words; one without a letter is looked for as it is."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._joined = "\n".join(text.replace("\n", " ") for text in texts)
        self._lines_of: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self._joined.translate(_LETTERS).split("\n")):
            for word in set(words.split()):
                self._lines_of[word].append(number)
        self.words = "\n" + "\n".join(self._lines_of) + "\n"
        self._holding: dict[str, set[int]] = {}

    def __call__(self, literal: str) -> Sequence[int]:
        """Some of the numbers of the texts that hold the literal: in a flood the first ones and the last ones."""
        parts = _WORDS_OF[literal]
        if not parts:
            found = self._scan(literal)
        else:
            sets = sorted((self._with_part(part) for part in parts), key=len)
            likely = set.intersection(*sets) if len(sets) > 1 else sets[0]
            found = sorted(likely if {literal} == parts else (n for n in likely if literal in self._texts[n]))
        if len(found) > MAX_MATCHES_PER_LITERAL:
            return found[:MAX_MATCHES_PER_LITERAL] + found[-MAX_MATCHES_PER_LITERAL // 4 :]
        return found

    def likely(self) -> Iterable[str]:
        """The literals whose longest word is in the texts."""
        return chain.from_iterable(literals for word, literals in _LITERALS_OF.items() if word in self.words)

    def _with_part(self, part: str) -> set[int]:
        """The texts that have a word with this part in it."""
        found = self._holding.get(part)
        if found is None:
            found, at = set(), self.words.find(part)
            while at >= 0:
                end = self.words.index("\n", at)
                found.update(self._lines_of[self.words[self.words.rindex("\n", 0, at) + 1 : end]])
                at = self.words.find(part, end)
            self._holding[part] = found
        return found

    def _scan(self, literal: str) -> list[int]:
        found, number, last = [], 0, 0
        at = self._joined.find(literal)
        while at >= 0:
            number += self._joined.count("\n", last, at)
            found.append(number)
            last = self._joined.find("\n", at)
            if last < 0:
                break
            at = self._joined.find(literal, last)
        return found


def _matches(rule: rules.Rule, text: str) -> bool:
    match = rule.pattern.search(text)
    if match is None:
        return False
    if rule.category == "benign_false_alarm":
        return True
    if rules.PASSED.search(text) is not None or rules.TAKEN_BACK.search(text) is not None:
        return False
    if _in_path(text, match.start(), match.end()):
        return False
    return not any(no.start() < match.end() and match.start() < no.end() for no in rules.NEGATED.finditer(text))


def _in_path(text: str, start: int, end: int) -> bool:
    """Whether a match is one word inside a path or a file's name, such as `docs/not-found-error.md`."""
    if any(letter.isspace() for letter in text[start:end]):
        return False
    while start > 0 and (text[start - 1].isalnum() or text[start - 1] in "._/@+-"):
        start -= 1
    while end < len(text) and (text[end].isalnum() or text[end] in "._/@+-"):
        end += 1
    return _PATH.search(text[start:end]) is not None


def is_ci(marks: int, hits: Sequence[Hit]) -> bool:
    """Whether a log that holds so many of the words of `rules.CI_MARKS` comes from a build server or a test runner."""
    strong = {hit.rule for hit in hits if hit.category in _CI and hit.weight >= 7}
    return marks >= 2 or (marks == 1 and bool(strong)) or len(strong) >= 2


def weigh_distance(hits: Sequence[Hit], order: Sequence[int], end: int) -> list[Hit]:
    """Hits of a build's log, lighter the further before its `end` they are: a build stops soon after it fails."""

    def factor(hit: Hit) -> float:
        before = end - order[hit.line] if hit.line >= 0 else 0
        return 1.0 if before <= 300 else 0.8 if before <= 1_000 else 0.65

    return [Hit(hit.line, hit.category, hit.rule, hit.weight * factor(hit)) for hit in hits]


def rank(
    hits: Sequence[Hit],
    *,
    ci: bool = False,
    counts: Sequence[int] = (),
    rollout: int | None = None,
    order: Sequence[int] = (),
    last: Sequence[int] = (),
    total_lines: int = 0,
) -> list[Signal]:
    """Weigh hits into categories, the likeliest first; empty if nothing is said plainly enough.

    `counts[i]` is how many lines of the log line i stands for, `order[i]` and `last[i]` the places of the first and
    the last of those (by default i), `rollout` the place of the first line that says a new version went out,
    `total_lines` the log's length.
    """
    by_rule: dict[str, dict[int, list[Hit]]] = defaultdict(lambda: defaultdict(list))
    last = last or order
    for hit in _without_details(hits):
        always = hit.line >= 0 and bool(counts) and _is_background(hit, counts, order, last, total_lines)
        by_rule[hit.category][hit.rule].append(replace(hit, weight=hit.weight * BACKGROUND) if always else hit)
    scores: dict[str, float] = {}
    lines: dict[str, list[int]] = {}
    onset: dict[str, int] = {}
    ended: dict[str, int] = {}
    for category, matched in by_rule.items():
        scores[category] = _strength(matched.values(), _context(category, ci), counts)
        placed = [(-hit.weight, hit.line) for group in matched.values() for hit in group if hit.line >= 0]
        lines[category] = list(dict.fromkeys(line for _, line in sorted(placed)))
        onset[category] = min((order[line] if order else line for _, line in placed), default=1 << 60)
        ended[category] = max((last[line] if last else line for _, line in placed), default=-1)
    _weigh_rollout(scores, lines, onset, rollout)
    places = [
        (
            RULES[hit.rule].weight >= 6 and "recover" not in RULES[hit.rule].literals,
            order[hit.line] if order else hit.line,
        )
        for group in by_rule["benign_false_alarm"].values()
        for hit in group
        if hit.line >= 0
    ]
    _weigh_false_alarm(scores, places, onset, ended, total_lines)
    _weigh_causes(scores, onset)
    kept = {category: score for category, score in scores.items() if score >= MIN_SCORE}
    total = sum(kept.values()) + UNSEEN
    ranked = sorted(kept, key=lambda name: (-kept[name], onset.get(name, 0), name))
    return [Signal(name, kept[name], kept[name] / total, tuple(lines[name])) for name in ranked]


def _at(hit: Hit, order: Sequence[int]) -> int:
    return order[hit.line] if order else hit.line


def _is_background(hit: Hit, counts: Sequence[int], order: Sequence[int], last: Sequence[int], total: int) -> bool:
    """Whether a program keeps saying so all day: strangers who knock, names that never resolve, retries."""
    if total < 40 or counts[hit.line] < 3 or not (hit.category in SOFT or hit.category in _KNOCKED):
        return False
    place, end = (order[hit.line], last[hit.line]) if order else (hit.line, hit.line)
    return place < total // 4 and end >= total - total // 4


def _strength(groups: Iterable[list[Hit]], context: float, counts: Sequence[int]) -> float:
    """What a category's rules weigh together: the strongest, and a part of the next three, less of one beside it.

    Each of `groups` are the hits of one rule. The alert's own words say one thing, however many rules know them.
    """
    strengths: list[tuple[float, set[int]]] = []
    for group in groups:
        seen = sum(counts[hit.line] if counts and hit.line >= 0 else 1 for hit in group)
        best = max(hit.weight for hit in group)
        strengths.append((best * context * (1 + 0.05 * min(math.log2(seen), 6)), {hit.line for hit in group}))
    strengths.sort(key=lambda item: -item[0])
    total, said = strengths[0]
    said = set(said)
    for strength, lines in strengths[1:4]:
        total += strength * (ELSEWHERE if not lines <= said else 0.0 if lines == {-1} else BESIDE)
        said |= lines
    return total


def _without_details(hits: Sequence[Hit]) -> list[Hit]:
    """Hits, lighter where the same line says plainly what they are a detail of."""
    details: dict[int, set[str]] = defaultdict(set)
    for hit in hits:
        if hit.category in _SAME_LINE and RULES[hit.rule].weight >= 6:
            details[hit.line].update(_SAME_LINE[hit.category])
    return [replace(hit, weight=hit.weight * 0.3) if hit.category in details.get(hit.line, ()) else hit for hit in hits]


def _context(category: str, ci: bool) -> float:
    """How much a category counts, knowing whether this is a build's log."""
    if category in _CI:
        return 1.0 if ci else 0.4
    if not ci:
        return 1.0
    return {
        "code_defect_crash": 0.55,
        "benign_false_alarm": 0.3,
        "config_env_error": 0.6,
        "health_probe": 0.4,
        "deploy_regression": 0.5,
        "queue_backlog": 0.4,
        "service_routing": 0.5,
        "network_connectivity": 0.7,
        "dependency_failure": 0.6,
    }.get(category, 0.85)


def _weigh_rollout(
    scores: dict[str, float],
    lines: dict[str, list[int]],
    onset: dict[str, int],
    rollout: int | None,
) -> None:
    """Errors that begin only after a new version went out speak for the version."""
    if rollout is None:
        return
    troubles = [
        name for name, score in scores.items() if score >= 4 and name not in {"benign_false_alarm", "deploy_regression"}
    ]
    if not troubles or any(onset[name] < rollout for name in troubles):
        return
    if all(name in _ONSET_CATEGORIES for name in troubles):
        top = max(scores[name] for name in troubles)
        scores["deploy_regression"] = max(scores.get("deploy_regression", 0.0), 0.0) * 0.5 + top + 0.5
        first = min(troubles, key=lambda name: onset[name])
        lines["deploy_regression"] = list(dict.fromkeys([*lines.get("deploy_regression", []), *lines[first][:2]]))
        onset["deploy_regression"] = rollout


def _weigh_false_alarm(
    scores: dict[str, float],
    places: Sequence[tuple[bool, int]],
    onset: dict[str, int],
    ended: dict[str, int],
    total_lines: int,
) -> None:
    """A false alarm is what has passed or was planned; whatever cannot pass by itself forbids it.

    `places` are (whether it tells of a plan, where) of what speaks for a false alarm. A plan explains only what began
    near it, and a recovery only what had ended by then: other programs restart and recover beside an incident too.
    """
    benign = "benign_false_alarm"
    if benign not in scores:
        return
    troubles = [name for name, score in scores.items() if name != benign and score >= 3]
    if not troubles and not any(plan for plan, _ in places):
        scores[benign] *= 0.6  # programs say that they are well also where nothing was wrong
    if any(name not in SOFT for name in troubles):
        scores[benign] *= 0.25
        return
    near = max(20, total_lines // 20)
    for name in troubles:
        planned = any(plan and abs(at - onset[name]) <= near for plan, at in places)
        recovered = any(not plan and at >= ended[name] for plan, at in places)
        if planned and (ended[name] <= ended[benign] or total_lines - ended[name] > max(20, 0.3 * total_lines)):
            scores[name] *= 0.3
        elif planned:
            scores[name] *= 0.7
        elif recovered:
            scores[name] *= 0.3 if scores[name] < PLAIN else 0.75
        else:
            scores[benign] *= 0.4


def _weigh_causes(scores: dict[str, float], onset: dict[str, int]) -> None:
    plain = {name for name, score in scores.items() if score >= 5.5}
    for cause in sorted(plain, key=lambda name: -scores[name]):
        for symptom in BEATS.get(cause, ()):
            if symptom not in scores or cause in BEATS.get(symptom, ()):
                continue
            if cause not in _BUSINESS or onset[cause] <= onset[symptom]:  # of two symptoms the later one follows
                scores[symptom] *= 0.35
    real = [name for name in scores if name != "benign_false_alarm" and scores[name] >= MIN_SCORE]
    if len(real) > 1:
        first = min(real, key=lambda name: onset[name])
        if onset[first] < min(onset[name] for name in real if name != first):
            scores[first] *= FIRST
            if scores[first] >= 5.5 and first in _BUSINESS:
                for name in real:
                    scores[name] *= LATER if name != first and name in _BUSINESS else 1.0
