from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from midwatch.copilot.taxonomy import CATEGORIES
from midwatch.errors import FoundryError
from midwatch.evaluation import public, sets

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("Time", "PodName", "CpuUsageRate(%)", "PodServerLatencyP90(s)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Public data in small: one case of each shape, made here."""
    entries = [
        {
            "id": "logdx_ci/a",
            "source": "logdx_ci",
            "category": "lint_error",
            "label": "a file is not formatted",
            "files": ["logdx_ci/a/raw.log.gz"],
        },
        {
            "id": "pytorch_ci/b",
            "source": "pytorch_ci",
            "category": "something_new",
            "label": "?",
            "files": ["pytorch_ci/b.log"],
            "match_line": 2,
        },
        {
            "id": "cidiff/c",
            "source": "cidiff",
            "category": None,
            "label": "cannot find symbol",
            "files": ["cidiff/c/pass.log.gz", "cidiff/c/fail.log.gz"],
        },
        {
            "id": "treeherder/d",
            "source": "treeherder",
            "category": "test",
            "label": "a test fails",
            "files": ["treeherder/d.log.gz", "treeherder/d.logview.json"],
        },
        {"id": "k8s_faults/e", "source": "k8s_faults", "category": "x/OOMKilled", "label": "too little", "files": []},
        {
            "id": "nezha_trainticket/f",
            "source": "nezha_trainticket",
            "category": "cpu_contention",
            "label": "another process takes the CPU",
            "files": [],
            "service": "ts-food-service",
        },
    ]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")

    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    put("logdx_ci/a/raw.log.gz", "one\ntwo\nthree\nfour")
    signals = [
        {"importance": "critical", "evidence_lines": [[2, 3]]},
        {"importance": "minor", "evidence_lines": [[1, 1]]},
    ]
    put("logdx_ci/a/ground_truth.json", json.dumps({"required_signals": signals, "evidence_spans": []}))
    put("pytorch_ci/b.log", "fine\nnot fine")
    put("cidiff/c/pass.log.gz", "all passes")
    put("cidiff/c/fail.log.gz", "starts\nfails\nfails more")
    put("cidiff/c/groundtruth", "E 2-3\nC 1\n")
    put("cidiff/c/groundtruth2", "E 2\n")
    put(
        "treeherder/d.log.gz",
        "[task 2025-02-13T22:10:07.053Z] 22:10:07 INFO fine\n[task 2025-02-13T22:10:07.053Z] ERROR x\r",
    )
    put("treeherder/d.logview.json", json.dumps({"errors": [{"linenumber": 1, "line": "ERROR x"}]}))
    fault = {"event": "OOMKilled", "kind": "Pod", "error": "container={FAULT_CONTAINER} was killed"}
    put("k8s_faults/e/fault.json", json.dumps(fault))
    put(
        "nezha_trainticket/f/logs.csv.gz",
        _table(
            ("time", "pod", "level", "trace", "message"),
            ("2023-01-29T08:50:08.964574357Z", "ts-ui-1", "INFO", "t", "16:50 INFO fine"),
            ("2023-01-29T08:52:08.964574357Z", "ts-ui-1", "ERROR", "t", 'two\nlines, "quoted"'),
        ),
    )
    put("nezha_trainticket/f/metrics.csv.gz", _table(
        METRICS,
        ("2023-01-29 08:40:09.064 +0000 UTC m=+300", "ts-food-service-1", "99.0", "9.0"),
        ("2023-01-29 08:51:09.064 +0000 UTC m=+300", "ts-food-service-1", "97.4", "NaN"),
        ("2023-01-29 08:51:10.064 +0000 UTC m=+300", "ts-ui-1", "3.0", "2.35"),
    ))  # fmt: skip
    return tmp_path


def _table(*rows: tuple[str, ...]) -> str:
    import io

    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def test_a_sources_own_word_becomes_our_category(folder: Path) -> None:
    (case,) = public.read(folder, "logdx_ci")
    assert case.truth.category == "ci_build_dependency"
    assert case.truth.lines == {2, 3}
    assert case.case.lines == ("one", "two", "three", "four")
    assert case.truth.cause == "a file is not formatted"


def test_a_word_that_fits_none_leaves_the_cause_unlabelled(folder: Path) -> None:
    (case,) = public.read(folder, "pytorch_ci")
    assert case.truth.category == ""
    assert case.truth.lines == {2}


def test_the_failing_log_is_read_and_both_annotators_count(folder: Path) -> None:
    (case,) = public.read(folder, "cidiff")
    assert case.case.lines[0] == "starts"
    assert case.truth.lines == {2, 3}


def test_marked_lines_are_found_by_their_text(folder: Path) -> None:
    (case,) = public.read(folder, "treeherder")
    assert case.truth.lines == {2}


def test_holes_in_an_event_are_filled(folder: Path) -> None:
    (case,) = public.read(folder, "k8s_faults")
    assert case.case.lines == ("Warning OOMKilled pod/web-7d9c5b6f4-x2k8p container=web was killed",)
    assert case.truth.category == "oom_memory"


def test_a_monitor_speaks_of_any_pod_and_only_while_the_logs_were_gathered(folder: Path) -> None:
    (case,) = public.read(folder, "nezha_trainticket")
    assert case.case.lines == (
        "2023-01-29T08:50:08.964Z ts-ui-1 INFO 16:50 INFO fine",
        "2023-01-29T08:51:09Z monitor WARN pod ts-food-service-1: CPU use is 97 % of its limit",
        "2023-01-29T08:51:10Z monitor WARN pod ts-ui-1: 90th percentile of request latency is 2.4 s",
        '2023-01-29T08:52:08.964Z ts-ui-1 ERROR two lines, "quoted"',
    )
    assert case.truth.entities == ("ts-food-service",)


def test_a_folder_without_an_index_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(FoundryError, match="MIDWATCH_DATA"):
        list(public.read(tmp_path, "logdx_ci"))


def test_every_mapped_word_names_a_category_of_ours() -> None:
    for words in public.MAPPING.values():
        for causes in words.values():
            assert causes
            assert set(causes) <= set(CATEGORIES)
            assert len(set(causes)) == len(causes)


def test_a_set_by_name_gathers_every_source(folder: Path) -> None:
    data = folder.parent / "shared"
    data.mkdir()
    (data / "incidents").symlink_to(folder)
    assert [item.source for item in sets.load("incidents", data=data)] == list(public.SOURCES)
    assert len(list(sets.load("incidents", data=data, count=2))) == 2
    assert [item.id for item in sets.load("k8s_faults", data=data)] == ["k8s_faults/e"]


def test_a_name_that_is_no_set_lists_the_sets() -> None:
    with pytest.raises(FoundryError, match="foundry-programs"):
        sets.load("nonsense")


def test_a_file_of_incidents_is_a_set(tmp_path: Path) -> None:
    from verdict_kit import incident

    from midwatch.foundry.incident import write

    path = tmp_path / "some.jsonl.gz"
    write(path, [incident("a", "x", true=(1,)), incident("b", "y")])
    assert [item.id for item in sets.load(str(path), count=1)] == ["a"]


def test_the_demos_recordings_are_labelled_and_have_their_alerts() -> None:
    found = list(sets.load("demo", demo=ROOT / sets.DEMO))
    assert len(found) == 12
    assert all(item.truth.category and item.truth.lines and item.case.service for item in found)
    assert any(item.case.title == "WorkerRestarting" for item in found)
    assert next(item for item in found if item.id == "demo/nginx-dead-upstream").truth.right("network_connectivity")


def test_the_real_public_data_is_read_whole() -> None:
    data = Path(os.environ.get("MIDWATCH_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "incidents" / "index.jsonl").is_file():
        pytest.skip(f"no public incidents at {data}; set MIDWATCH_DATA to the folder that holds incidents/")
    for source in ("logdx_ci", "pytorch_ci", "k8s_faults"):
        for item in public.read(data / "incidents", source):
            assert item.case.lines
            assert all(1 <= number <= len(item.case.lines) for number in item.truth.lines), item.id
