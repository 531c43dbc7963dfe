"""The style sheet: both themes are readable (WCAG AA), and nothing is fetched from elsewhere."""

from __future__ import annotations

import re

import pytest

from midwatch.dashboard.static_files import static_folder

SHEET = (static_folder() / "app.css").read_text()
TOKENS = {
    name: (light, dark)
    for name, light, dark in re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", SHEET)
}
TEXT_ON_GROUND = [
    (text, ground)
    for text in ("text", "text-soft", "accent", "warn", "bad", "good", "medium")
    for ground in ("ground", "surface", "raised")
] + [
    ("warn", "warn-ground"),
    ("good", "good-ground"),
    ("text-soft", "warn-ground"),
    ("text-soft", "good-ground"),
    ("text", "cited-ground"),
    ("text-soft", "cited-ground"),
]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), TEXT_ON_GROUND)
def test_text_stands_out_from_its_ground(text, ground, theme):
    lighter, darker = sorted((luminance(TOKENS[text][theme]), luminance(TOKENS[ground][theme])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_the_sheet_fetches_nothing():
    assert "url(" not in SHEET
    assert "@import" not in SHEET
    assert "@font-face" not in SHEET
