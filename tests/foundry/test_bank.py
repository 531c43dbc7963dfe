"""The reader of the message bank, and the bank that Midwatch carries."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.errors import FoundryError
from midwatch.foundry import bank, slots
from midwatch.foundry.split import part_of

GOOD = """
[[entry]]
program = "kubernetes"
shape = ["klog", "plain"]
entity = "{pod}"
cause = "{pod} was killed"
lines = ["Killed process {pid} ({service})", "pod {pod} has {n:3-9} restarts"]
"""


def written(folder: Path, text: str, name: str = "oom_memory.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_read_with_the_severity_of_its_category(tmp_path: Path) -> None:
    (entry,) = bank.read(written(tmp_path, GOOD))
    assert entry.category == "oom_memory"
    assert entry.severity == "critical"
    assert entry.kind == "fault"
    assert entry.where == "oom_memory.toml#1"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"Killed process {pid} ({service})"', '"Killed {process}"', "{process} is not a slot"),
        ('"Killed process {pid} ({service})"', '"Killed {n:9-3}"', "ends before it begins"),
        ('"Killed process {pid} ({service})"', '"Killed {pod:1-3}"', "no number"),
        ('"Killed process {pid} ({service})"', '"Killed {?once}"', "offers no choice"),
        ('"Killed process {pid} ({service})"', '"  "', "lines, line 1 is empty"),
        ('"Killed process {pid} ({service})"', '"@error "', "lines, line 1 is empty"),
        ('"klog", "plain"', '"klog", "plane"', "'plane' is not a shape"),
        ("[[entry]]", "[[entry]]\ncolour = 'red'", "colour is not a field"),
        ("[[entry]]", "[[entry]]\naccepted = ['oom']", "ids of other categories"),
        ("[[entry]]", "[[entry]]\nseverity = 'bad'", "'bad' is not a severity"),
        ("[[entry]]", "[[entry]]\nscary = ['x']", "scary belongs to benign_false_alarm only"),
        ("[[entry]]", "[[entry]]\nsymptoms = 'x'", "symptoms must be a list of texts"),
        ('"{pod} was killed"', '" "', "cause must say"),
        ('"kubernetes"', '"Kubernetes"', "small letters"),
        ('entity = "{pod}"', 'entity = "{queue}"', "which no line of the entry names"),
        ("[[entry]]", "[other]\nx = 1\n[[entry]]", "has a table other"),
        ("[[entry]]", "[[entry", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_file(tmp_path: Path, before: str, after: str, says: str) -> None:
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(FoundryError) as error:
        bank.read(path)
    assert says in error.value.what
    assert "oom_memory.toml" in error.value.what


def test_a_file_named_after_no_category_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "out_of_luck.toml")
    assert "named after no category" in next(bank.problems(path))


def test_a_second_volume_belongs_to_the_category(tmp_path: Path) -> None:
    (entry,) = bank.read(written(tmp_path, GOOD, "oom_memory-2.toml"))
    assert (entry.category, entry.where) == ("oom_memory", "oom_memory-2.toml#1")
    assert "named after no category" in next(bank.problems(written(tmp_path, GOOD, "oom_memory-3.toml")))


def test_a_second_volume_is_of_programs_for_training_only() -> None:
    assert [e.where for e in bank.load() if "-2.toml" in e.where and part_of(e.program) != "train"] == []


def test_a_line_that_two_categories_have_tells_neither(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    written(tmp_path, GOOD, "cpu_saturation.toml")
    assert not any(entry.tells(entry.lines[0]) for entry in bank.load(tmp_path))
    written(tmp_path, GOOD.replace("[[entry]]", "[[entry]]\naccepted = ['oom_memory']"), "cpu_saturation.toml")
    assert all(entry.tells(entry.lines[0]) for entry in bank.load(tmp_path))


def test_a_heading_of_a_trace_tells_nothing(tmp_path: Path) -> None:
    (entry,) = bank.read(written(tmp_path, GOOD))
    assert not entry.tells("@more Traceback (most recent call last):")
    assert not entry.tells("    at com.acme.Main.run(Main.java:7)")
    assert entry.tells("MemoryError: no memory")


def test_a_healthy_entry_names_nothing_broken(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "healthy.toml")
    assert "a healthy entry has no entity" in " ".join(bank.problems(path))


def test_the_checker_counts_and_complains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bank.main([str(written(tmp_path, GOOD))]) == 0
    assert bank.main([str(written(tmp_path, GOOD.replace("{pid}", "{pdi}")))]) == 1
    said = capsys.readouterr().out
    assert "1 good entries of 1 programs in 1 files; 0 problems" in said
    assert "{pdi} is not a slot" in said


def test_the_bank_that_midwatch_carries_is_good() -> None:
    entries = bank.load()
    missing = [
        path.name for path in bank.FOLDER.glob("*.toml") if not any(e.where.startswith(path.name) for e in entries)
    ]
    assert missing == []


@given(st.text())
def test_any_text_can_be_checked_and_filled(text: str) -> None:
    import random

    wrong = list(slots.problems(text))
    filled = slots.fill(text, lambda kind, slot: "x", random.Random(0)) if not wrong else ""
    assert isinstance(filled, str)


def test_braces_around_no_word_stay_and_doubled_ones_are_literal() -> None:
    import random

    text = '{"a": 1} {} {{id}} {service2} {n:7-7} {?a|a}'
    assert list(slots.problems(text)) == []
    assert slots.fill(text, lambda kind, slot: slot.upper(), random.Random(0)) == '{"a": 1} {} {id} SERVICE2 7 a'
