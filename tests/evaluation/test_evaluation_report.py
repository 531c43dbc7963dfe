from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from verdict_kit import verdict

from midwatch import results
from midwatch.evaluation import page, report
from midwatch.evaluation.chart import Axis, Chart, Grid, axis_to
from midwatch.evaluation.report import Evaluated
from midwatch.evaluation.verdict import Shown
from midwatch.foundry.incident import Truth


def evaluated(name: str = "foundry-programs") -> Evaluated:
    """Two columns on sixty incidents of two programs; the rules are right half the time, the local model mostly."""
    rules, local = [], []
    for index in range(60):
        truth = Truth(
            category="oom_memory" if index % 5 else "benign_false_alarm",
            program="redis" if index % 2 else "nats",
            traits=("recovered",) if index % 3 == 0 else (),
        )
        right, wrong = truth.category, "dns_resolution"
        facts = {"truth": truth, "cost_usd": 0.0001, "sent_tokens": 1500}
        rules.append(verdict(f"i{index}", said=right if index % 2 else wrong, column="rules", confidence=0.6, **facts))
        sure = index % 10 != 0
        local.append(verdict(f"i{index}", said=right if sure else wrong, confidence=0.9 if sure else 0.4, **facts))
    return Evaluated(name=name, columns={"rules": rules, "local": local}, facts={"seed": "1"})


def test_rows_carry_the_aims_for_the_local_column_only() -> None:
    rows = {row.name: row for row in report.rows(evaluated())}
    right = rows["foundry-programs, local: category right"]
    assert (right.value, right.target, right.holds) == (0.9, 0.8, True)
    assert right.interval is not None and right.interval[0] < 0.9 < right.interval[1]
    assert (right.peer, right.peer_value) == ("rules", 0.5)
    assert rows["foundry-programs, rules: category right"].target is None
    assert rows["foundry-programs, local: AUROC of the confidence"].holds is True
    assert rows["foundry-programs, local: calibration error (ECE)"].holds is False
    assert rows["foundry-programs, local: false alarms: precision"].value == 1.0


def test_an_interval_over_whole_faults_stands_beside_the_one_over_incidents() -> None:
    rows = {row.name: row for row in report.rows(evaluated())}
    row = rows["foundry-programs, rules: category right"]
    assert row.extra["faults"] == 2
    assert row.interval is not None
    assert float(row.extra["low over faults"]) < 0.05  # nats never, redis always
    assert float(row.extra["high over faults"]) > 0.95
    assert "foundry-programs, local: halves of faults that keep the promise" in rows


def test_who_is_taken_for_whom_has_one_column_for_abstentions() -> None:
    from midwatch.evaluation.figures import confusion

    some = [
        verdict("a", said="unknown", true="unknown"),
        verdict("b", said="unknown"),
        verdict("c", said="cpu_saturation"),
    ]
    text = confusion(some)
    assert re.findall(r"rotate\(-55\)\">([a-z_]+)<", text) == ["oom_memory", "cpu_saturation", "unknown"]
    assert re.findall(r'text-anchor="end">([a-z_]+)<', text) == ["oom_memory", "unknown"]


def test_a_few_public_cases_are_held_to_the_lower_end_of_their_interval() -> None:
    some = evaluated("incidents")
    worse = [
        replace(item, ranking=("dns_resolution",)) if index in (1, 2) else item
        for index, item in enumerate(some.columns["local"])
    ]
    rows = {row.name: row for row in report.rows(replace(some, columns={**some.columns, "local": worse}))}
    row = rows["incidents, local: accepted and wrong"]
    assert row.interval is not None
    assert row.value > 0.1 > row.interval[0]
    assert row.holds is True


def test_a_cost_row_says_the_price_its_date_and_that_it_is_estimated() -> None:
    rows = {row.name: row for row in report.rows(evaluated())}
    row = rows["foundry-programs, local: cost of 1,000 incidents at α = 0.1"]
    assert row.evidence == "estimated"
    assert re.search(r"2026-11-24: 2 and 10 USD for a million tokens", row.note)
    assert row.peer_value is not None and row.peer_value > row.value


def test_columns_without_a_part_have_a_table_of_their_own_beside_the_whole(tmp_path: Path) -> None:
    some = evaluated()
    some = replace(some, columns={**some.columns, "no-rules": some.columns["rules"]})
    paths = report.write(some, tmp_path)
    worth = {row.name: row for row in results.read(paths[1])}
    row = worth["foundry-programs, no-rules: category right"]
    assert (row.value, row.peer, row.peer_value) == (0.5, "with every part", 0.9)
    assert row.target is None
    assert not any("no-rules" in row.name for row in results.read(paths[0]))
    assert report.ablation(evaluated()) == []


def test_sources_are_told_apart_where_there_are_several() -> None:
    some = evaluated("incidents")
    mixed = {
        name: [replace(item, source="logdx_ci" if index < 20 else "treeherder") for index, item in enumerate(found)]
        for name, found in some.columns.items()
    }
    names = {row.name for row in report.rows(replace(some, columns=mixed))}
    assert {"logdx_ci, local: category right", "treeherder, rules: category right"} <= names


def test_rows_and_pictures_are_written_and_read_back(tmp_path: Path) -> None:
    paths = report.write(evaluated(), tmp_path, seed=7)
    assert results.read(paths[0])[0].name == "foundry-programs, rules: category right"
    names = [path.name for path in paths[1:]]
    assert names == [
        f"eval-foundry-programs-{kind}.svg" for kind in ("reliability", "risk-coverage", "escalated", "cost")
    ]
    for path in paths[1:]:
        ET.fromstring(path.read_text(encoding="utf-8"))


def test_parts_of_a_set_are_counted_by_incident() -> None:
    parts = report.parts(evaluated(), lambda item: item.truth.program)
    assert [(part.name, part.cases) for part in parts] == [("nats", 30), ("redis", 30)]
    assert parts[0].accuracy["rules"].value == 0.0
    assert parts[1].accuracy["rules"].value == 1.0


def test_the_page_is_one_file_with_every_wrong_answer(tmp_path: Path) -> None:
    some = evaluated()
    path = page.write([some], tmp_path / "page" / "eval.html")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:,)""", text)
    assert "http" not in re.sub(r'xmlns="[^"]+"', "", text)
    assert "@import" not in text and "url(" not in text
    wrong = sum(not item.right for found in some.columns.values() for item in found)
    assert text.count('class="card answer"') == wrong == 36
    assert "prefers-color-scheme: dark" in text and "light-dark(" in text
    assert page.write([some], tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_what_a_log_says_is_text_on_the_page(tmp_path: Path) -> None:
    nasty = verdict(
        "x<script>alert(1)</script>",
        said="dns_resolution",
        alert='"><img src=x onerror=alert(1)>',
        evidence=(Shown(number=3, text="\x1b[31m<b>red</b>\x00", true=True), Shown(number=4, text="plain")),
        cited=(4, 9),
        cited_text=("plain", "<i>cited, not shown</i>"),
        summary="{{ 7 * 7 }}",
        lines=9,
        truth_total=2,
        truth_shown=1,
    )
    some = Evaluated(name="kit", columns={"local": [nasty, *evaluated().columns["local"]]})
    text = page.write([some], tmp_path / "eval.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img" not in text and "<b>red" not in text and "\x1b" not in text
    assert "&lt;b&gt;red&lt;/b&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert re.search(r'<li class="true"><span class="at">3</span>', text)
    assert re.search(r'<li class=" cited"><span class="at">4</span>', text)
    assert "&lt;i&gt;cited, not shown&lt;/i&gt;" in text
    assert "1 true wording was not shown" in text


def test_the_surest_wrong_answer_is_read_first_and_abstentions_last() -> None:
    some = [
        verdict("silent", said="unknown", confidence=0.99),
        verdict("right"),
        verdict("unsure", said="dns_resolution", confidence=0.3),
        verdict("sure", said="dns_resolution", confidence=0.95),
    ]
    assert [item.incident for item in page.wrong(some)] == ["sure", "unsure", "silent"]


def test_a_set_without_a_labelled_cause_has_a_page_without_pictures(tmp_path: Path) -> None:
    some = Evaluated(name="cidiff", columns={"rules": [verdict(true="", truth_total=1, truth_shown=1)]})
    assert report.pictures(some) == {}
    text = page.write([some], tmp_path / "eval.html").read_text(encoding="utf-8")
    assert "<figure" not in text and "evidence: true lines shown" in text


@pytest.mark.parametrize("most", [0.03, 0.1, 0.37, 1, 7.3, 480])
def test_an_axis_ends_at_a_round_number_above_the_most(most: float) -> None:
    axis = axis_to(most, "x")
    assert most <= axis.most <= 2.5 * most
    assert len(axis.ticks) == 6


def test_a_chart_places_values_and_escapes_words() -> None:
    chart = Chart(title="<a & b>", x=Axis(name="x"), y=Axis(name="y"), names=("one", "two", "three", "four"))
    chart.line([(0, 0), (1, 1)], "s0")
    chart.mark(0.5, 0.5, "s1", low=0.2, high=2.0)
    root = ET.fromstring(chart.svg())
    assert root[0].text == "<a & b>"
    left, bottom = chart.at(0, 0)
    right, top = chart.at(1, 1)
    assert left < right and top < bottom
    assert chart.at(0.5, 5.0)[1] == top


def test_a_grid_shows_every_count_once() -> None:
    text = Grid(title="t", rows=("a", "b"), columns=("a", "b", "unknown"), counts=((3, 0, 1), (0, 2, 0))).svg()
    assert re.findall(r'class="count"[^>]*>(\d+)<', text) == ["3", "1", "2"]
    assert text.count('class="cell"') == 2 and text.count('class="off"') == 1
