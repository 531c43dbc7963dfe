"""The dashboard, served for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from dashboard_site import Site, serve
from sample_incidents import MemoryReader, twelve

from midwatch.settings import Settings


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    """The twelve incidents, served."""
    async for running in serve(MemoryReader(twelve()), Settings(state_dir=tmp_path)):
        yield running


@pytest.fixture
async def empty_site(tmp_path) -> AsyncIterator[Site]:
    """No incident yet, served."""
    async for running in serve(MemoryReader(), Settings(state_dir=tmp_path)):
        yield running
