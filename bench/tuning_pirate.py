"""The whole of `pirate-smollm2` on this machine's cores: train it from nothing for several seeds, then evaluate.

    python bench/tuning_pirate.py --runs FOLDER [--seeds 3] [--prompts 200]

Each run is the command in a process of its own, with an empty folder; the first also converts the base, in a cache that
holds the fetched weights and nothing else (the network is not ours to measure). Then `midwatch tune eval` asks base,
prompted base and the adapters. Rows go to `results/tuning/pirate.json`, the plot beside them, pictures of the page to
`docs/images/`. FOLDER keeps runs, adapters, page and answers; it must not hold them yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch import results, settings
from midwatch.tuning.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "pirate-smollm2"
NAME = "pirate"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its folder, the wall time of the whole process, its largest resident set, its own summary."""

    folder: Path
    wall_s: float
    peak_rss_bytes: int
    summary: dict[str, Any]


def process(arguments: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Run `midwatch` with these arguments. Returns seconds and peak resident bytes; stops the bench if it fails."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "midwatch", *arguments], env=environment) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"midwatch {' '.join(arguments)} failed with {child.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def fresh_cache(folder: Path) -> dict[str, str]:
    """An environment whose cache holds the fetched weights alone: nothing is converted, no kernel compiled."""
    folder.mkdir(parents=True)
    (folder / "models").symlink_to(settings.load().cache_dir / "models", target_is_directory=True)
    return {**os.environ, "MIDWATCH_CACHE_DIR": str(folder)}


def train(runs: Path, seed: int, environment: dict[str, str]) -> Run:
    """One run from an empty folder."""
    folder = runs / f"seed-{seed}"
    arguments = ["tune", "run", RECIPE, "--out", str(folder), "--seed", str(seed)]
    wall_s, peak = process(arguments, environment)
    print(f"seed {seed}: {wall_s / 60:.2f} min, peak {peak / 2**30:.2f} GiB", flush=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Run(folder=folder, wall_s=wall_s, peak_rss_bytes=peak, summary=summary)


def training_rows(taken: list[Run]) -> list[results.Row]:
    """What training took and made, over the seeds."""
    adapters = [run.folder / "adapter" / "adapter_model.safetensors" for run in taken]
    described = load_recipe(RECIPE).training
    shape = f"{described.rows * described.accumulate} × {described.row_tokens} tokens a step"

    def of(field: str, factor: float = 1.0) -> list[float]:
        return [float(run.summary[field]) * factor for run in taken]

    return [
        results.row(
            "from nothing to a model",
            [run.wall_s / 60 for run in taken],
            "min",
            target=10.0,
            direction="at_most",
            note="whole process with fetched weights; the first run also converts the base",
            extra={f"seed {seed}": run.wall_s / 60 for seed, run in enumerate(taken)},
        ),
        results.row("training alone", of("training_s", 1 / 60), "min", note=shape),
        results.row("training speed", of("tokens_per_s"), "tokens/s", note=shape),
        results.row("steps", of("steps"), "steps"),
        results.row("training tokens", of("tokens"), "tokens", note="of the data set, shown once an epoch"),
        results.row("loss, first step", of("first_loss"), "nat/token"),
        results.row("loss, last ten steps", of("last_loss"), "nat/token"),
        results.row("peak resident memory", [run.peak_rss_bytes / 2**30 for run in taken], "GiB"),
        results.row(
            "adapter file",
            [path.stat().st_size / 1e6 for path in adapters],
            "MB",
            target=10.0,
            direction="at_most",
        ),
    ]


async def photograph(page: Path, images: Path) -> list[str]:
    """The top of the page and its ten prompts; returns what the page complained about."""
    camera = runpy.run_path(str(ROOT / "scripts" / "screenshots.py"), run_name="screenshots")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return ["there is no Chromium here, so no picture of the page was taken"]
    async with camera["browser"](chromium) as tab:
        for part, size, theme in (("", "laptop", "light"), ("#prompts", "laptop", "light"), ("", "phone", "dark")):
            picture = camera["Picture"](page=page.resolve().as_uri() + part, size=size, theme=theme)
            png = await camera["shoot"](tab, "", picture)
            (images / f"tuning{part.replace('#', '-')}-{size}-{theme}.png").write_bytes(png)
        problems: list[str] = tab.problems
        return problems


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for runs, adapters, page and answers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=200, help="prompts per measure")
    given = parser.parse_args()
    environment = fresh_cache(given.runs / "cache")
    taken = [train(given.runs, seed, environment) for seed in range(given.seeds)]
    out = given.runs / "evaluation"
    evaluated = ["tune", "eval", *(str(run.folder) for run in taken), "--out", str(out)]
    wall_s, _ = process([*evaluated, "--prompts", str(given.prompts)], environment)
    rows = [
        *training_rows(taken),
        results.row("evaluation", [wall_s / 60], "min", note=f"{given.prompts} prompts per measure"),
        *results.read(out / "evaluation.json"),
    ]
    folder = ROOT / "results" / "tuning"
    results.write(folder / f"{NAME}.json", rows)
    for picture in (folder / f"{NAME}.svg", ROOT / "docs" / "images" / f"tuning-{NAME}.svg"):
        shutil.copyfile(out / "evaluation.svg", picture)
    for problem in asyncio.run(photograph(out / "evaluation.html", ROOT / "docs" / "images")):
        print(f"the page complained: {problem}", file=sys.stderr)
    print(results.table(rows))


if __name__ == "__main__":
    main()
