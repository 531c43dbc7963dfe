from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from verdict_kit import finding, incident

from midwatch.copilot.model import Case, Finding
from midwatch.errors import ProviderError
from midwatch.evaluation.judge import ATTEMPTS, Run, digest, fingerprint, judge

RUN = Run(set="kit", column="local", facts={"model": "kit"}, code="1")
INCIDENTS = [incident(f"case {index}", f"line {index} of a log", true=(1,)) for index in range(6)]


class Answers:
    """Answers every case, counts how often it is asked, and can fail."""

    def __init__(self, fails: int = 0, *, retryable: bool = True, at: str = "") -> None:
        self.asked: list[str] = []
        self.fails = fails
        self.retryable = retryable
        self.at = at
        self.now = self.most = 0

    async def diagnose(self, case: Case) -> Finding:
        self.asked.append(case.lines[0])
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if self.fails and self.at in case.lines[0]:
            self.fails -= 1
            raise ProviderError("The host is away.", retryable=self.retryable)
        return finding(case, shown=(1,), cited=(1,))


async def test_verdicts_come_in_the_order_of_the_set_however_many_are_asked_at_once() -> None:
    asked = Answers()
    found = await judge(RUN, INCIDENTS, asked, concurrency=4)
    assert [item.incident for item in found] == [item.id for item in INCIDENTS]
    assert {item.column for item in found} == {"local"}
    assert asked.most == 4
    assert all(item.cited_right == 1 and item.sent_tokens > 100 for item in found)


async def test_a_run_that_was_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    record = tmp_path / "kit.jsonl"
    first = await judge(RUN, INCIDENTS[:4], Answers(), record=record)
    asked = Answers()
    found = await judge(RUN, INCIDENTS, asked, record=record)
    assert asked.asked == ["line 4 of a log", "line 5 of a log"]
    assert found[:4] == first
    assert await judge(RUN, INCIDENTS, Answers(fails=99), record=record) == found


async def test_a_line_that_was_not_written_whole_is_asked_again(tmp_path: Path) -> None:
    record = tmp_path / "kit.jsonl"
    await judge(RUN, INCIDENTS, Answers(), record=record)
    record.write_bytes(record.read_bytes()[:-25])
    asked = Answers()
    found = await judge(RUN, INCIDENTS, asked, record=record)
    assert asked.asked == ["line 5 of a log"]
    assert await judge(RUN, INCIDENTS, Answers(fails=99), record=record) == found


@pytest.mark.parametrize(
    "other",
    [replace(RUN, code="2"), replace(RUN, facts={"model": "another"}), replace(RUN, column="rules")],
)
async def test_another_question_never_takes_old_answers(tmp_path: Path, other: Run) -> None:
    record = tmp_path / "kit.jsonl"
    await judge(RUN, INCIDENTS, Answers(), record=record)
    asked = Answers()
    await judge(other, INCIDENTS, asked, record=record)
    assert len(asked.asked) == len(INCIDENTS)


async def test_an_incident_that_changed_under_its_name_is_asked_again(tmp_path: Path) -> None:
    record = tmp_path / "kit.jsonl"
    await judge(RUN, INCIDENTS, Answers(), record=record)
    changed = [*INCIDENTS[:5], incident("case 5", "line 5 of a log", "and one more", true=(1,))]
    asked = Answers()
    found = await judge(RUN, changed, asked, record=record)
    assert asked.asked == ["line 5 of a log"]
    assert found[5].lines == 2


async def test_a_host_that_recovers_costs_a_retry_only(tmp_path: Path) -> None:
    asked = Answers(fails=ATTEMPTS - 1)
    found = await judge(RUN, INCIDENTS[:1], asked)
    assert len(found) == 1
    assert len(asked.asked) == ATTEMPTS


async def test_a_host_that_stays_away_ends_the_run_and_keeps_what_is_known(tmp_path: Path) -> None:
    record = tmp_path / "kit.jsonl"
    with pytest.raises(ProviderError, match="The host is away"):
        await judge(RUN, INCIDENTS, Answers(fails=99, at="line 3"), record=record)
    asked = Answers()
    await judge(RUN, INCIDENTS, asked, record=record)
    assert asked.asked == [f"line {index} of a log" for index in (3, 4, 5)]


async def test_a_host_that_refuses_is_not_asked_twice() -> None:
    asked = Answers(fails=99, retryable=False)
    with pytest.raises(ProviderError):
        await judge(RUN, INCIDENTS[:1], asked)
    assert len(asked.asked) == 1


def test_a_digest_tells_labels_apart() -> None:
    first = incident("a", "x", true=(1,))
    assert digest(first) == digest(incident("a", "x", true=(1,)))
    assert digest(first) != digest(incident("a", "x"))
    assert digest(first) != digest(incident("a", "x", true=(1,), category="dns_resolution"))


def test_the_code_of_the_copilot_has_one_fingerprint() -> None:
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 16
