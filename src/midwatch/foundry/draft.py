"""An incident in the making: a story, the time around it, who feels it, who else speaks, and how it is written."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from midwatch.copilot.taxonomy import UNKNOWN
from midwatch.foundry import ci, traits
from midwatch.foundry.bank import FALSE_ALARM, Entry
from midwatch.foundry.collectors import ALONE, OF_MACHINES, WEIGHTS, Collector, collector
from midwatch.foundry.names import Cast
from midwatch.foundry.neighbours import arrivals, chatter, consequences, felt, recovery
from midwatch.foundry.said import MACHINERY, Role, Said, Stage
from midwatch.foundry.shelves import Shelves
from midwatch.foundry.split import Part
from midwatch.foundry.stories import CI_PREFIX, Story, tell
from midwatch.foundry.traits import Written

SHORTEST, LONGEST = 5, 4_000
"""Lengths of logs; they are drawn evenly by their logarithm, so that half of them are shorter than about 150 lines."""
_FIRST_MOMENT, _LAST_MOMENT = 1_640_995_200, 1_798_761_600
_STORY_LINES = 600
_LINES_A_SECOND = (-1.3, 1.1)
"""How busy a log is, as powers of ten."""
SHARES = {
    "single": 0.02,
    "cascade": 0.45,
    "recovered": 0.10,
    "two_faults": 0.08,
    "skewed": 0.06,
    "injected": 0.06,
    "secrets": 0.07,
}
"""How often each trait is given; `single` is a log of one to four lines."""


@dataclass(kw_only=True)
class Draft:
    """What will be written down. `begin` and `end` are the moments between which something is said."""

    stage: Stage
    story: Story | None
    target: int
    begin: float
    end: float
    collect: Collector
    lines: list[Said] = field(default_factory=list)
    traits: list[str] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many more lines are wanted."""
        return self.target - len(self.lines)

    @property
    def failing(self) -> str:
        """The service that fails, as its dependents call it."""
        story, cast = self.story, self.stage.cast
        if story is None:
            services = [voice.service for voice in self.stage.voices.values() if voice.own]
            return self.stage.source.choice(services) if services else cast.name("service")
        service = next((name for name in (story.entity, *cast.aliases_of(story.entity)) if cast.is_service(name)), "")
        if service or story.voice.own:
            return service or story.voice.service
        return story.services[0] if story.services else cast.name("service")

    @property
    def hurt(self) -> str:
        """The service that people look at first: often one that only feels it."""
        if self.story is not None and self.story.ci:
            return self.stage.cast.name("repo").split("/")[-1]
        feels = [said.voice.service for said in self.lines if said.role == "consequence"]
        if feels and self.stage.source.random() < 0.7:
            return self.stage.source.choice(feels)
        return self.failing


def draft(source: random.Random, category: str, shelves: Shelves, part: Part | None) -> Draft:
    """Draw an incident of a category."""
    target = round(SHORTEST * (LONGEST / SHORTEST) ** source.random())
    if _given("single", source):
        target = source.randint(1, SHORTEST - 1)
    stage = Stage(source=source, cast=Cast(source))
    stage.namespace = stage.cast.name("ns")
    at = source.uniform(_FIRST_MOMENT, _LAST_MOMENT)
    if category == UNKNOWN:
        stage.collector = _collector(source, machines=False)
        made = Draft(
            stage=stage,
            story=None,
            target=max(target, SHORTEST),
            begin=at,
            end=at + target / 10 ** source.uniform(*_LINES_A_SECOND),
            collect=collector(stage.collector, source),
        )
        _neighbours(made, shelves)
        return made
    item = shelves.draw(source, category)
    stage.collector = _collector(source, machines=item.program in MACHINERY)
    part_of_log = _story_part(source, target)
    lasts_s = target / 10 ** source.uniform(*_LINES_A_SECOND)
    limit = max(1, min(_STORY_LINES, round(target * part_of_log)))
    story = tell(item, stage, at, limit=limit, lasts_s=lasts_s * part_of_log)
    made = Draft(
        stage=stage,
        story=story,
        target=target,
        begin=story.lines[0].at,
        end=max(said.at for said in story.lines),
        collect=collector(stage.collector, source),
        lines=list(story.lines),
    )
    if story.ci:
        made.lines, made.collect = ci.job(story, stage, shelves.healthy_jobs(), made.room, part)
        made.begin, made.end = made.lines[0].at, made.lines[-1].at
        _plant(made, story.category)
    else:
        _surround(made, story, shelves, lasts_s)
    return made


def written(made: Draft) -> list[Written]:
    """The lines of a draft as they stand in its log. A host whose clock is off has its lines at its own time."""
    source = made.stage.source
    arrival = source.random() < 0.5
    if made.story is not None and not made.story.ci and len(made.stage.hosts) > 1 and _given("skewed", source):
        host = source.choice(sorted({said.voice.host for said in made.lines}))
        skew_s = source.choice((-1, 1)) * source.uniform(45, 1200)
        for voice in made.stage.voices.values():
            voice.skew_s = skew_s if voice.host == host else 0.0
        made.traits.append("skewed")

    def order(said: Said) -> tuple[float, int]:
        return said.breath + (0.0 if arrival else said.voice.skew_s), said.voice.pid

    out: list[Written] = []
    for said in sorted(made.lines, key=order):
        at = said.at + said.voice.skew_s
        text = made.collect(said.voice, said.level, said.say(at), at)
        out.append(Written(traits.unbroken(text), said.role))
    return out


def _given(trait: str, source: random.Random) -> bool:
    return source.random() < SHARES[trait]


def _story_part(source: random.Random, target: int) -> float:
    """How much of the log the story itself may be: all of a short one, a smaller part of a long one."""
    return 1.0 if target < 25 else source.uniform(0.1, 0.85)


def _collector(source: random.Random, *, machines: bool) -> str:
    names = [name for name in WEIGHTS if not machines or name in OF_MACHINES]
    return source.choices(names, weights=[WEIGHTS[name] for name in names])[0]


def _surround(made: Draft, story: Story, shelves: Shelves, lasts_s: float) -> None:
    """The time around a story, a second fault, its dependents, its end, and the healthy neighbours."""
    source = made.stage.source
    length = made.end - made.begin
    if made.room > 3:
        spare = max(lasts_s - length, 0.2 * length, 5.0)
        before = source.uniform(0.1, 0.9)
        made.begin, made.end = made.begin - spare * before, made.end + spare * (1 - before)
    faulty = story.category != FALSE_ALARM
    if faulty and made.room > 6 and _given("two_faults", source):
        _second_fault(made, story, shelves)
    if faulty and made.room > 4 and felt(story.category) and _given("cascade", source):
        _cascade(made, story)
    if faulty and made.room > 6 and felt(story.category) and story.ended_at is None and _given("recovered", source):
        story.ended_at = made.end
        made.end += max(length, 20.0) * source.uniform(0.2, 1)
        count = source.randint(1, max(1, min(12, made.room // 3)))
        made.lines += recovery(made.failing, made.stage, arrivals(source, story.ended_at, made.end, count))
    if faulty and story.ended_at is not None:
        made.traits.append("recovered")
    _plant(made, story.category)
    _neighbours(made, shelves)


def _second_fault(made: Draft, story: Story, shelves: Shelves) -> None:
    """A few lines of a lesser trouble of another category, later than the first telling line: not the cause."""
    source = made.stage.source
    categories = [name for name in shelves.categories if name not in (FALSE_ALARM, story.category, *story.accepted)]
    categories = [name for name in categories if not name.startswith(CI_PREFIX)]
    if not categories:
        return
    item = shelves.draw(source, source.choice(categories))
    stage = Stage(source=source, cast=Cast(source), namespace=made.stage.namespace, collector=made.stage.collector)
    began = source.uniform(story.broke_at, made.end)
    second = tell(item, stage, began, limit=min(12, made.room), lasts_s=source.uniform(2, 60))
    lines = [said for said in second.lines if said.at >= second.broke_at][: min(12, made.room)]
    if second.ci or not lines:
        return
    telling = min((said.at for said in story.lines if said.role == "truth"), default=story.broke_at)
    late = max(0.0, telling + source.uniform(0.5, 30) - lines[0].at)
    for said in lines:
        said.at, said.breath, said.role = said.at + late, said.breath + late, "other_fault"
    made.lines += lines
    made.stage.voices |= {f"second/{key}": voice for key, voice in stage.voices.items()}
    made.end = max(made.end, lines[-1].at)
    made.traits.append("two_faults")


def _cascade(made: Draft, story: Story) -> None:
    """What one to three dependents of the failing service say until it is mended."""
    source = made.stage.source
    failing, until = made.failing, max(story.ended_at or made.end, story.broke_at + 30)
    for _ in range(source.choice((1, 1, 2, 3))):
        count = max(1, min(400, round(made.room * source.uniform(0.02, 0.15))))
        moments = arrivals(source, story.broke_at + source.uniform(0.5, 20), until, count)
        made.lines += consequences(story.category, failing, made.stage, moments)
    made.traits.append("cascade")


def _plant(made: Draft, category: str) -> None:
    """Lines that argue, and lines that tell secrets, said by somebody somewhere in the log."""
    source, cast = made.stage.source, made.stage.cast
    planted: dict[Role, tuple[str, Callable[[float], str]]] = {
        "injected": ("injected", lambda at: traits.injected(source, cast, category, at)),
        "secret": ("secrets", lambda at: traits.secret(source, cast, at)),
    }
    for role, (trait, text_at) in planted.items():
        if made.room < 2 or not _given(trait, source):
            continue
        users = [voice for voice in made.stage.voices.values() if voice.own]
        voices = users or list(made.stage.voices.values())
        for _ in range(source.choice((1, 1, 2, 3))):
            at = source.uniform(made.begin, made.end)
            voice = source.choice(voices)
            made.lines.append(Said(at=at, voice=voice, say=_saying(text_at(at)), level="info", role=role, breath=at))
        made.traits.append(trait)


def _saying(text: str) -> Callable[[float], str]:
    return lambda at: text


def _neighbours(made: Draft, shelves: Shelves) -> None:
    """Healthy programs fill what is left of the log; the failing one's own healthy lines are among them."""
    source, story, room = made.stage.source, made.story, made.room
    if room <= 0:
        return
    most = 1 if room < 8 else 2 if made.stage.collector == ALONE else 7
    items = [(item, False) for item in shelves.neighbours(source, source.randint(1, most))]
    own = shelves.healthy(story.program) if story is not None else []
    if own and source.random() < 0.6:
        items.append((source.choice(own), True))
    weights = [source.random() ** 2 + 0.02 for _ in items]
    for (item, is_own), weight in zip(items, weights, strict=True):
        end, voice = made.end, None
        if is_own and story is not None:
            voice = story.voice if isinstance(item, Entry) else None
            end = story.broke_at if story.ended_at is None and source.random() < 0.7 else made.end
        moments = arrivals(source, made.begin, max(end, made.begin + 1), round(room * weight / sum(weights)))
        made.lines += chatter(item, made.stage, moments, voice=voice)
