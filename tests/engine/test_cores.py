from __future__ import annotations

import os
from pathlib import Path

import pytest

from midwatch.engine.cores import SPIN_TURNS, spin_briefly, usable_cores


@pytest.mark.parametrize(("text", "expected"), [("50000 100000", 1), ("100000 100000", 1), ("1 100000", 1)])
def test_a_containers_quota_lowers_the_count(tmp_path: Path, text: str, expected: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable_cores(quota) == expected


@pytest.mark.parametrize("text", ["max 100000", "nonsense", "1 0", "99999999 1"])
def test_no_usable_quota_leaves_the_affinity(tmp_path: Path, text: str) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable_cores(quota) == usable_cores(tmp_path / "absent") >= 1


@pytest.mark.parametrize(
    ("variables", "turns"),
    [({}, SPIN_TURNS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], turns: str | None
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "restored afterwards")
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == turns
