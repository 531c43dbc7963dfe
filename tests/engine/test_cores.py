from __future__ import annotations

from pathlib import Path

import pytest

from midwatch.engine.cores import usable_cores


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
