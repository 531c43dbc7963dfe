"""What a busy neighbour costs decode: the C step with one thread and with two, llama.cpp, and PyTorch by its spin.

    python bench/neighbour.py [--runs 5] [--llama-cpp DIR]

Each sample is a fresh process that decodes one sequence: alone on the machine, beside one busy loop, and beside two for
each core. The C step's threads take work from one counter, so one that the system has put aside holds nobody up; GNU
OpenMP, which PyTorch uses, waits for all at every operation and spins for long by itself (`engine/cores.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_cpp import LlamaCpp
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
chosen = EngineSettings(threads=int(sys.argv[3]), kernels=sys.argv[4])
engine = Engine.load(Path(sys.argv[1]), chosen, kernel_dir=Path(sys.argv[2]))
engine.add_request(list(range(1000, 1064)), SamplingParams(max_tokens=65, ignore_eos=True))
engine.step()
decoding = time.perf_counter()
while engine.has_work:
    engine.step()
print(64 / (time.perf_counter() - decoding))
"""


def sample(kernels: str, threads: int, spin_turns: str | None = SPIN_TURNS) -> float:
    """Tokens per second in a process of its own; OpenMP spins for `spin_turns` (None is its default)."""
    configured = settings.load()
    model = hub.resolve(configured.engine.model, configured.cache_dir)
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spin_turns is not None:
        environment["GOMP_SPINCOUNT"] = spin_turns
    argv = [sys.executable, "-c", CHILD, str(model), str(configured.kernel_dir), str(threads), kernels]
    return float(subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout)


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
    parser.add_argument("--llama-cpp", type=Path, help="folder that holds llama-batched-bench and llama-quantize")
    parser.add_argument("--native-only", action="store_true", help="leave PyTorch out, which is slow in a crowd")
    given = parser.parse_args()
    cores = usable_cores()
    runners: dict[str, Callable[[], float]] = {
        "all": lambda: sample("native", cores),
        "one": lambda: sample("native", 1),
    }
    if not given.native_only:
        runners["torch"] = lambda: sample("torch", cores)
        runners["torch, default spin"] = lambda: sample("torch", cores, None)
    if given.llama_cpp is not None:
        configured = settings.load()
        llama = LlamaCpp(given.llama_cpp, hub.resolve(configured.engine.model, configured.cache_dir))
        file = llama.requantized
        runners["llama.cpp"] = lambda: llama.batched_bench(file, prompt=64, new=64, batches=(1,), threads=cores)[1][1]
    rows = []
    for where, neighbours in (("alone", 0), ("beside one busy loop", 1), ("beside two a core", 2 * cores)):
        taken: dict[str, list[float]] = {name: [] for name in runners}
        with busy(neighbours):
            for turn in range(given.runs):
                for name, run in runners.items():
                    taken[name].append(run())
                middle = {name: round(statistics.median(values), 1) for name, values in taken.items()}
                print(f"{where}, round {turn + 1}: {middle}", flush=True)
        rows += rows_of(where, taken, cores)
    results.write(ROOT / "results" / "engine" / "neighbour.json", rows)
    print(results.table(rows))


def rows_of(where: str, taken: dict[str, list[float]], cores: int) -> list[results.Row]:
    """The lines of one kind of neighbourhood."""
    theirs = taken.get("llama.cpp", [])
    peer = f"llama.cpp Q4_0, {cores} threads" if theirs else None
    rows = [
        results.row(f"decode, {cores} threads, {where}", taken["all"], "tokens/s", peer=peer, peer_samples=theirs),
        results.row(
            f"decode, {cores} threads against one, {where}",
            taken["all"],
            "tokens/s",
            peer="ourselves, one thread",
            peer_samples=taken["one"],
        ),
    ]
    if "torch" in taken:
        rows.append(
            results.row(
                f"decode in PyTorch, short spin, {where}",
                taken["torch"],
                "tokens/s",
                peer="GNU OpenMP's default spin",
                peer_samples=taken["torch, default spin"],
            )
        )
    return rows


if __name__ == "__main__":
    main()
