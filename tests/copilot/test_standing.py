"""Whether the promise holds here, and refitting on what people said, over a real store and as typed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from intake_kit import finding
from recall_kit import diagnosed, judged, new_store
from typer.testing import CliRunner, Result

from midwatch.cli import cli
from midwatch.copilot import standing
from midwatch.copilot.confidence import SIGNALS
from midwatch.copilot.model import Diagnosis, Feedback, Verdict
from midwatch.errors import SettingsError

FIRM = dict.fromkeys(SIGNALS, 0.0) | {"bias": 1.0, "rules_share": 0.7, "choice_margin": 0.9}
WEAK = dict.fromkeys(SIGNALS, 0.0) | {"bias": 1.0, "rules_share": 0.2, "choice_margin": 0.1}


def said(count: int, verdict: Verdict, action: str = "accept") -> list[tuple[Diagnosis, Feedback]]:
    diagnosis = finding(action=action, signals=FIRM, heard={"oom_memory": 0.9}).diagnosis
    return [(diagnosis, Feedback(incident_id=number, verdict=verdict)) for number in range(count)]


def test_only_accepted_wrong_answers_count_against_the_promise() -> None:
    found = standing.standing([*said(30, "right"), *said(10, "wrong", "ask_person"), *said(1, "wrong")], 0.1)
    assert (found.judged, found.accepted, found.accepted_wrong) == (41, 31, 1)
    assert not found.broken
    assert "not contradicted" in found.sentence


def test_the_promise_is_broken_when_even_the_lower_bound_lies_above_it() -> None:
    found = standing.standing([*said(20, "right"), *said(12, "wrong")], 0.1)
    assert found.broken
    assert found.interval[0] > 0.1
    assert "midwatch calibrate" in found.sentence


def test_nobody_has_judged_says_so() -> None:
    found = standing.standing([], 0.1)
    assert (found.share, found.broken) == (0.0, False)
    assert "Nobody has judged" in found.sentence


def test_answers_are_refitted_by_the_way_they_came_about() -> None:
    ruled = finding(signals=FIRM).diagnosis
    bigger = finding(signals=FIRM, escalated=True).diagnosis
    heard = finding(signals=FIRM, heard={"oom_memory": 0.9}).diagnosis
    unsigned = finding(heard={"oom_memory": 0.9}).diagnosis
    verdict = Feedback(incident_id=1, verdict="right")
    pairs = [(one, verdict) for one in (ruled, bigger, heard, unsigned)]
    assert [standing.column_of(one) for one, _ in pairs] == ["rules", "escalated", "local", "local"]
    assert [len(standing.outcomes(pairs, column)) for column in ("rules", "escalated", "local")] == [1, 1, 1]


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(cli, ["calibrate", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIDWATCH_STATE_DIR", str(tmp_path))
    return tmp_path


async def remember(folder: Path, firm_right: int, weak_wrong: int) -> None:
    store = new_store(folder)
    for number in range(firm_right + weak_wrong):
        good = number < firm_right
        answer = finding(signals=FIRM if good else WEAK, heard={"oom_memory": 0.9})
        incident = await diagnosed(store, answer, alert=f"Alert{number}", service=f"db{number}")
        await judged(store, incident, "right" if good else "wrong")
    store.close()


def test_feedback_refits_the_confidence_and_later_answers_use_it(state: Path) -> None:
    asyncio.run(remember(state, 40, 20))
    done = run()
    assert "fitted on 60 answers, 40 right" in done.output
    from midwatch import settings
    from midwatch.cli import local_model
    from midwatch.copilot.calibration import score

    fitted = local_model.calibration(settings.load(), "local")
    assert fitted is not None
    assert fitted.fitted_on == "feedback on 60 diagnoses"
    assert score(FIRM, fitted.signals) > 0.8 > 0.4 > score(WEAK, fitted.signals)


def test_a_check_fails_when_the_promise_is_broken_here(state: Path) -> None:
    asyncio.run(remember(state, 20, 20))
    done = run("--check")
    assert done.exit_code == 1
    assert "20 of 40 judged diagnoses were accepted and wrong" in done.output


def test_too_little_feedback_is_said(state: Path) -> None:
    asyncio.run(remember(state, 3, 2))
    assert run("--check").exit_code == 0
    with pytest.raises(SettingsError, match="too few"):
        run()
