"""Is the bank broad enough to learn from, to fit on and to be judged by?"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

import midwatch.foundry
from midwatch.copilot.taxonomy import CATEGORIES
from midwatch.foundry import bank
from midwatch.foundry.split import part_of

FILES = sorted(path for path in bank.FOLDER.glob("*.toml") if path.stem != bank.HEALTHY)
FIRST_VOLUMES = [path for path in FILES if not path.stem.endswith("-2")]
"""A second volume is of programs for training only."""


@pytest.mark.parametrize("path", FIRST_VOLUMES, ids=lambda path: path.stem)
def test_every_category_has_programs_to_learn_from_to_fit_on_and_to_be_judged_by(path: Path) -> None:
    programs = {(part_of(entry.program), entry.program) for entry in bank.read(path)}
    parts = Counter(part for part, _ in programs)
    assert parts["train"] >= 8
    assert parts["calibrate"] >= 4
    assert parts["test"] >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_cause_names_a_value_that_is_made_up_at_each_printing(path: Path) -> None:
    for entry in bank.read(path):
        assert not any(slot in entry.cause for slot in ("{uuid}", "{hex}", "{commit}")), entry.where


def test_the_texts_that_argue_are_many_and_claim_many_categories() -> None:
    path = Path(midwatch.foundry.__file__).with_name("injections.toml")
    texts = tomllib.loads(path.read_text(encoding="utf-8"))["texts"]
    assert len(texts) == len(set(texts)) >= 60
    claimed = {category for category in CATEGORIES if any(category in text for text in texts)}
    assert len(claimed) >= 20
