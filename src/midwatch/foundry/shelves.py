"""What can an incident be made of? Recordings and entries of the bank by category, program and origin."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from midwatch.copilot.taxonomy import IDS, UNKNOWN
from midwatch.errors import FoundryError
from midwatch.foundry.bank import FALSE_ALARM, Entry
from midwatch.foundry.recording import Recording
from midwatch.foundry.split import Part, part_of
from midwatch.foundry.stories import category_of, in_ci

Item = Recording | Entry
FALSE_ALARM_SHARE = 0.12
UNKNOWN_SHARE = 0.03
RECORDED_SHARE, ENOUGH_PROGRAMS = 0.5, 3
"""How often a fault is recorded where the bank has it too; less where few programs were, so that none rules."""
FOREIGN_SHARE = 0.05
"""How often a fault speaks another language than English, in a category that has such entries."""


class Shelves:
    """Everything that a part may use. Raises `FoundryError` if there is no fault in it."""

    def __init__(self, recordings: Iterable[Recording], bank: Sequence[Entry], part: Part | None) -> None:
        everything: list[Item] = [*recordings, *bank]
        usable = [item for item in everything if item.lines and part in (None, part_of(item.program))]
        self._faults: dict[str, dict[bool, dict[str, list[Item]]]] = {}
        healthy: dict[bool, dict[str, list[Item]]] = {True: defaultdict(list), False: defaultdict(list)}
        ci_programs = {item.program for item in usable if item.kind != "healthy" and in_ci(item)}
        others = {item.program for item in usable if item.kind != "healthy" and not in_ci(item)}
        for item in usable:
            if item.kind == "healthy":
                ci = in_ci(item) or (item.program in ci_programs and item.program not in others)
                healthy[ci][item.program].append(item)
            else:
                kinds = self._faults.setdefault(category_of(item), {})
                kinds.setdefault(isinstance(item, Recording), defaultdict(list))[item.program].append(item)
        if not self._faults:
            raise FoundryError(
                f"There is nothing to make incidents of in the part {part or 'of all'}.",
                "Record faults first: midwatch foundry record.",
            )
        self._healthy = healthy
        self._foreign: dict[str, list[Item]] = defaultdict(list)
        for item in usable:
            if isinstance(item, Entry) and item.language != "en" and item.kind != "healthy":
                self._foreign[item.category].append(item)
        self.categories = tuple(name for name in IDS if name in self._faults)

    def draw_category(self, source: random.Random) -> str:
        """A category, each about as often as the other; false alarms and unknown causes in their own shares."""
        draw = source.random()
        if draw < UNKNOWN_SHARE:
            return UNKNOWN
        if draw < UNKNOWN_SHARE + FALSE_ALARM_SHARE and FALSE_ALARM in self._faults:
            return FALSE_ALARM
        return source.choice([name for name in self.categories if name != FALSE_ALARM] or [FALSE_ALARM])

    def draw(self, source: random.Random, category: str) -> Item:
        """Something of a category: recorded or of the bank, then each program equally often, then each fault."""
        kinds = self._faults[category]
        foreign = self._foreign.get(category)
        if foreign and source.random() < FOREIGN_SHARE:
            return source.choice(foreign)
        programs = kinds[_recorded(kinds, source)]
        by_fault: dict[str, list[Item]] = defaultdict(list)
        for item in programs[source.choice(sorted(programs))]:
            by_fault[item.fault if isinstance(item, Recording) else item.where].append(item)
        return source.choice(by_fault[source.choice(sorted(by_fault))])

    def neighbours(self, source: random.Random, count: int) -> list[Item]:
        """Some healthy programs, different ones if there are so many."""
        programs = sorted(self._healthy[False])
        chosen = source.sample(programs, min(count, len(programs)))
        return [source.choice(self._healthy[False][program]) for program in chosen]

    def healthy(self, program: str) -> list[Item]:
        """What a program says when it is well."""
        return self._healthy[False].get(program, [])

    def healthy_jobs(self) -> list[Item]:
        """What tools of continuous integration say when all is well."""
        return [item for program in sorted(self._healthy[True]) for item in self._healthy[True][program]]


def _recorded(kinds: dict[bool, dict[str, list[Item]]], source: random.Random) -> bool:
    """Whether to take a recording (True) or an entry of the bank."""
    if len(kinds) == 1:
        return next(iter(kinds))
    share = RECORDED_SHARE * min(1.0, len(kinds[True]) / ENOUGH_PROGRAMS)
    return source.random() < share
