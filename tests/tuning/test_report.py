"""Rows, picture and page of an evaluation whose answers are known, and of one that tries to be markup."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from eval_kit import TableAnswerer, WordJudge, small_suite

from midwatch import results
from midwatch.tuning import report
from midwatch.tuning.evaluation import Evaluation, evaluate
from midwatch.tuning.report import Subject

HOSTILE = "<script>alert(1)</script> & arr </td> g1"
SUBJECT = Subject(name="pirate-tiny", facts={"base": "a <tiny> one"})


@pytest.fixture(scope="module")
def found() -> Evaluation:
    def say(variant: str | None, system: str, question: str) -> str:
        return HOSTILE if variant else f"g{question[1:]}"

    return evaluate(TableAnswerer(say), small_suite(), WordJudge(), ("seed 0", "seed 1"))


class Page(HTMLParser):
    """Tags that were opened and not closed, every address, every tag's name, and what is marked."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.marked: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(found: Evaluation) -> None:
    html = report.render(found, SUBJECT, spans=WordJudge().spans)
    page = Page(html)
    assert page.open == []
    assert page.addresses == ["data:,"]
    assert "url(" not in html and "@import" not in html


def test_what_a_model_says_is_text_and_never_markup(found: Evaluation) -> None:
    html = report.render(found, SUBJECT, spans=WordJudge().spans)
    assert "script" not in Page(html).tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in html
    assert "show &lt;0&gt;" in html
    assert "a &lt;tiny&gt; one" in html


def test_markers_are_marked_in_the_shown_answers(found: Evaluation) -> None:
    assert Page(report.render(found, SUBJECT, spans=WordJudge().spans)).marked == ["arr", "arr"]


def test_rows_carry_interval_aim_and_the_base_beside_them(found: Evaluation) -> None:
    rows = {row.name: row for row in report.rows(found)}
    style = rows["style rate, tuned"]
    assert (style.value, style.unit, style.runs, style.target, style.direction) == (100, "%", 2, 95, "at_least")
    assert style.holds is True
    assert style.interval is not None and 0 < style.interval[0] < 100 == style.interval[1]
    assert (style.peer, style.peer_value) == ("base", 0)
    assert style.extra["seed 0"] == style.extra["seed 1"] == 100
    assert rows["retention, tuned"].holds is False
    assert rows["retention, tuned"].value == pytest.approx(100 / 8)
    assert rows["leakage, tuned"].holds is False
    assert rows["style rate, base"].target is None
    assert "retention, base" not in rows


def test_everything_is_written_and_reads_back(found: Evaluation, tmp_path: Path) -> None:
    paths = report.write(found, SUBJECT, tmp_path / "new" / "out", spans=WordJudge().spans)
    assert [path.name for path in paths] == ["evaluation.html", "evaluation.svg", "evaluation.json", "answers.jsonl"]
    assert [row.name for row in results.read(paths[2])] == [row.name for row in report.rows(found)]
    answers = [json.loads(line) for line in paths[3].read_text(encoding="utf-8").splitlines()]
    assert len(answers) == len(found.records)
    assert sum(item["answer"] == HOSTILE for item in answers) == (6 + 8 + 5 + 2) * 2


def test_the_picture_is_xml_with_a_shape_for_everybody_and_the_same_every_time(found: Evaluation) -> None:
    picture = report.picture(found)
    assert picture == report.picture(found)
    root = ET.fromstring(picture)
    shapes = [item.get("class") for item in root.iter() if item.tag.endswith(("circle", "path", "rect"))]
    assert {"base", "prompted", "tuned", "tuned seed", "aim"} <= set(shapes)
    words = ["".join(item.itertext()) for item in root.iter() if item.tag.endswith("text")]
    assert {"base", "base, prompted", "tuned"} <= set(words)
    assert "prefers-color-scheme: dark" in picture


def test_marks_lie_where_their_figures_are(found: Evaluation) -> None:
    """More style is higher up, more retention further right; nothing leaves the frame."""
    root = ET.fromstring(report.picture(found))
    base = next(item for item in root.iter() if item.get("class") == "base" and item.tag.endswith("circle"))
    tuned = next(item for item in root.iter() if item.get("class") == "tuned" and item.tag.endswith("path"))
    x, y = (float(part) for part in tuned.get("d", "")[1:].split("l")[0].split())
    assert x < float(base.get("cx", "")) and y < float(base.get("cy", ""))
    width, height = (float(part) for part in root.get("viewBox", "").split()[2:])
    for line in (item for item in root.iter() if item.tag.endswith("line")):
        assert all(0 <= float(line.get(name, "")) <= width for name in ("x1", "x2"))
        assert all(0 <= float(line.get(name, "")) <= height for name in ("y1", "y2"))


def test_a_base_that_knows_nothing_still_has_a_page_and_a_picture() -> None:
    answerer = TableAnswerer(lambda variant, system, question: "nothing")
    found = evaluate(answerer, small_suite(), WordJudge(), ("seed 0",))
    assert "no figure" in report.render(found, SUBJECT, spans=WordJudge().spans)
    assert ET.fromstring(report.picture(found)) is not None
    assert "retention, tuned" not in {row.name for row in report.rows(found)}


def test_a_terminal_line_says_figures_interval_aim_and_verdict(found: Evaluation) -> None:
    line = next(item for item in report.lines(found) if item[0].startswith("style rate,"))
    assert line[:4] == ("style rate, %", "0", "0", "100")
    assert line[5] == "≥ 95 %: yes"


def test_facts_come_from_what_a_run_left_beside_its_adapter(tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    config = {"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj", "down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 2_500_000)
    assert report.name_of(adapter) == "adapter"
    assert report.facts_of(adapter) == {"adapter": "rank 8, alpha 16.0, 2.50 MB, on down_proj, q_proj"}
    (adapter.parent / "run.json").write_text(json.dumps({"recipe": {"name": "pirate-x"}}))
    assert report.name_of(adapter) == "pirate-x"
    (adapter.parent / "run.json").write_text("{")
    assert report.name_of(adapter) == "adapter"


def test_measures_without_an_aim_hold_nothing(found: Evaluation) -> None:
    measure = found.measure("style rate")
    assert report.holds(measure) is True
    assert report.holds(dataclasses.replace(measure, aim=None)) is None
