"""Compile the C step on the machine that runs it, once, and load it.

The shared object is named by a hash of the sources, the compiler and the CPU's flags, so a changed file or another
machine compiles anew and nothing stale is loaded. It is written under a temporary name and renamed, so two processes
may race. What it is not: a package build; where there is no C compiler, the caller computes with PyTorch.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from midwatch.errors import ModelError

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-pthread")
MATH_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
NEEDED = frozenset({"avx2", "fma", "f16c"})
TIMEOUT_S = 300


def why_unavailable(kernel_dir: Path | None, *, compilers: Sequence[str] = COMPILERS) -> str | None:
    """Why the C step cannot be used on this machine, in one sentence; None if it can (it is compiled then)."""
    missing = NEEDED - cpu_flags()
    if missing:
        return f"the CPU has no {', '.join(sorted(missing)).upper()}."
    try:
        load(kernel_dir, compilers=compilers)
    except ModelError as error:
        return str(error)
    return None


@functools.cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU can do, in the words of Linux; empty where the system does not say."""
    try:
        for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:  # not Linux
        pass
    return frozenset()


def load(kernel_dir: Path | None, *, flags: Sequence[str] = (), compilers: Sequence[str] = COMPILERS) -> ctypes.CDLL:
    """The compiled step. `flags` are added to the compiler's, such as `-mno-avx512f`.

    None keeps it in a temporary folder for this process. Raises `ModelError` without a compiler, or if it fails.
    """
    return _load(kernel_dir, tuple(flags), tuple(compilers))


@functools.cache
def _load(kernel_dir: Path | None, flags: tuple[str, ...], compilers: tuple[str, ...]) -> ctypes.CDLL:
    compiler, identity = _find_compiler(compilers)
    folder = kernel_dir if kernel_dir is not None else _temporary_folder()
    name = f"step-{_fingerprint(identity, flags)}.so"
    if not (folder / name).is_file():
        _compile(compiler, flags, folder, name)
    try:
        return ctypes.CDLL(str(folder / name))
    except OSError as error:
        raise ModelError(f"The compiled C step cannot be loaded: {error}.", f"Remove {folder / name}.") from None


@functools.cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="midwatch-step-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _find_compiler(compilers: Sequence[str]) -> tuple[str, str]:
    """Path of a compiler that answers, and what it says of itself."""
    for name in compilers:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            continue
        return path, said.stdout
    raise ModelError(f"there is no C compiler ({', '.join(compilers)} were looked for).", "Install gcc or clang.")


def _fingerprint(identity: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    cpu = " ".join(sorted(cpu_flags()))
    digest.update("\0".join((identity, platform.machine(), cpu, *FLAGS, *MATH_FLAGS, *flags)).encode())
    return digest.hexdigest()[:20]


def _compile(compiler: str, flags: tuple[str, ...], folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix="step-", suffix=".part", dir=folder)
        os.close(handle)
    except OSError as error:
        raise ModelError(f"the compiled C step cannot be kept in {folder}: {error}.") from None
    command = [compiler, *FLAGS, *MATH_FLAGS, *flags, str(SOURCES / "step.c"), "-o", temporary, "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise ModelError(f"{compiler} could not compile the C step: {first.strip()}.")
        Path(temporary).replace(folder / name)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{compiler} did not compile the C step within {TIMEOUT_S} s.") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
