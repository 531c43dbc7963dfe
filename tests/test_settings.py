"""One tree of settings: precedence, errors that name the field, secrets that stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from midwatch import settings
from midwatch.errors import SettingsError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_variable_wins_over_the_file_which_wins_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("midwatch.toml").write_text("[engine]\nthreads = 3\nmax_num_seqs = 5\n")
    monkeypatch.setenv("MIDWATCH_ENGINE__THREADS", "7")
    loaded = settings.load()
    assert (loaded.engine.threads, loaded.engine.max_num_seqs, loaded.engine.dtype) == (7, 5, "bfloat16")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[engine]\nthread = 3\n", "engine.thread"),
        ("[engine]\nthreads = -1\n", "engine.threads"),
        ("[copilot]\nconfidence_threshold = 1.5\n", "confidence_threshold"),
        ("[nonsense]\n", "nonsense"),
        ("engine = [\n", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_the_place_to_change_it(toml: str, words: str) -> None:
    Path("midwatch.toml").write_text(toml)
    with pytest.raises(SettingsError, match=words) as caught:
        settings.load()
    assert "docs/settings.md" in caught.value.next_step


def test_an_unknown_variable_is_an_error_and_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDWATCH_ENGIN__THREADS", "2")
    with pytest.raises(SettingsError, match="MIDWATCH_ENGIN__THREADS"):
        settings.load()


def test_a_config_file_that_is_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDWATCH_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match="nowhere.toml"):
        settings.load()


def test_a_secret_is_not_printed() -> None:
    Path("midwatch.toml").write_text('[sources.text]\ntokens = ["hunter2"]\n')
    loaded = settings.load()
    assert "hunter2" not in repr(loaded)
    assert loaded.sources["text"].tokens[0].get_secret_value() == "hunter2"


def test_settings_are_frozen() -> None:
    loaded = settings.load()
    with pytest.raises(ValueError, match="frozen"):
        loaded.engine.threads = 2  # type: ignore[misc]
