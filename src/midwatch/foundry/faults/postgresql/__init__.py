"""PostgreSQL broken in twenty ways, and healthy."""

from __future__ import annotations

from midwatch.foundry.faults.postgresql import limits
from midwatch.foundry.faults.postgresql.server import NEEDS
from midwatch.foundry.stage import staged

FAMILY = "postgresql"
FAULTS = (
    staged(FAMILY, "connection_exhaustion", NEEDS, limits.connection_slots),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), limits.disk_full),
    staged(FAMILY, "oom_memory", (*NEEDS, "prlimit"), limits.memory_exhausted),
    staged(FAMILY, "oom_memory", NEEDS, limits.shared_memory),
)
