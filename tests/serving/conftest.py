"""A real `midwatch serve` with the real weights, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_process import await_ready, start_server


@pytest.fixture(scope="session")
def real_url(smollm2_path: Path) -> Iterator[str]:
    """Base URL of a server that is ready."""
    assert smollm2_path.exists()
    process, url = start_server()
    with process:
        await_ready(url, process)
        yield url
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
