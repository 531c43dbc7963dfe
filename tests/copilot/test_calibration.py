"""The fits find the weights that made the data, keep groups together, and survive the disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from midwatch.copilot import calibration
from midwatch.copilot.calibration import Example, Outcome
from midwatch.copilot.confidence import CHOICE, SIGNALS, sigmoid
from midwatch.copilot.taxonomy import IDS
from midwatch.errors import SettingsError


def outcomes(count: int, seed: int = 1) -> list[Outcome]:
    draw = random.Random(seed)
    made = []
    for index in range(count):
        signals = dict.fromkeys(SIGNALS, 0.0) | {"bias": 1.0, "choice_margin": draw.random()}
        right = draw.random() < sigmoid(-1.0 + 4.0 * signals["choice_margin"])
        made.append(Outcome(signals=signals, right=right, group=f"g{index % 20}"))
    return made


def test_the_logistic_fit_finds_the_weights_that_made_the_answers() -> None:
    weights = dict(zip(SIGNALS, calibration.fit_signals(outcomes(4000), ridge=0.01), strict=True))
    assert weights["bias"] == pytest.approx(-1.0, abs=0.25)
    assert weights["choice_margin"] == pytest.approx(4.0, abs=0.5)
    assert weights["rules_share"] == 0.0


def test_the_choice_learns_whom_to_believe() -> None:
    draw = random.Random(2)
    examples = []
    for _ in range(300):
        truth, wrong = draw.sample(IDS, 2)
        heard = truth if draw.random() < 0.9 else wrong
        ruled = truth if draw.random() < 0.3 else wrong
        features = {
            name: (2.0 * (name == heard), 0.8 * (name == ruled), float(name == ruled), float(name == "unknown"))
            for name in IDS
        }
        examples.append(Example(features=features, right=frozenset({truth})))
    weights = dict(zip(CHOICE, calibration.fit_choice(examples), strict=True))
    assert weights["model"] > 1.0
    assert 2 * weights["model"] > 0.8 * weights["rules"] + weights["rules_first"]


def test_cross_fitted_scores_never_come_from_a_fit_that_saw_their_group() -> None:
    made = outcomes(200)
    scores = calibration.cross_fit(made, folds=5)
    changed = [
        Outcome(signals=item.signals, right=not item.right if item.group == "g0" else item.right, group=item.group)
        for item in made
    ]
    again = calibration.cross_fit(changed, folds=5)
    assert all(a == b for a, b, item in zip(scores, again, made, strict=True) if item.group == "g0")
    assert scores != again


def test_a_calibration_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    made = calibration.calibrate(
        outcomes(300),
        column="local",
        model="m",
        choice=(1.0, 2.0, 0.5, -1.0),
        fitted_on="a test",
        date="2026-01-01",
        words=frozenset({1, 2**24 - 1}),
    )
    path = tmp_path / "deep" / "local.json"
    calibration.save(made, path)
    assert calibration.load(path.read_bytes(), "local.json") == made


def test_too_few_or_one_sided_answers_are_refused() -> None:
    few = outcomes(20)
    with pytest.raises(SettingsError, match="too few"):
        calibration.calibrate(few, column="c", model="m", choice=(1, 0, 0, 0), fitted_on="", date="")
    good = [Outcome(signals=item.signals, right=True) for item in outcomes(80)]
    with pytest.raises(SettingsError):
        calibration.calibrate(good, column="c", model="m", choice=(1, 0, 0, 0), fitted_on="", date="")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"choice": 3}'])
def test_a_damaged_file_is_said_to_be_one(data: bytes) -> None:
    with pytest.raises(SettingsError, match="no calibration"):
        calibration.load(data, "x.json")
