"""Lines of one wording share a template; the 16 loghub sets are grouped well."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.templates import MAX_CHILDREN, Miner, mask_word, mine

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LOGHUB = Path(os.environ.get("MIDWATCH_DATA", SHARED)) / "loghub"


def test_numbers_addresses_and_paths_are_variables() -> None:
    assigned, templates = mine(
        [
            "connection from 10.0.0.1:5432 closed after 12 ms",
            "connection from 10.0.0.2:6379 closed after 1500 ms",
            "user logged in",
        ]
    )
    assert assigned == [0, 0, 1]
    assert templates[0].text == "connection from <*> closed after <*>"
    assert (templates[0].count, templates[0].first, templates[0].last) == (2, 0, 1)


def test_a_word_that_differs_becomes_a_variable() -> None:
    _, templates = mine(["session opened for user alice by root now ok", "session opened for user bob by root now ok"])
    assert [template.text for template in templates] == ["session opened for user <*> by root now ok"]


def test_a_number_its_unit_and_a_readable_repeat_are_one_variable() -> None:
    assigned, templates = mine(["sent 0 bytes, open", "sent 2121 bytes (2.07 KB), open", "sent (5 KB) open"])
    assert assigned[:2] == [0, 0]
    assert templates[0].text == "sent <*> open"


def test_two_states_that_are_often_seen_are_two_templates() -> None:
    lines = [f"VM {state} by the lifecycle of host {n}" for n in range(20) for state in ("paused", "resumed")]
    _, templates = mine(lines)
    assert sorted(template.text for template in templates) == [
        "VM paused by the lifecycle of host <*>",
        "VM resumed by the lifecycle of host <*>",
    ]
    assert {template.count for template in templates} == {20}


def test_many_subjects_that_say_the_same_are_one_template() -> None:
    lines = [f"com.app.{name}: started the job later than planned" for name in "abcdefg"]
    _, templates = mine(lines)
    assert [(template.text, template.count) for template in templates] == [
        ("<*> started the job later than planned", 7)
    ]


@pytest.mark.parametrize(
    ("word", "masked"),
    [
        ("plain", "plain"),
        ("42", "<*>"),
        ("blk_-1234567890123456789", "<*>"),
        ("user=alice", "user=<*>"),
        ("uid=0,gid=7", "uid=<*>,gid=<*>"),
        ("/var/log/app.log", "<*>"),
        ("10.0.0.1:80", "<*>"),
        ("x" * 300, "<*>"),
        ("Jan", "<*>"),
    ],
)
def test_what_varies_in_a_word_is_masked(word: str, masked: str) -> None:
    assert mask_word(word) == masked


@given(st.lists(st.text(max_size=80), max_size=60))
def test_every_line_is_counted_once_whatever_it_says(lines: list[str]) -> None:
    assigned, templates = mine(lines)
    assert len(assigned) == len(lines)
    assert sum(template.count for template in templates) == len(lines)
    assert all(templates[id_].id == id_ for id_ in assigned)


def test_random_words_cannot_make_a_leaf_grow_without_end() -> None:
    miner = Miner()
    letters = "abcdefghij"
    for number in range(2_000):
        words = [letters[int(digit)] * 3 for digit in f"{number:04d}"]
        miner.add("same start " + " ".join(f"{word}{other}x" for word in words for other in words))
    assert len(miner.templates) <= MAX_CHILDREN


def test_an_empty_line_and_a_line_of_many_words_are_templates_too() -> None:
    assigned, templates = mine(["", "", "a " * 50_000])
    assert assigned == [0, 0, 1]
    assert len(templates[1].words) <= 120


@pytest.mark.skipif(not LOGHUB.exists(), reason="the loghub sets are not beside this clone")
@pytest.mark.parametrize(("name", "least"), [("Apache", 1.0), ("HDFS", 0.99), ("OpenSSH", 0.95), ("Hadoop", 0.95)])
def test_true_groups_of_a_real_log_are_found(name: str, least: float) -> None:
    path = LOGHUB / "corrected" / name / f"{name}_2k.log_structured_corrected.csv"
    with path.open(encoding="utf-8", errors="replace") as stream:
        rows = list(csv.DictReader(stream))
    assigned, _ = mine(row["Content"] for row in rows)
    ours, true = defaultdict(set), defaultdict(set)
    for index, (template, row) in enumerate(zip(assigned, rows, strict=True)):
        ours[template].add(index)
        true[row["EventId"]].add(index)
    right = sum(len(lines) for lines in ours.values() if true[rows[min(lines)]["EventId"]] == lines)
    assert right / len(rows) >= least
