"""Write measured numbers into the docs, or check that they are what the result files say.

A table stands between `<!-- quote results/AREA/FILE.json: NAME; NAME | FILE ... -->` (a file alone gives all its rows)
and `<!-- /quote -->`; one number stands between `<!-- q results/AREA/FILE.json#NAME -->` and `<!-- /q -->`.
`python scripts/quote.py` rewrites both, and `--check` fails when a page says something else.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from midwatch import results

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- quote ([^>]+?) -->\n)(.*?)(<!-- /quote -->)", re.DOTALL)
NUMBER = re.compile(r"(<!-- q (\S+?\.json)#([^>]+?) -->)(.*?)(<!-- /q -->)")


def _rows(file: str) -> list[results.Row]:
    path = ROOT / file
    if not path.is_file() or not path.is_relative_to(ROOT / "results"):
        sys.exit(f"{file} is quoted but does not exist under results/. Run the bench that writes it.")
    return results.read(path)


def _named(file: str, name: str) -> results.Row:
    for row in _rows(file):
        if row.name == name:
            return row
    sys.exit(f"{file} has no row named {name!r}.")


def _table(match: re.Match[str]) -> str:
    head, wanted, _, tail = match.groups()
    rows: list[results.Row] = []
    for part in wanted.split(" | "):
        file, _, names = part.partition(": ")
        rows += [_named(file.strip(), name.strip()) for name in names.split(";")] if names else _rows(file.strip())
    return f"{head}{results.table(rows)}\n{tail}"


def _number(match: re.Match[str]) -> str:
    head, file, name, _, tail = match.groups()
    row = _named(file, name)
    return f"{head}{results.figure(row.value)} {row.unit}{tail}"


def quoted(text: str) -> str:
    """The page with every fence filled from its file."""
    return NUMBER.sub(_number, TABLE.sub(_table, text))


def main() -> None:
    """Rewrite or check every Markdown page of the repository."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page differs from its files")
    check = parser.parse_args().check
    stale = []
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "demo").rglob("*.md")]):
        before = page.read_text(encoding="utf-8")
        after = quoted(before)
        if before != after:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(after, encoding="utf-8")
    if check and stale:
        sys.exit(f"Numbers differ from results/: {', '.join(map(str, stale))}. Run python scripts/quote.py.")


if __name__ == "__main__":
    main()
