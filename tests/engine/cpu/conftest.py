"""The C step, compiled once for all tests."""

from __future__ import annotations

import pytest
from cpu_models import Make

from midwatch.engine.cpu.build import why_unavailable


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    kernel_dir = tmp_path_factory.mktemp("kernels")
    reason = why_unavailable(kernel_dir)
    if reason is not None:
        pytest.skip(reason)
    return Make(kernel_dir)
