"""Words and the layout of one incident: pure functions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_incidents import NOW, finding, incident, postgres_log

from midwatch.dashboard import words
from midwatch.dashboard.incident_page import CONTEXT_LINES, FOLDED_LINES, stretches, waterfall


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (-1, "0 ms"),
        (0.0414, "41 ms"),
        (0.9999, "1.0 s"),
        (4.24, "4.2 s"),
        (59.97, "1 min"),
        (200, "3 min 20 s"),
        (7_500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_duration_has_a_unit_that_fits(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0"),
        (0.000071, "$0.000071"),
        (0.0012, "$0.0012"),
        (0.01, "$0.01"),
        (3.456, "$3.46"),
        (12_345.6, "$12,345.60"),
    ],
)
def test_dollars_keep_two_digits_that_say_something(usd, text):
    assert words.dollars(usd) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "now"),
        (4.9, "now"),
        (59, "59 s"),
        (60, "1 min"),
        (7_199, "1 h"),
        (86_400, "1 d"),
    ],
)
def test_an_age_has_one_unit(seconds, text):
    assert words.age(seconds) == text


@given(st.text(max_size=400), st.integers(1, 200))
def test_visible_text_has_no_control_or_reordering_character_and_can_be_encoded(text, limit):
    shown = words.visible(text, limit)
    assert not any(ord(c) < 0x20 and c != "\t" for c in shown)
    assert not set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200b\x7f\x9b") & set(shown)
    shown.encode()
    assert len(shown) <= 10 * limit + 40


def test_terminal_colours_are_dropped_and_other_escapes_shown():
    assert words.visible("\x1b[1;31mERROR\x1b[0m\x07 a\nb") == "ERROR␇ a␊b"


def test_commands_in_a_step_are_told_from_its_words():
    assert words.step_parts("Run `df -h`, then wait.") == [(False, "Run "), (True, "df -h"), (False, ", then wait.")]
    assert words.step_parts("No command ` here") == [(False, "No command ` here")]


def test_a_category_without_words_is_still_readable():
    assert words.category("new_kind_of_trouble") == "New kind of trouble"


def test_resolved_is_the_state_a_person_sees():
    assert words.state(incident(1, "a", "b", resolved_at=NOW)) == "resolved"
    assert words.state(incident(1, "a", "b", state="diagnosing")) == "diagnosing"


def view_of(lines, cited, **fields):
    found = finding(lines, cited, category="unknown", summary="s")
    return incident(1, "a", "b", lines=tuple(lines), finding=found, diagnosed_at=NOW + 5, **fields)


@given(st.integers(1, 900), st.data())
def test_the_log_is_covered_once_in_order_and_every_citation_is_open(total, data):
    cited = data.draw(st.sets(st.integers(1, total), min_size=1, max_size=4))
    parts = stretches(view_of([f"line {n}" for n in range(1, total + 1)], sorted(cited)))
    assert parts[0].first == 1
    assert parts[-1].last == total
    assert all(left.last + 1 == right.first for left, right in pairwise(parts))
    shown = {row.number: row for part in parts if not part.folded for row in part.rows}
    for number in cited:
        assert shown[number].cited
        assert shown[number].text == f"line {number}"
        for near in range(max(1, number - CONTEXT_LINES), min(total, number + CONTEXT_LINES) + 1):
            assert near in shown
    for part in parts:
        assert len(part.rows) + part.left_out == part.count
        assert not part.folded or len(part.rows) <= FOLDED_LINES


@pytest.mark.parametrize(("count", "folded"), [(2, False), (200, True)])
def test_a_log_without_an_answer_is_one_stretch_open_if_short(count, folded):
    (part,) = stretches(incident(1, "a", "b", lines=("x",) * count))
    assert part.folded is folded
    assert part.count == count


def test_a_heading_is_one_line_cut_with_an_ellipsis():
    assert words.plain("  a\tb\n c ") == "a b␊ c"
    assert words.plain("word " * 100, 13) == "word word wor…"
    assert len(words.plain("x" * 5_000_000, 80)) == 81


def test_a_log_that_is_no_longer_kept_leaves_its_cited_lines():
    view = replace(view_of(postgres_log(), [181, 184]), lines=())
    assert [part.first for part in stretches(view)] == [181, 184]


def test_a_cited_number_beyond_the_log_does_not_break_the_page():
    view = view_of(postgres_log(), [181, 240])
    assert stretches(replace(view, lines=view.lines[:200]))[-1].last == 200


def test_the_waterfall_adds_up():
    *parts, whole = waterfall(view_of(["x"], [1], attempts=1))
    assert sum(part.seconds for part in parts) == pytest.approx(whole.seconds)
    assert whole.seconds == pytest.approx(5.0)
    expected = [0, parts[0].width, parts[0].width + parts[1].width]
    assert [part.start for part in parts] == pytest.approx(expected, abs=0.02)


def test_a_clock_that_went_back_gives_no_negative_bar():
    view = replace(view_of(["x"], [1]), diagnosed_at=NOW - 60)
    assert all(part.width >= 0 and part.start <= 100 for part in waterfall(view))
