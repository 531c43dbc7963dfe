"""What a busy neighbour costs the engine, by how long PyTorch's threads spin when they wait.

    python bench/neighbour.py [--runs 5]

Each sample is a fresh process that loads the weights and decodes 64 tokens: alone on the machine, and beside two busy
loops for each core. "Default" is what GNU OpenMP does by itself, and is the peer of our setting.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from midwatch import results, settings
from midwatch.engine import hub
from midwatch.engine.cores import SPIN_TURNS, usable_cores

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import sys, time
from pathlib import Path
from midwatch.engine.engine import Engine
from midwatch.engine.request import SamplingParams
from midwatch.settings import EngineSettings
started = time.perf_counter()
engine = Engine.load(Path(sys.argv[1]), EngineSettings())
loaded = time.perf_counter()
engine.add_request(list(range(1000, 1064)), SamplingParams(max_tokens=65, ignore_eos=True))
engine.step()
decoding = time.perf_counter()
while engine.has_work:
    engine.step()
print(loaded - started, 64 / (time.perf_counter() - decoding))
"""


def sample(model: Path, turns: str | None) -> tuple[float, float]:
    """Seconds to load and tokens per second of decode, in a process whose threads spin for `turns` (None: default)."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if turns is not None:
        environment["GOMP_SPINCOUNT"] = turns
    argv = [sys.executable, "-c", CHILD, str(model)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    load_s, decode_tokens_per_s = done.stdout.split()
    return float(load_s), float(decode_tokens_per_s)


@contextlib.contextmanager
def busy(neighbours: int) -> Iterator[None]:
    """So many processes that only turn."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Measure and write `results/engine/neighbour.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    configured = settings.load()
    model = hub.resolve(configured.engine.model, configured.cache_dir)
    rows = []
    for where, neighbours in (("alone", 0), ("beside two busy loops a core", 2 * usable_cores())):
        spins = {"ours": SPIN_TURNS, "default": None} | ({"none": "0"} if neighbours == 0 else {})
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in spins}
        with busy(neighbours):
            for turn in range(runs):
                for name, turns in spins.items():
                    taken[name].append(sample(model, turns))
                medians = {
                    name: round(statistics.median(decode for _, decode in got), 1) for name, got in taken.items()
                }
                print(f"{where}, round {turn + 1}: decode {medians}", flush=True)
        for index, (what, unit) in enumerate((("load", "s"), ("decode", "tokens/s"))):
            rows.append(
                results.row(
                    f"{what}, {where}",
                    [got[index] for got in taken["ours"]],
                    unit,
                    peer="GNU OpenMP's default spin",
                    peer_samples=[got[index] for got in taken["default"]],
                )
            )
        if "none" in taken:
            rows.append(
                results.row("decode, alone, no spin at all", [decode for _, decode in taken["none"]], "tokens/s")
            )
    results.write(ROOT / "results" / "engine" / "neighbour.json", rows)
    print(results.table(rows))


if __name__ == "__main__":
    main()
