"""`make bench`: every bench, one after the other, on an otherwise idle machine. Results lie under `results/`.

    python bench/all.py [--llama-cpp DIR] [--alertmanager PATH] [--only NAME ...]

Peers are measured in the same run where their binaries are given; without them their columns stay empty.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parent


def main() -> int:
    """Run the benches; the exit code is the number of benches that failed to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, help="folder with llama-batched-bench and llama-server")
    parser.add_argument("--alertmanager", type=Path, help="the prometheus-alertmanager binary")
    parser.add_argument("--runs", type=Path, help="folder for the training runs; a temporary one if absent")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these benches and no others, by their files' names")
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp(prefix="midwatch-runs-")) / "pirate"
    adapter = str(runs / "seed-0" / "adapter")
    llama = arguments.llama_cpp
    alertmanager = ["--alertmanager", str(arguments.alertmanager)] if arguments.alertmanager else []
    beside_llama = ["--llama-cpp", str(llama)] if llama else []
    benches: dict[str, list[str]] = {
        "evidence": [],
        "intake": alertmanager,
        "triage": [],
        "recall": [],
        "bad_input": [],
        "engine": beside_llama,
        "engine_http": beside_llama,
        "paging": [],
        "dashboard": [],
        "neighbour": beside_llama,
        "start": ["--llama-server", str(llama / "llama-server")] if llama else [],
        "tuning_convert": [],
        "tuning_memory": [],
        "tuning_pirate": ["--runs", str(runs)],
        "tuning_merge": [adapter],
        "tuning_agreement": [adapter, *beside_llama],
    }
    failed = 0
    for name in arguments.only or benches:
        print(f"\n== {name}", flush=True)
        code = subprocess.run([sys.executable, str(BENCH / f"{name}.py"), *benches[name]], check=False).returncode
        failed += code != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
