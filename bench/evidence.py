"""How well and how fast is a log read? Templates, evidence, names, and a stream of gigabytes.

    python bench/evidence.py [--runs 5] [--incidents 300] [--stream-gb 1] [--data ../shared/data]

Templates: our miner and drain3 get the same messages of the 16 loghub sets (the content column, with the corrected
truth where it exists) in one process, one after the other; drain3 runs with its defaults and the masks of its own
example file. Grouping accuracy: a line counts when the set of lines in its group is exactly the true one. Evidence: a
true line counts as shown when a shown line has its wording (its text without times, numbers and long ids). Times are
processor time, since the machine may be busy.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from midwatch import results
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Case
from midwatch.copilot.templates import mine
from midwatch.copilot.wordings import TemplateStore
from midwatch.evaluation import public, sets
from midwatch.evaluation.verdict import same_entity, wording
from midwatch.foundry.incident import Incident
from midwatch.results import Row

ROOT = Path(__file__).resolve().parent.parent
LONG = 100_000
WITH_PEAK = """
import atexit, pathlib, runpy, sys
lines = lambda: pathlib.Path("/proc/self/status").read_text().splitlines()
atexit.register(lambda: print(next(line for line in lines() if line.startswith("VmHWM")), file=sys.stderr))
runpy.run_module("midwatch", run_name="__main__")
"""
"""Runs `midwatch` and then says its peak memory (what the parent's `wait4` says counts the parent's own)."""
SETS = (
    "Android",
    "Apache",
    "BGL",
    "HDFS",
    "HPC",
    "Hadoop",
    "HealthApp",
    "Linux",
    "Mac",
    "OpenSSH",
    "OpenStack",
    "Proxifier",
    "Spark",
    "Thunderbird",
    "Windows",
    "Zookeeper",
)
EXAMPLE_MASKS = (
    (r"((?<=[^A-Za-z0-9])|^)(([0-9a-f]{2,}:){3,}([0-9a-f]{2,}))((?=[^A-Za-z0-9])|$)", "ID"),
    (r"((?<=[^A-Za-z0-9])|^)(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})((?=[^A-Za-z0-9])|$)", "IP"),
    (r"((?<=[^A-Za-z0-9])|^)([0-9a-f]{6,} ?){3,}((?=[^A-Za-z0-9])|$)", "SEQ"),
    (r"((?<=[^A-Za-z0-9])|^)([0-9A-F]{4} ?){4,}((?=[^A-Za-z0-9])|$)", "SEQ"),
    (r"((?<=[^A-Za-z0-9])|^)(0x[a-f0-9A-F]+)((?=[^A-Za-z0-9])|$)", "HEX"),
    (r"((?<=[^A-Za-z0-9])|^)([\-\+]?\d+)((?=[^A-Za-z0-9])|$)", "NUM"),
)


def read_set(loghub: Path, name: str) -> tuple[list[str], list[str]]:
    """Messages and their true event ids."""
    path = loghub / "corrected" / name / f"{name}_2k.log_structured_corrected.csv"
    if not path.exists():
        path = loghub / name / f"{name}_2k.log_structured.csv"
    with path.open(encoding="utf-8", errors="replace") as stream:
        rows = list(csv.DictReader(stream))
    return [row["Content"] for row in rows], [row["EventId"] for row in rows]


def with_drain3(messages: Sequence[str]) -> list[int]:
    """Cluster ids by drain3."""
    from drain3 import TemplateMiner
    from drain3.masking import MaskingInstruction
    from drain3.template_miner_config import TemplateMinerConfig

    config = TemplateMinerConfig()
    config.masking_instructions = [MaskingInstruction(pattern, name) for pattern, name in EXAMPLE_MASKS]
    miner = TemplateMiner(config=config)
    return [int(miner.add_log_message(message)["cluster_id"]) for message in messages]


def with_ours(messages: Sequence[str]) -> list[int]:
    """Template ids by our miner."""
    return mine(messages)[0]


def grouping_accuracy(found: Sequence[int], true: Sequence[str]) -> float:
    """Share of lines whose group is exactly the true group."""
    groups: dict[int, set[int]] = defaultdict(set)
    truth: dict[str, set[int]] = defaultdict(set)
    for index, (group, event) in enumerate(zip(found, true, strict=True)):
        groups[group].add(index)
        truth[event].add(index)
    return sum(len(lines) for lines in groups.values() if truth[true[min(lines)]] == lines) / len(true)


def timed(work: Callable[[Sequence[str]], list[int]], messages: Sequence[str]) -> tuple[float, list[int]]:
    """Milliseconds of processor time (the machine may be busy) and the result."""
    started = time.process_time()
    found = work(messages)
    return (time.process_time() - started) * 1000, found


def template_rows(loghub: Path, runs: int) -> list[Row]:
    """Accuracy and speed of both miners."""
    sets = {name: read_set(loghub, name) for name in SETS}
    accuracy: dict[str, dict[str, float]] = {"ours": {}, "drain3": {}}
    totals: dict[str, list[float]] = {"ours": [], "drain3": []}
    for run in range(runs):
        spent = {"ours": 0.0, "drain3": 0.0}
        for name, (messages, true) in sets.items():
            for who, work in (("ours", with_ours), ("drain3", with_drain3)):
                ms, found = timed(work, messages)
                spent[who] += ms
                if run == 0:
                    accuracy[who][name] = grouping_accuracy(found, true)
        for who, ms in spent.items():
            totals[who].append(ms)
    lines = sum(len(messages) for messages, _ in sets.values())
    per_set: dict[str, float | str] = {
        name: f"{accuracy['ours'][name]:.4f} / drain3 {accuracy['drain3'][name]:.4f}" for name in SETS
    }
    mean = {who: statistics.fmean(values.values()) for who, values in accuracy.items()}
    return [
        results.row(
            "template grouping accuracy, mean of 16 sets",
            [mean["ours"]],
            "share",
            target=0.90,
            direction="at_least",
            peer="drain3 0.9.11, its example masks",
            peer_samples=[mean["drain3"]],
            extra=per_set,
            note="deterministic",
        ),
        results.row(
            "template mining, 1,000 lines",
            [ms * 1000 / lines for ms in totals["ours"]],
            "ms cpu",
            target=statistics.median(totals["drain3"]) * 1000 / lines,
            direction="at_most",
            peer="drain3 0.9.11, its example masks",
            peer_samples=[ms * 1000 / lines for ms in totals["drain3"]],
        ),
        results.row(
            "template mining, one core",
            [lines * 1000 / ms for ms in totals["ours"]],
            "lines/s",
            target=100_000,
            direction="at_least",
            peer="drain3 0.9.11, its example masks",
            peer_samples=[lines * 1000 / ms for ms in totals["drain3"]],
        ),
    ]


def reading_ms(lines: Sequence[str], store: TemplateStore | None = None) -> float:
    """Milliseconds of processor time from raw lines to chosen evidence."""
    case = Case(service="", title="", lines=tuple(lines))
    started = time.process_time()
    build_evidence(case, store=store)
    return (time.process_time() - started) * 1000


def set_lines(loghub: Path, name: str) -> list[str]:
    """The raw lines of a loghub set."""
    return (loghub / name / f"{name}_2k.log").read_text(encoding="utf-8", errors="replace").split("\n")[:2_000]


def evidence_rows(loghub: Path, runs: int) -> list[Row]:
    """Time from 2,000 raw lines to chosen evidence with nothing known: the median set, and the slowest one."""
    samples = {name: [reading_ms(set_lines(loghub, name)) for _ in range(runs)] for name in SETS}
    medians = {name: statistics.median(samples[name]) for name in SETS}
    by_time = sorted(SETS, key=lambda name: medians[name])
    middle, slowest = by_time[len(by_time) // 2], by_time[-1]
    extra: dict[str, float | str] = {name: round(medians[name], 1) for name in SETS}
    return [
        results.row(
            f"evidence from 2,000 lines, {which} set",
            samples[name],
            "ms cpu",
            target=150,
            direction="at_most",
            note=f"one core, nothing known before; the {which} of the 16 sets is {name}",
            extra=extra if which == "median" else None,
        )
        for which, name in (("median", middle), ("slowest", slowest))
    ]


def long_rows(loghub: Path, runs: int) -> list[Row]:
    """Time for 100,000 lines: of the 16 sets in turn, and of one service whose every line has an id of its own."""
    mixed = [line for name in SETS for line in set_lines(loghub, name)]
    mixed = (mixed * (LONG // len(mixed) + 1))[:LONG]
    logs: dict[str, Callable[[int], list[str]]] = {
        "of the 16 sets": lambda run: mixed,
        "of one service, JSON, an id in every line": lambda run: list(identified(LONG, seed=run)),
    }
    rows = []
    for what, log in logs.items():
        store = TemplateStore()
        cold = [reading_ms(log(run)) for run in range(runs)]
        reading_ms(log(runs), store)
        warm = [reading_ms(log(runs + 1 + run), store) for run in range(runs)]
        note = "one core; a warm store has read another log of the same service before"
        rows += [
            results.row(f"evidence from 100,000 lines {what}, cold", cold, "ms cpu", note=note),
            results.row(
                f"evidence from 100,000 lines {what}, warm", warm, "ms cpu", target=200, direction="at_most", note=note
            ),
        ]
    return rows


def identified(count: int, seed: int) -> Iterator[str]:
    """Healthy JSON lines, each with a trace id, and one error in their middle."""
    draw = random.Random(seed)
    for number in range(count):
        bad = number == count // 2
        level, message = ("error", "write failed: No space left on device") if bad else ("info", "handled request")
        yield (
            f'{{"ts":"2026-05-01T03:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}Z","level":"{level}",'
            f'"trace_id":"{draw.getrandbits(128):032x}","service":"pay","msg":"{message}","ms":{draw.randint(1, 900)}}}'
        )


def recall_rows(data: Path, count: int) -> list[Row]:
    """Share of incidents of which a true line is shown, and of which the true name is offered, by set and budget."""
    rows: list[Row] = []
    chosen: list[tuple[str, Iterable[Incident], float | None]] = [
        ("foundry, programs never trained on", sets.load("foundry-programs", count=count), 0.95),
        ("foundry, seeds never trained on", sets.load("foundry-seeds", count=count), 0.95),
        ("logdx_ci", public.read(data / "incidents", "logdx_ci"), 0.85),
        ("pytorch_ci", public.read(data / "incidents", "pytorch_ci"), 0.85),
        ("cidiff", public.read(data / "incidents", "cidiff"), None),
        ("treeherder", public.read(data / "incidents", "treeherder"), None),
    ]
    for name, found, target in chosen:
        incidents = list(found)
        for budget in (2_000, 600):
            shown = [of for incident in incidents if (of := share_shown(incident, budget)) is not None]
            rows.append(
                results.row(
                    f"a true line shown within {budget} tokens: {name}",
                    [statistics.fmean(share > 0 for share in shown)],
                    "share",
                    target=target,
                    direction=None if target is None else "at_least",
                    extra={"incidents": len(shown), "mean share of true wordings": statistics.fmean(shown)},
                )
            )
        if name.startswith("foundry"):
            rows += name_rows(name, [incident for incident in incidents if incident.truth.entities])
    return rows


def share_shown(incident: Incident, budget: int) -> float | None:
    """The share of an incident's true wordings that are shown; None if it has none."""
    lines = incident.case.lines
    true = {wording(lines[number - 1]) for number in incident.truth.lines if number <= len(lines)} - {""}
    shown = {wording(line.text) for line in build_evidence(incident.case, budget).lines}
    return len(true & shown) / len(true) if true else None


def name_rows(name: str, incidents: Sequence[Incident]) -> list[Row]:
    """Where a true name stands among the offered ones."""
    places: list[int | None] = []
    for incident in incidents:
        offered = build_evidence(incident.case).entities
        true = [any(same_entity(one, name) for one in incident.truth.entities) for name in offered]
        places.append(true.index(True) if True in true else None)
    extra: dict[str, float | str] = {"incidents": len(places)}
    return [
        results.row(
            f"the true name offered: {name}",
            [statistics.fmean(place is not None for place in places)],
            "share",
            target=0.90,
            direction="at_least",
            extra=extra,
        ),
        results.row(
            f"the true name offered first: {name}",
            [statistics.fmean(place == 0 for place in places)],
            "share",
            extra=extra,
        ),
    ]


def stream_rows(gigabytes: float) -> list[Row]:
    """Memory and time of `midwatch triage -` on a log that is larger than memory ought to be."""
    block = "\n".join(identified(20_000, seed=7)).replace("No space left on device", "ok").replace('"error"', '"info"')
    raw = f"{block}\n".encode()
    blocks = max(int(gigabytes * 1e9 / len(raw)), 1)
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_PEAK, "triage", "-", "--rules-only", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    for number in range(blocks):
        process.stdin.write(raw)
        if number == blocks // 2:
            process.stdin.write(b"03:00:00 ERROR pay: write failed: No space left on device\n")
    process.stdin.close()
    answer = json.loads(process.stdout.read())
    peak_kib = int(process.stderr.read().split()[-2])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    at = (blocks // 2 + 1) * 20_000 + 1
    cited = [item["line_number"] for item in answer["citations"]]
    assert (answer["category"], cited[:1]) == ("disk_storage_full", [at]), answer
    lines, size = blocks * 20_000 + 1, blocks * len(raw) / 1e9
    note = f"{lines} lines, {size:.2f} GB, through a pipe, rules only; the one error is cited by its true number {at}"
    return [
        results.row(
            "peak memory of a streamed log",
            [peak_kib * 1024 / 1e6],
            "MB",
            target=500,
            direction="at_most",
            note=note,
        ),
        results.row("time of a streamed log", [(usage.ru_utime + usage.ru_stime) / size], "s cpu/GB", note=note),
    ]


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Measure template mining and evidence selection.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--incidents", type=int, default=300, help="incidents of each foundry set")
    parser.add_argument("--stream-gb", type=float, default=1.0)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MIDWATCH_DATA", ROOT.parent / "shared/data")))
    arguments = parser.parse_args()
    loghub = arguments.data / "loghub"
    rows = [
        *template_rows(loghub, arguments.runs),
        *evidence_rows(loghub, arguments.runs),
        *long_rows(loghub, arguments.runs),
        *recall_rows(arguments.data, arguments.incidents),
        *stream_rows(arguments.stream_gb),
    ]
    print(results.table(rows))
    results.write(ROOT / "results" / "triage" / "evidence.json", rows)


if __name__ == "__main__":
    main()
