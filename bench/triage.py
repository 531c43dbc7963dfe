"""How good and how fast is a diagnosis? `midwatch triage` as a process, and the rules alone on logs with a known cause.

    python bench/triage.py [--runs 5] [--data ../shared/data]

The speed row is wall time from starting the process to its exit, on a log of 2,000 lines: the healthy traffic of one of
our recordings repeated, then the recording itself. The accuracy rows ask no model. They use the public development half
of third-party failure logs, which the rules were improved on, so they say what was reached there and not what to expect
elsewhere; only cases whose published cause maps to one of our categories without doubt take part (`MAPPING`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch import results
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Case, Evidence
from midwatch.results import Row

ROOT = Path(__file__).resolve().parent.parent
LOG_LINES = 2_000
CITED = 3

MAPPING: dict[str, dict[str, tuple[str, ...]]] = {
    "logdx_ci": {
        "permission_or_secret": ("authn_authz",),
        "lint_error": ("ci_build_dependency",),
        "test_assertion": ("ci_test_failure",),
        "snapshot_diff": ("ci_test_failure",),
        "dependency_install": ("ci_build_dependency",),
        "docker_build": ("ci_build_dependency",),
        "github_actions_config": ("ci_build_dependency",),
    },
    "pytorch_ci": {
        "artifact_not_found": ("image_pull_artifact",),
        "aws_credentials_load_failure": ("authn_authz",),
        "checkout_ciflow_tag_missing": ("ci_build_dependency",),
        "collection_assertionerror": ("ci_test_failure",),
        "compile_error": ("ci_build_dependency",),
        "cuda_oom_class": ("oom_memory",),
        "distributed_test_wrapper": ("ci_test_failure",),
        "docker_manifest_unknown": ("image_pull_artifact",),
        "lint_lintrunner": ("ci_build_dependency",),
        "msvc_compiler_error": ("ci_build_dependency",),
        "ninja_build_failed": ("ci_build_dependency",),
        "pip_wheel_build_failure": ("ci_build_dependency",),
        "pytest_failures_section": ("ci_test_failure",),
        "test_file_failed_wrapper": ("ci_test_failure",),
        "unittest_failed_consistently": ("ci_test_failure",),
        "test_file_signal_crash": ("ci_test_failure", "code_defect_crash"),
        "infra_osdc_pod_failure": ("node_control_plane", "ci_build_dependency", "scheduling_capacity"),
        "ghstack_too_deep": ("ci_build_dependency",),
        "gha_operation_canceled": ("ci_build_dependency",),
    },
    "treeherder": {
        "memory_error": ("code_defect_crash", "ci_test_failure"),
        "build": ("ci_build_dependency",),
        "crash": ("code_defect_crash", "ci_test_failure"),
        "test": ("ci_test_failure",),
    },
    "k8s_faults": {
        "CreateContainerError": ("config_env_error",),
        "OOMKilled": ("oom_memory",),
        "FailedScheduling": ("scheduling_capacity",),
        "FailedCreate": ("quota_rate_limit",),
    },
}
"""A source's words for a cause, and the categories of ours that say the same."""


@dataclass(frozen=True)
class Known:
    """A log whose cause and telling lines (1-based; may be empty) are published."""

    name: str
    source: str
    case: Case
    causes: tuple[str, ...]
    telling: frozenset[int]


def recordings() -> Iterator[Known]:
    """Our own recordings, with the alert that came with them."""
    for folder in sorted((ROOT / "demo" / "incidents").iterdir()):
        truth = tomllib.loads((folder / "truth.toml").read_text(encoding="utf-8"))
        lines = tuple((folder / "log.txt").read_text(encoding="utf-8").splitlines())
        title = message = ""
        if (folder / "alert.json").exists():
            alert = json.loads((folder / "alert.json").read_text(encoding="utf-8"))["alerts"][0]
            title, message = alert["labels"].get("alertname", ""), alert["annotations"].get("summary", "")
        causes = (truth["category"], *truth.get("accepted", ()))
        case = Case(service="", title=title, message=message, lines=lines)
        yield Known(folder.name, "own recordings", case, causes, frozenset(truth.get("lines", ())))


def public(folder: Path) -> Iterator[Known]:
    """The cases of the development half that map, or whose telling lines are published."""
    for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        source = entry["source"]
        if source not in MAPPING and source != "cidiff":
            continue
        kind = entry["category"]
        if source == "k8s_faults":
            fault = json.loads((folder / entry["id"] / "fault.json").read_text(encoding="utf-8"))
            text, kind = f"Warning {fault['event']} {fault['kind'].lower()}/web-0 {fault['error']}", fault["event"]
        else:
            logs = [name for name in entry["files"] if name.endswith((".log", ".log.gz"))]
            path = folder / next((name for name in logs if "fail" in Path(name).name), logs[0])
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        causes = MAPPING.get(source, {}).get(kind, ())
        case = Case(service="", title="", lines=tuple(text.split("\n")))
        yield Known(entry["id"], source, case, causes, frozenset(telling_lines(folder, entry)))


def telling_lines(folder: Path, entry: dict[str, Any]) -> set[int]:
    """The lines that a source's own annotators marked."""
    source, lines = entry["source"], set[int]()
    if source == "logdx_ci":
        truth = json.loads((folder / entry["id"] / "ground_truth.json").read_text(encoding="utf-8"))
        spans = [
            tuple(span)
            for signal in truth["required_signals"]
            if signal["importance"] == "critical"
            for span in signal.get("evidence_lines", ())
        ]
        spans += [(span["start_line"], span["end_line"]) for span in truth.get("evidence_spans", ())]
        for first, last in spans:
            lines |= set(range(first, last + 1))
    elif source == "pytorch_ci":
        lines = {entry["match_line"]}
    elif source == "cidiff":
        for path in sorted((folder / entry["id"]).glob("groundtruth*")):
            for first, last in re.findall(r"^E (\d+)(?:-(\d+))?", path.read_text(encoding="utf-8"), re.MULTILINE):
                lines |= set(range(int(first), int(last or first) + 1))
    return lines


def wording(line: str) -> str:
    """A line without its times and numbers: a repeated error is as telling as its first occurrence."""
    return re.sub(r"[\d:.TZ-]+", "", line)[:200]


def hits(known: Known, evidence: Evidence, cited_only: bool) -> bool:
    """Whether one of the lines shown (or cited first by the rules) is a telling one, or says the same."""
    ids = set(evidence.ranking[0].line_ids[:CITED]) if evidence.ranking else set()
    numbers = [line.line_number for line in evidence.lines if not cited_only or line.id in ids]
    said = {wording(known.case.lines[number - 1]) for number in known.telling if number <= len(known.case.lines)}
    return any(number in known.telling or wording(known.case.lines[number - 1]) in said for number in numbers)


def accuracy_rows(folder: Path | None) -> list[Row]:
    """Share of right categories, and of cases whose telling lines were shown and cited, by source."""
    gathered: dict[str, list[tuple[Known, Evidence]]] = {}
    for known in (*recordings(), *(public(folder) if folder is not None else ())):
        gathered.setdefault(known.source, []).append((known, build_evidence(known.case)))
    rows = []
    for source, pairs in gathered.items():
        judged = [(known, evidence) for known, evidence in pairs if known.causes]
        if judged:
            first = [evidence.ranking[0].category if evidence.ranking else "unknown" for _, evidence in judged]
            right = [name in known.causes for (known, _), name in zip(judged, first, strict=True)]
            wrong = {known.name: name for (known, _), name, good in zip(judged, first, right, strict=True) if not good}
            extra: dict[str, float | str] = {"right": sum(right), "cases": len(judged), **wrong}
            rows.append(
                results.row(f"category right, rules only: {source}", [sum(right) / len(right)], "share", extra=extra)
            )
        marked = [(known, evidence) for known, evidence in pairs if known.telling]
        if marked:
            for what, cited_only in (("shown", False), (f"among the first {CITED} cited", True)):
                found = sum(hits(known, evidence, cited_only) for known, evidence in marked)
                extra = {"found": found, "cases": len(marked)}
                rows.append(
                    results.row(f"a telling line {what}: {source}", [found / len(marked)], "share", extra=extra)
                )
    return rows


def long_log() -> str:
    """2,000 lines: healthy traffic, then an incident."""
    lines = (ROOT / "demo" / "incidents" / "postgres-connections" / "log.txt").read_text(encoding="utf-8").splitlines()
    healthy = [line for line in lines[:100] if "ERROR" not in line and "FATAL" not in line]
    padding = (healthy * (LOG_LINES // len(healthy) + 1))[: LOG_LINES - len(lines)]
    return "\n".join([*padding, *lines]) + "\n"


def process_rows(runs: int) -> list[Row]:
    """Wall time of the whole command, with the embedded model and with the rules alone."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "app.log"
        path.write_text(long_log(), encoding="utf-8")
        for name, flags, target in (("with the embedded model", [], 6.0), ("rules only", ["--rules-only"], None)):
            seconds, tokens = [], []
            for _ in range(runs):
                started = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "midwatch", "triage", str(path), "--json", *flags],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds.append(time.perf_counter() - started)
                found = json.loads(done.stdout)
                tokens.append(found["tokens"])
            rows.append(
                results.row(
                    f"midwatch triage of {LOG_LINES} lines, {name}",
                    seconds,
                    "s",
                    target=target,
                    direction="at_most" if target else None,
                    note="whole process, start to exit",
                    extra={"category": found["category"], "tokens": tokens[-1]},
                )
            )
    return rows


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Measure midwatch triage and the rules behind it.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    incidents = arguments.data / "incidents"
    rows = [*process_rows(arguments.runs), *accuracy_rows(incidents if incidents.exists() else None)]
    print(results.table(rows))
    results.write(ROOT / "results" / "triage" / "triage.json", rows)


if __name__ == "__main__":
    main()
