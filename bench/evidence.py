"""How well and how fast is a log read? Templates against drain3 on the 16 loghub sets, and evidence from 2,000 lines.

    python bench/evidence.py [--runs 5] [--data ../shared/data]

Both miners get the same messages (the sets' own content column, with the corrected truth where it exists) in one
process, one after the other; drain3 runs with its defaults and the masks of its own example file. Grouping accuracy: a
line counts when the set of lines in its group is exactly the true one.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from midwatch import results
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Case
from midwatch.copilot.templates import mine
from midwatch.results import Row

ROOT = Path(__file__).resolve().parent.parent
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
            target=mean["drain3"],
            direction="at_least",
            peer="drain3 0.9.11, its example masks",
            peer_samples=[mean["drain3"]],
            extra=per_set,
            note="deterministic; the target is the peer's figure of the same run",
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
    ]


def evidence_rows(loghub: Path, runs: int) -> list[Row]:
    """Time from 2,000 raw lines to chosen evidence: the median set, and the slowest one."""
    medians: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for name in SETS:
        text = (loghub / name / f"{name}_2k.log").read_text(encoding="utf-8", errors="replace").split("\n")
        case = Case(service="", title="", lines=tuple(text[:2_000]))
        samples[name] = [build_evidence(case).mining_ms for _ in range(runs)]
        medians[name] = statistics.median(samples[name])
    by_time = sorted(SETS, key=lambda name: medians[name])
    middle, slowest = by_time[len(by_time) // 2], by_time[-1]
    extra: dict[str, float | str] = {name: round(medians[name], 1) for name in SETS}
    return [
        results.row(
            "evidence from 2,000 lines, median set",
            samples[middle],
            "ms",
            target=150,
            direction="at_most",
            note=f"wall time on one core; the median of the 16 sets is {middle}",
            extra=extra,
        ),
        results.row(
            "evidence from 2,000 lines, slowest set",
            samples[slowest],
            "ms",
            target=150,
            direction="at_most",
            note=f"wall time on one core; the slowest of the 16 sets is {slowest}",
        ),
    ]


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Measure template mining and evidence selection.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    loghub = arguments.data / "loghub"
    rows = [*template_rows(loghub, arguments.runs), *evidence_rows(loghub, arguments.runs)]
    print(results.table(rows))
    results.write(ROOT / "results" / "triage" / "evidence.json", rows)


if __name__ == "__main__":
    main()
