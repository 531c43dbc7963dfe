"""How many cores this process may use (its affinity, and a container's quota), and how its threads wait on them."""

from __future__ import annotations

import math
import os
from pathlib import Path

SPIN_TURNS = "3000"
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota_file: Path = CGROUP_QUOTA) -> int:
    """Cores this process may run on, lowered to the control group's quota where one is set. At least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota_us, period_us = quota_file.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota_us) / int(period_us))))
    except (OSError, ValueError, ZeroDivisionError):  # no quota: the file is absent, or says "max"
        return max(1, cores)


def spin_briefly() -> None:
    """Let PyTorch's threads sleep soon instead of spinning when one of them has to wait. Call before torch is imported.

    GNU OpenMP spins for milliseconds at every barrier. Where more is running than there are cores, the thread that is
    waited for cannot run because the waiting one spins. `bench/neighbour.py` has the figures for the PyTorch backend;
    the C step has threads of its own, which wait for nobody that holds no work.
    The user's own OpenMP variables win.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_TURNS)
