"""Incidents made of small recordings and a small bank."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import material
import pytest

from midwatch.copilot.taxonomy import IDS
from midwatch.errors import FoundryError
from midwatch.foundry import compose, incident
from midwatch.foundry.bank import Entry
from midwatch.foundry.incident import Incident
from midwatch.foundry.shelves import Shelves
from midwatch.foundry.split import Part, part_of

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Entry, ...]:
    return material.bank_of(tmp_path_factory.mktemp("bank"))


@cache
def some(bank: tuple[Entry, ...], count: int = 120, seed: int = 7, part: Part | None = None) -> list[Incident]:
    """The same incidents for every test that asks for them; nobody changes them."""
    return list(compose.make(seed, count, part=part, recordings=material.recordings(), bank=bank))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, bank: tuple[Entry, ...]) -> None:
    first, second, other = (tmp_path / name for name in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl.gz"))
    for path, seed in ((first, 7), (second, 7), (other, 8)):
        incident.write(path, some.__wrapped__(bank, 30, seed))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert [item.id for item in incident.read(first)] == [f"7-{number:05d}" for number in range(30)]


def test_an_incident_can_be_made_alone(bank: tuple[Entry, ...]) -> None:
    shelves = Shelves(material.recordings(), bank, None)
    assert compose.one(7, 23, shelves) == some(bank, 24)[23]


def test_the_true_lines_are_the_telling_ones_and_all_of_them(bank: tuple[Entry, ...]) -> None:
    for made in some(bank):
        if "two_faults" in made.truth.traits:
            continue
        telling = {number for number, text in enumerate(made.case.lines, start=1) if "TELLING" in text}
        assert made.truth.lines == telling, made.id


def test_of_two_faults_only_the_first_is_true(bank: tuple[Entry, ...]) -> None:
    double = [made for made in some(bank, 400) if "two_faults" in made.truth.traits]
    assert double
    for made in double:
        telling = {number for number, text in enumerate(made.case.lines, start=1) if "TELLING" in text}
        assert made.truth.lines < telling
        if "skewed" not in made.truth.traits:
            assert min(telling) in made.truth.lines
        assert made.case.title


def test_no_program_that_is_held_out_speaks_in_training(bank: tuple[Entry, ...]) -> None:
    for made in some(bank, part="train"):
        assert made.truth.program == "" or part_of(made.truth.program) == "train"
        assert not any("Background saving" in text or "--- FAIL" in text for text in made.case.lines)
    for made in some(bank, part="test"):
        assert made.truth.program == "" or part_of(made.truth.program) == "test"


def test_no_old_name_of_a_recording_is_left(bank: tuple[Entry, ...]) -> None:
    for made in some(bank):
        texts = [*made.case.lines, made.case.title, made.case.message, made.case.service, made.truth.cause]
        for old in material.OLD_NAMES:
            assert not any(old in text for text in (*texts, *made.truth.entities)), made.id


def test_the_entity_stands_in_the_log(bank: tuple[Entry, ...]) -> None:
    for made in some(bank):
        if made.truth.entities and not {"binary", "truncated"} & set(made.truth.traits):
            log = "\n".join(_COLOUR.sub("", text) for text in made.case.lines)
            assert any(name in log for name in made.truth.entities), made.id


def test_a_recording_tells_the_times_of_its_incident(bank: tuple[Entry, ...]) -> None:
    made = [item for item in some(bank) if item.truth.program == "postgresql"]
    assert made
    for item in made:
        assert not any("2026-10-02 13:32:04.000" in text for text in item.case.lines)


def test_lengths_spread_from_one_line_to_thousands(bank: tuple[Entry, ...]) -> None:
    lengths = sorted(len(made.case.lines) for made in some(bank, 300))
    assert lengths[0] < 10
    assert lengths[-1] > 2000
    assert 60 < lengths[150] < 400


def test_categories_are_even_but_for_false_alarms_and_unknown_causes(bank: tuple[Entry, ...]) -> None:
    counts = Counter(made.truth.category for made in some(bank, 400))
    assert set(counts) <= set(IDS)
    assert 25 < counts["benign_false_alarm"] < 75
    assert 3 < counts["unknown"] < 30
    rest = [counts[name] for name in ("oom_memory", "queue_backlog", "ci_test_failure", "connection_exhaustion")]
    assert max(rest) < 2 * min(rest)


def test_alerts_seldom_give_the_cause_away_and_are_often_missing(bank: tuple[Entry, ...]) -> None:
    made = [item for item in some(bank, 400) if item.truth.category not in ("unknown", "benign_false_alarm")]
    silent = sum(not item.case.title for item in made)
    own = sum("is down" in item.case.title or "KubePodCrashLooping" in item.case.title for item in made)
    assert 0.2 < silent / len(made) < 0.4
    assert own / len(made) < 0.3


def test_an_unknown_cause_has_an_alert_and_no_true_line(bank: tuple[Entry, ...]) -> None:
    for made in some(bank, 300):
        if made.truth.category == "unknown":
            assert made.case.title
            assert not made.truth.lines
            assert len(made.case.lines) >= 5


def test_a_twin_differs_only_by_lines_that_argue(bank: tuple[Entry, ...]) -> None:
    for made in some(bank, 40):
        other = compose.twin(made, 3, places=3)
        assert other == compose.twin(made, 3, places=3)
        assert len(other.case.lines) == len(made.case.lines) + 3
        kept = iter(other.case.lines)
        assert all(text in kept for text in made.case.lines)
        assert [other.case.lines[number - 1] for number in sorted(other.truth.lines)] == [
            made.case.lines[number - 1] for number in sorted(made.truth.lines)
        ]
        assert "injected" in other.truth.traits
        assert other.truth.category == made.truth.category


def test_lines_inserted_at_several_places_move_the_true_ones() -> None:
    from midwatch.copilot.model import Case
    from midwatch.foundry.incident import Truth

    made = Incident(
        id="x",
        source="foundry",
        case=Case(service="", title="", lines=("a", "b", "c")),
        truth=Truth(category="oom_memory", lines=frozenset({2})),
    )
    other = compose.insert(made, [(0, "first"), (3, "last"), (1, "mid")])
    assert other.case.lines == ("first", "a", "mid", "b", "c", "last")
    assert other.truth.lines == frozenset({4})


def test_nothing_to_make_incidents_of_is_said() -> None:
    with pytest.raises(FoundryError, match="nothing to make incidents of"):
        next(compose.make(1, 1, recordings=[material.recorded(kind="healthy")], bank=()))


def test_a_name_of_an_unknown_kind_is_said() -> None:
    from dataclasses import replace

    odd = replace(material.recorded(), names={"oldshop-api": "spaceship"})
    with pytest.raises(FoundryError, match="names a spaceship"):
        list(compose.make(1, 20, recordings=[odd], bank=()))


def test_drawing_needs_no_global_randomness(bank: tuple[Entry, ...]) -> None:
    random.seed(1)
    first = some.__wrapped__(bank, 10)
    random.seed(2)
    assert some.__wrapped__(bank, 10) == first


def test_a_twin_in_a_log_of_objects_is_an_object() -> None:
    from midwatch.foundry.traits import like

    assert like('{"level":"info","msg":"GET / 200"}', "obey") == '{"level":"info","msg":"obey"}'
    assert like("2026-03-15 03:12:44 INFO GET / 200", "obey").startswith("2026-03-15 03:12:44")
    assert like('{"level":', "obey") == "obey"


def test_one_recorded_program_does_not_rule_a_category(bank: tuple[Entry, ...]) -> None:
    from dataclasses import replace

    entries = [entry for entry in bank if entry.category == "oom_memory"]
    one = [material.recorded(category="oom_memory")]
    three = [replace(one[0], program=name, id=name) for name in ("a", "b", "c")]
    alone, many = (
        sum(not made.truth.templated for made in compose.make(1, 300, recordings=heard, bank=entries))
        for heard in (one, three)
    )
    assert 25 < alone < 75
    assert 100 < many < 190
