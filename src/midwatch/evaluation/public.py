"""The public failure logs with a known cause, as labelled incidents.

`folder` is the `incidents` folder of the shared data (its README names sources and licences). Nothing here is trained
on. A source's word for a cause is mapped where it means one of our categories (`MAPPING`); where the word leaves room,
each category that a careful reader could defend is accepted. A word that fits none leaves the cause unlabelled, and the
case then counts only for its lines or its entity.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from midwatch.copilot.model import Case
from midwatch.errors import FoundryError
from midwatch.foundry.incident import Incident, Truth

MAPPING: dict[str, dict[str, tuple[str, ...]]] = {
    "logdx_ci": {
        "permission_or_secret": ("authn_authz",),
        "lint_error": ("ci_build_dependency",),
        "test_assertion": ("ci_test_failure",),
        "snapshot_diff": ("ci_test_failure",),
        "dependency_install": ("ci_build_dependency",),
        "docker_build": ("ci_build_dependency", "image_pull_artifact"),
        "github_actions_config": ("ci_build_dependency", "config_env_error"),
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
    "nezha_trainticket": {
        "return": ("code_defect_crash",),
        "exception": ("code_defect_crash",),
        "cpu_contention": ("cpu_saturation",),
        "network_delay": ("network_connectivity",),
    },
}
"""A source's words for a cause, and the categories of ours that say the same, the closest first."""
SOURCES = (*MAPPING, "cidiff")
"""Sources that make incidents (`cidiff` labels lines only)."""
PLACEHOLDERS = {"{FAULT_POD}": "web-7d9c5b6f4-x2k8p", "{FAULT_CONTAINER}": "web"}
"""Names for the holes that `k8s_faults` leaves in its events."""
CPU_ALERT_PERCENT = 80.0
LATENCY_ALERT_S = 1.0


def read(folder: Path, source: str) -> Iterator[Incident]:
    """The incidents of one source, in the order of the index. Raises `FoundryError` where the data is not there."""
    index = folder / "index.jsonl"
    if not index.is_file():
        raise FoundryError(
            f"{folder} holds no public incidents (index.jsonl is missing).",
            "Set MIDWATCH_DATA to the folder that has an incidents folder in it.",
        )
    make = _READERS.get(source, _ci_log)
    for line in index.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["source"] == source:
            yield make(folder, entry)


def telling_lines(folder: Path, entry: dict[str, Any], lines: tuple[str, ...]) -> frozenset[int]:
    """The lines (1-based) that a source's own annotators marked; empty where it marks none.

    `treeherder` counts lines in two ways, so its marked lines are found by their text.
    """
    return frozenset(_MARKS[entry["source"]](folder, entry, lines)) if entry["source"] in _MARKS else frozenset()


def _logdx_marks(folder: Path, entry: dict[str, Any], lines: tuple[str, ...]) -> set[int]:
    truth = json.loads((folder / entry["id"] / "ground_truth.json").read_text(encoding="utf-8"))
    spans = [
        tuple(span)
        for signal in truth["required_signals"]
        if signal["importance"] == "critical"
        for span in signal.get("evidence_lines", ())
    ]
    spans += [(span["start_line"], span["end_line"]) for span in truth.get("evidence_spans", ())]
    return {number for first, last in spans for number in range(first, last + 1) if number <= len(lines)}


def _cidiff_marks(folder: Path, entry: dict[str, Any], lines: tuple[str, ...]) -> set[int]:
    found = set[int]()
    for path in sorted((folder / entry["id"]).glob("groundtruth*")):
        for first, last in re.findall(r"^E (\d+)(?:-(\d+))?", path.read_text(encoding="utf-8"), re.MULTILINE):
            found |= set(range(int(first), min(int(last or first), len(lines)) + 1))
    return found


def _treeherder_marks(folder: Path, entry: dict[str, Any], lines: tuple[str, ...]) -> set[int]:
    view = next(folder / name for name in entry["files"] if name.endswith(".logview.json"))
    marked = {item["line"].strip() for item in json.loads(view.read_text(encoding="utf-8"))["errors"]}
    stamp = re.compile(r"^\[[\w:]+ [\d:.TZ-]+\] ")
    return {number for number, line in enumerate(lines, 1) if stamp.sub("", line.rstrip("\r")).strip() in marked}


def _ci_log(folder: Path, entry: dict[str, Any]) -> Incident:
    logs = [name for name in entry["files"] if name.endswith((".log", ".log.gz"))]
    lines = tuple(_text(folder / next((name for name in logs if "fail" in Path(name).name), logs[0])).split("\n"))
    return _incident(entry, entry["category"] or "", lines, marked=telling_lines(folder, entry, lines))


def _event(folder: Path, entry: dict[str, Any]) -> Incident:
    fault = json.loads((folder / entry["id"] / "fault.json").read_text(encoding="utf-8"))
    error = fault["error"]
    for hole, name in PLACEHOLDERS.items():
        error = error.replace(hole, name)
    line = f"Warning {fault['event']} {fault['kind'].lower()}/{PLACEHOLDERS['{FAULT_POD}']} {error}"
    return _incident(entry, fault["event"], (line,))


def _microservices(folder: Path, entry: dict[str, Any]) -> Incident:
    """Logs of all pods, and what a monitor with two fixed thresholds writes while they were gathered.

    The thresholds are the same for every pod and every case: CPU use of 80 % of the limit, a 90th percentile of a
    server's latency of one second.
    """
    rows = [
        (row["time"], f"{row['time'][:23]}Z {row['pod']} {row['level']} {' '.join(row['message'].split())}")
        for row in _csv(folder / entry["id"] / "logs.csv.gz")
    ]
    first, last = rows[0][0][:16], rows[-1][0][:16]
    for row in _csv(folder / entry["id"] / "metrics.csv.gz"):
        at = row["Time"][:19].replace(" ", "T")
        if first <= at[:16] <= last:
            rows += [(at, f"{at}Z monitor WARN {words}") for words in _alerts(row)]
    rows.sort(key=lambda item: item[0])
    return _incident(entry, entry["category"], tuple(line for _, line in rows), entities=(entry["service"],))


def _alerts(row: dict[str, str]) -> Iterator[str]:
    cpu, latency = float(row["CpuUsageRate(%)"] or 0), float(row["PodServerLatencyP90(s)"] or 0)
    if cpu >= CPU_ALERT_PERCENT:
        yield f"pod {row['PodName']}: CPU use is {cpu:.0f} % of its limit"
    if latency >= LATENCY_ALERT_S:
        yield f"pod {row['PodName']}: 90th percentile of request latency is {latency:.1f} s"


def _incident(
    entry: dict[str, Any],
    kind: str,
    lines: tuple[str, ...],
    *,
    marked: frozenset[int] = frozenset(),
    entities: tuple[str, ...] = (),
) -> Incident:
    causes = MAPPING.get(entry["source"], {}).get(kind, ())
    return Incident(
        id=entry["id"],
        source=entry["source"],
        case=Case(service="", title="", lines=lines),
        truth=Truth(
            category=causes[0] if causes else "",
            accepted=causes[1:],
            entities=entities,
            lines=marked,
            cause=entry["label"],
            fault=kind,
        ),
    )


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")


def _csv(path: Path) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(_text(path), newline=""))


_READERS: dict[str, Callable[[Path, dict[str, Any]], Incident]] = {
    "k8s_faults": _event,
    "nezha_trainticket": _microservices,
}
_MARKS: dict[str, Callable[[Path, dict[str, Any], tuple[str, ...]], set[int]]] = {
    "logdx_ci": _logdx_marks,
    "cidiff": _cidiff_marks,
    "treeherder": _treeherder_marks,
    "pytorch_ci": lambda _folder, entry, _lines: {entry["match_line"]},
}
