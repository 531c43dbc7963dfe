"""Recipes: what is shipped reads back, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from midwatch.errors import TuningError
from midwatch.tuning.card import as_toml
from midwatch.tuning.recipe import load_recipe, shipped


def test_every_shipped_recipe_is_named_as_its_file_and_reads_back(tmp_path: Path) -> None:
    assert {"pirate-smollm2", "pirate-llama3-8b"} <= set(shipped())
    for name in shipped():
        recipe = load_recipe(name)
        assert recipe.name == name
        (tmp_path / "again.toml").write_text(as_toml(recipe))
        assert load_recipe(str(tmp_path / "again.toml")) == recipe


def test_a_change_reaches_its_section() -> None:
    recipe = load_recipe("pirate-smollm2", training__seed=7, base="elsewhere")
    assert (recipe.training.seed, recipe.base) == (7, "elsewhere")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name = 'x'\nbase = 'b'\n[data]\nsource = 'pirate'\n[training]\nlearning_rate = -1", "training.learning_rate"),
        ("name = 'x'\nbase = 'b'\n[data]\nsource = 'pirate'\nspeed = 3", "data.speed"),
        ("name = 'x'\nbase = 'b'\n[data]\nsource = 'pirate'\n[lora]\ntargets = ['lm_head']", "lm_head"),
        ("name = 'X y'\nbase = 'b'\n[data]\nsource = 'pirate'", "name"),
        ("name = 'x'\n[data]\nsource = 'pirate'", "base"),
        ("name = ", "not TOML"),
    ],
)
def test_a_wrong_recipe_is_told_by_its_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(TuningError, match=named):
        load_recipe(str(path))


def test_a_recipe_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(TuningError, match="pirate-smollm2"):
        load_recipe("no-such-recipe")
