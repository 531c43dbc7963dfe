"""The C step is compiled once per machine and source, and a machine that cannot says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batches import all_logits
from cpu_models import FAMILIES, Make, RandomCheckpoint, relative_error, text

from midwatch.engine.cpu import build
from midwatch.errors import ModelError

QUICK = "-O1"  # the same arithmetic, compiled in a third of the time
FLAGS = {"avx2": ("-mno-avx512f", QUICK), "portable": ("-mno-avx512f", "-mno-avx2", QUICK)}


@pytest.fixture(scope="module", params=FLAGS)
def other(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("family", ["llama", "gemma3", "odd widths"])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_other_instruction_sets_agree_up_to_rounding(make: Make, other: str, family: str, kind: str) -> None:
    config = FAMILIES[family]
    checkpoint = RandomCheckpoint(config, kind, embedding="Q8_0")
    ids = text(37, config)
    for kv_dtype in ("bfloat16", "int8"):
        backend = make.native(config, checkpoint, flags=FLAGS[other], kv_dtype=kv_dtype)
        assert backend.isa == other
        mine = all_logits(make.native(config, checkpoint, kv_dtype=kv_dtype), ids)
        theirs = all_logits(backend, ids)
        # A rounding may move an activation to the next of 255 steps, so the last bit is not what is asked for.
        assert relative_error(theirs, mine) < 0.01
        assert torch.equal(all_logits(backend, ids, chunk=6, first_block=3), theirs)


def test_without_a_compiler_a_reason_is_given(tmp_path: Path) -> None:
    reason = build.why_unavailable(tmp_path, compilers=("no-such-compiler",))
    assert reason is not None and "no C compiler (no-such-compiler" in reason


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, make: Make) -> None:
    with pytest.raises(ModelError, match="could not compile the C step"):
        build.load(tmp_path, flags=("-DINLINE=nonsense", "-include", "no-such-header.h"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reason = build.why_unavailable(tmp_path / "file")
    assert reason is not None and "cannot be kept in" in reason


def test_a_cpu_without_avx2_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"sse2", "fma"}))
    assert build.why_unavailable(tmp_path) == "the CPU has no AVX2, F16C."


def test_flags_of_the_cpu_are_read_where_the_system_says_them(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n")
    assert build.cpu_flags(cpuinfo) == {"fpu", "avx2", "fma"}
    assert build.cpu_flags(tmp_path / "absent") == frozenset()


def test_two_processes_may_compile_at_once_and_a_third_compiles_nothing(tmp_path: Path, make: Make) -> None:
    code = (
        "import sys; from pathlib import Path; from midwatch.engine.cpu import build;"
        f"print(build.load(Path({str(tmp_path)!r}), flags=('-O0', '-mno-avx512f', '-mno-avx2')).mw_isa)"
    )
    racing = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in racing] == [0, 0]
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [written]


def test_without_a_folder_the_step_is_kept_as_long_as_the_process(make: Make) -> None:
    code = (
        "from midwatch.engine.cpu import build; build.load(None, flags=('-O0', '-mno-avx512f', '-mno-avx2'));"
        "print(build._temporary_folder())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("midwatch-step-") and not folder.exists()
    assert done.stderr == ""
