"""Rows, their verdicts, and the numbers that docs quote from them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from midwatch import results

_SPEC = importlib.util.spec_from_file_location("quote", Path(__file__).parent.parent / "scripts" / "quote.py")
assert _SPEC is not None
assert _SPEC.loader is not None
quote = importlib.util.module_from_spec(_SPEC)
sys.modules["quote"] = quote
_SPEC.loader.exec_module(quote)


def test_a_row_holds_only_if_its_median_meets_the_target() -> None:
    good = results.row("start", [3.0, 1.0, 2.0], "s", target=2.0, direction="at_most")
    bad = results.row("rate", [3.0, 1.0, 2.0], "1/s", target=2.5, direction="at_least")
    assert (good.value, good.interval, good.holds) == (2.0, (1.0, 3.0), True)
    assert bad.holds is False


def test_the_ratio_is_ours_over_the_peers_median() -> None:
    item = results.row("decode", [50.0], "tok/s", peer="other", peer_samples=[90.0, 100.0, 110.0])
    assert item.ratio == pytest.approx(0.5)


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [results.row("a", [1.0, 2.0], "ms", note="n", extra={"k": 1.0}), results.row("b", [7.0], "s")]
    results.write(tmp_path / "area" / "file.json", rows, seed=3)
    assert results.read(tmp_path / "area" / "file.json") == rows


@pytest.mark.parametrize(
    ("value", "text"), [(0.00123, "0.00123"), (0, "0"), (1234.5, "1,234"), (5.678, "5.68"), (-12.34, "-12.3")]
)
def test_a_figure_keeps_three_digits(value: float, text: str) -> None:
    assert results.figure(value) == text


def test_a_page_that_says_another_number_is_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write(tmp_path / "results" / "x" / "y.json", [results.row("start", [4.2], "s")])
    monkeypatch.setattr(quote, "ROOT", tmp_path)
    number = "It starts in <!-- q results/x/y.json#start -->1 s<!-- /q -->.\n"
    page = number + "<!-- quote results/x/y.json -->\n<!-- /quote -->"
    fixed = quote.quoted(page)
    assert "-->4.20 s<!--" in fixed
    assert "| start | 4.20 s |" in fixed
    assert quote.quoted(fixed) == fixed


def test_quoting_a_row_that_was_never_measured_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quote, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="does not exist"):
        quote.quoted("<!-- q results/none.json#start -->1 s<!-- /q -->")


def test_a_table_takes_named_rows_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write(tmp_path / "results" / "a.json", [results.row("one, two", [1.0], "s"), results.row("no", [2.0], "s")])
    results.write(tmp_path / "results" / "b.json", [results.row("three", [3.0], "ms")])
    monkeypatch.setattr(quote, "ROOT", tmp_path)
    fixed = quote.quoted("<!-- quote results/a.json: one, two | results/b.json -->\n<!-- /quote -->")
    assert "| one, two | 1.00 s |" in fixed
    assert "| three | 3.00 ms |" in fixed
    assert "| no |" not in fixed
