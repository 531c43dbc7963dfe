"""Build jobs of Python projects: pytest and unittest, pip, ruff and mypy, run for real in a small project."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import importlib.util
import random
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from midwatch.errors import FoundryError
from midwatch.foundry.place import Place
from midwatch.foundry.props import dependency, private
from midwatch.foundry.stage import Told, staged
from midwatch.foundry.workshop import Change, Workshop, workshop

FAILURES = (
    Change(file="src/pricing.py", before="total * percent / 100", after="total * percent / 1000", error="AssertionError|assert "),
    Change(file="src/pricing.py", before="if total >= 50", after="if total > 50", error="assert "),
    Change(file="src/pricing.py", before='COUPONS.get(coupon, 0)', after="COUPONS[coupon]", error="KeyError"),
    Change(file="src/pricing.py", before='order.get("status", "open")', after='order.get("status")', error="assert "),
    Change(file="src/pricing.py", before='"lines": len(order["lines"]),', after='"items": len(order["lines"]),', error="assert "),
    Change(file="src/pricing.py", before='"currency": "EUR",', after='"currency": "USD",', error="assert "),
    Change(file="src/pricing.py", before='str(order_total(order))', after='order_total(order)', error="assert "),
    Change(file="src/orders.py", before="self._next = 1", after="self._next = 0", error="assert "),
    Change(file="src/orders.py", before='["status"] = "closed"', after='["state"] = "closed"', error="assert "),
    Change(file="src/orders.py", before="raise OrderNotFound(order_id) from None", after="return None", error="DID NOT RAISE"),
    Change(file="src/orders.py", before="dict(order, id=self._next)", after="dict(id=self._next)", error="KeyError"),
    Change(file="src/client.py", before="times\" % attempts)", after="times\" % (attempts + 1))", error="Regex|3 times"),
    Change(file="src/client.py", before="except ConnectionError", after="except TimeoutError", error="ConnectionError"),
    Change(file="src/client.py", before="        done.put(job)", after="        if job % 7:\n            done.put(job)", error="assert "),
    Change(file="src/client.py", before="        done.put(job)", after="        done.put(str(job))", error="assert "),
    Change(file="tests/conftest.py", before="def store():", after="def shelf():", error="fixture '"),
)  # fmt: skip
_FAILED = (
    r"^E +(assert |AssertionError|Failed: |fixture '|([\w.]+)?(Error|Exception|Warning|NotFound|Down)\b)",
    r"^(FAILED|ERROR) \S+::",
)
"""The lines of pytest that say what failed and why; what differs in detail follows them."""


def _tool(name: str) -> list[str]:
    """How a tool of this Python is run. Raises `FoundryError` where it is not installed."""
    if importlib.util.find_spec(name) is None:
        raise FoundryError(
            f"{name} is not installed beside this Python.", "Install the dev extra, or leave its faults out."
        )
    return [sys.executable, "-B", "-m", name]


def _project(place: Place, rng: random.Random) -> Workshop:
    made = workshop(place, rng, "python")
    made.hide.update({str(Path(sys.prefix)): "/opt/venv", str(Path(sys.base_prefix).resolve()): "/usr/local"})
    return made


def _pytest(rng: random.Random) -> list[str]:
    style = rng.choice((("-q",), ("-v",), ("-q", "--tb=short"), ("-ra",), ("-v", "--tb=short"), ("-q", "-x")))
    quiet = ("-p", "no:asyncio", "-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:cacheprovider")
    return [*_tool("pytest"), *quiet, "--color=no", *style]


def _failed_test(made: Workshop) -> str:
    """The name of the first test that the summary names as failed."""
    for line in made.place.lines():
        for word in ("FAILED ", "ERROR "):
            if line.text.startswith(word) and "::" in line.text:
                return line.text.removeprefix(word).split(" ")[0]
    return ""


def test_failure(place: Place, rng: random.Random) -> Told:
    """A change makes some tests fail."""
    made = _project(place, rng)
    made.change(rng.choice(FAILURES))
    made.run(*_pytest(rng))
    return made.told("a test failed after a change of the code", _FAILED, entity=_failed_test(made))


def slow_test(place: Place, rng: random.Random) -> Told:
    """A test that waits for something which does not come in time."""
    made = _project(place, rng)
    if rng.random() < 0.5:
        change = Change(
            file="src/client.py", before="        if job is None:", after="        if job is False:", error=""
        )
        method = rng.choice(("thread", "signal"))
        options = ("-p", "timeout", "--timeout=1", f"--timeout-method={method}")
        made.change(change)
        made.change(
            Change(file="tests/test_client.py", before="thread.join(timeout=5)", after="thread.join()", error="")
        )
        _tool("pytest_timeout")
        made.run(*_pytest(rng), *options, timeout_s=20)
        truth = [r"Timeout [(>]", r"Failed: Timeout", r"\+{5,} Timeout", r"^(FAILED|ERROR) \S+::", r"^E  "]
    else:
        made.change(
            Change(
                file="src/client.py",
                before="        done.put(job)",
                after="        time.sleep(0.03)\n        done.put(job)",
                error="",
            )
        )
        made.change(Change(file="src/client.py", before="import queue", after="import queue\nimport time", error=""))
        made.change(Change(file="tests/test_client.py", before="timeout=5", after="timeout=0.2", error=""))
        made.run(*_pytest(rng))
        truth = list(_FAILED)
    return made.told("a test did not end in time", truth, entity=_failed_test(made))


def unittest_failure(place: Place, rng: random.Random) -> Told:
    """The same with unittest."""
    made = _project(place, rng)
    made.change(FAILURES[rng.choice((0, 2, 3, 4, 5, 6))])
    made.run(sys.executable, "-B", "-m", "unittest", *rng.choice(((), ("-v",))), "tests.test_legacy")
    return made.told(
        "a test failed after a change of the code",
        [r"^(AssertionError|KeyError|TypeError)\b", r"^(FAIL|ERROR): "],
    )


def doctest_failure(place: Place, rng: random.Random) -> Told:
    """An example in a docstring is no longer true."""
    made = _project(place, rng)
    made.change(
        Change(
            file="src/pricing.py",
            before="    Decimal('5.00')",
            after=rng.choice(("    Decimal('5.0')", "    5.00", "    Decimal('4.00')")),
            error="",
        )
    )
    made.run(*_pytest(rng), "--doctest-modules", "src")
    truth = [r"^Expected:", r"^Got:", r"^    (Decimal\('|5\.00)", r"^(FAILED|ERROR) \S+::"]
    return made.told("an example in a docstring does not hold", truth, entity=_failed_test(made))


def warning_as_error(place: Place, rng: random.Random) -> Told:
    """Warnings are errors here, and the code gives one."""
    made = _project(place, rng)
    old = 'warnings.warn("line_total is deprecated, use price_of", DeprecationWarning, stacklevel=2)\n    '
    made.change(
        Change(
            file="src/pricing.py",
            before='    return Decimal(line["price"])',
            after=f'    {old}return Decimal(line["price"])',
            error="",
        )
    )
    made.change(Change(file="src/pricing.py", before="from decimal", after="import warnings\nfrom decimal", error=""))
    made.run(*_pytest(rng), "-W", "error")
    return made.told("a test failed, because a warning counts as an error", _FAILED, entity=_failed_test(made))


def missing_module(place: Place, rng: random.Random) -> Told:
    """Tests cannot be collected, because a module is not installed, or cannot be parsed."""
    made = _project(place, rng)
    module = rng.choice(("sqlmodel", "structlog", "boto3", "fastapi_users", "celery", "redis"))
    line, error = rng.choice(
        (
            (f"import {module}", f"No module named '{module}'"),
            (f"from {module} import Client", f"No module named '{module}'"),
            ("from pricing import net_total", "cannot import name 'net_total'"),
            ("def broken(:", "SyntaxError: |invalid syntax"),
        )
    )
    made.change(
        Change(file="src/orders.py", before="import threading\n", after=f"import threading\n\n{line}\n", error="")
    )
    made.run(*_pytest(rng))
    truth = [error, r"^ERROR \S+"]
    return made.told(
        "tests could not be collected", truth, accepted=("ci_test_failure",), entity=module if module in error else ""
    )


def _wheel(folder: Path, name: str, version: str, *requires: str, python: str = "") -> None:
    """A minimal package that pip can resolve."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    if python:
        lines.append(f"Requires-Python: {python}")
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: made\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def _pip(made: Workshop, *arguments: str) -> None:
    made.run(
        *_tool("pip"), "install", "--isolated", "--disable-pip-version-check", "--no-color", "--root-user-action=ignore",
        "--target", str(made.place.folder / "site"), "--no-cache-dir", "--progress-bar=off", *arguments,
    )  # fmt: skip


def _shelf(made: Workshop) -> tuple[Path, list[str]]:
    """A folder of wheels, and the names of the packages in it."""
    shelf = made.folder / "wheels"
    stem = made.rng.choice(("acme", "initech", "northwind", "umbra"))
    names = [f"{stem}-{part}" for part in made.rng.sample(("core", "http", "events", "storage", "auth", "metrics"), 4)]
    _wheel(shelf, names[0], "1.4.0")
    _wheel(shelf, names[0], "2.0.1")
    _wheel(shelf, names[1], "3.1.0", f"{names[0]}<2")
    _wheel(shelf, names[2], "0.9.2", f"{names[0]}>=2")
    return shelf, names


def unknown_package(place: Place, rng: random.Random) -> Told:
    """A requirement that the index does not have, in this version or at all."""
    made = _project(place, rng)
    shelf, names = _shelf(made)
    wanted = rng.choice((f"{names[3]}==1.2.0", f"{names[1]}==9.9", f"{names[3]}>=2,<3", f"{names[1]}~=4.0"))
    made.place.write("project/requirements.txt", f"{wanted}\n{names[2]}\n")
    _pip(made, "--no-index", "--find-links", str(shelf), "-r", "requirements.txt")
    truth = [r"Could not find a version that satisfies", r"No matching distribution found"]
    package = wanted.split("=")[0].rstrip("<>~")
    return made.told(f"pip cannot find {wanted}", truth, entity=package, names={package: "pkg"})


def conflicting_packages(place: Place, rng: random.Random) -> Told:
    """Two requirements that cannot both be met."""
    made = _project(place, rng)
    shelf, names = _shelf(made)
    pins = rng.choice(((names[1], names[2]), (names[1], f"{names[0]}==2.0.1"), (names[2], f"{names[0]}<2")))
    made.place.write("project/requirements.txt", "\n".join(pins) + "\n")
    _pip(made, "--no-index", "--find-links", str(shelf), "-r", "requirements.txt")
    truth = [
        r"^ERROR: (Cannot install|ResolutionImpossible)",
        r"conflicting dependencies",
        r"^    \S+ .*depends on",
        r"^    The user requested",
    ]
    return made.told(
        "pip cannot resolve the requirements", truth, entity=names[0], names=dict.fromkeys(names[:3], "pkg")
    )


def unfit_python(place: Place, rng: random.Random) -> Told:
    """A package that asks for another Python, a hash that differs, or a file of requirements that is not there."""
    made = _project(place, rng)
    shelf, names = _shelf(made)
    kind = rng.choice(("python", "hash", "file", "syntax"))
    if kind == "python":
        _wheel(shelf, names[3], "5.0.0", python=rng.choice((">=3.15", "<3.8", ">=4")))
        _pip(made, "--no-index", "--find-links", str(shelf), names[3])
        truth = [
            r"requires a different Python|Requires-Python",
            r"Could not find a version",
            r"No matching distribution",
        ]
    elif kind == "hash":
        digest = "".join(rng.choice("0123456789abcdef") for _ in range(64))
        made.place.write("project/requirements.txt", f"{names[0]}==1.4.0 --hash=sha256:{digest}\n")
        _pip(made, "--no-index", "--find-links", str(shelf), "--require-hashes", "-r", "requirements.txt")
        truth = [r"DO NOT MATCH THE HASHES", r"Expected sha256", r"Got  "]
    elif kind == "file":
        _pip(made, "-r", rng.choice(("requirements-dev.txt", "requirements/ci.txt", "constraints.txt")))
        truth = [r"Could not open requirements file"]
    else:
        made.place.write("project/requirements.txt", f"{names[0]}\n{names[1]} = 3.1\n")
        _pip(made, "--no-index", "-r", "requirements.txt")
        truth = [r"Invalid requirement", r"Hint: |Expected "]
    return made.told("pip refuses what it was asked to install", truth, entity=names[3] if kind == "python" else "")


def index_away(place: Place, rng: random.Random) -> Told:
    """The package index cannot be reached, or answers with errors."""
    made = _project(place, rng)
    manner = rng.choice(("refused", "status", "name"))
    index = f"https://pypi.{rng.choice(('internal', 'corp.example', 'ci.svc'))}/simple"
    package = rng.choice(("requests", "flask", "sqlalchemy", "pydantic"))
    with dependency() as served:
        served.manner, served.status, served.reason = "status", rng.choice((500, 503, 404)), "Error"
        port = place.free_port() if manner == "refused" else served.port
        used = index if manner == "name" else f"http://localhost:{port}/simple"
        made.hide[f"http://localhost:{port}/simple"] = index
        made.hide[f"host='localhost', port={port}"] = f"host='{index.split('/')[2]}', port=443"
        _pip(made, "--index-url", used, "--retries", rng.choice(("1", "2")), "--timeout", "2", package)
    truth = [
        r"WARNING: Retrying",
        r"Could not find a version",
        r"No matching distribution",
        r"HTTP error|Could not fetch",
    ]
    accepted = (
        ("dns_resolution", "network_connectivity")
        if manner == "name"
        else ("network_connectivity", "dependency_failure")
    )
    return made.told("the package index cannot be used", truth, entity=package, accepted=accepted)


LINTS = (
    ("import os\nimport json\n\n", ("F401",)),
    ("def unused():\n    value = 3\n    return undefined_name\n\n", ("F821", "F841")),
    ("def twice(items=[]):\n    return items == None\n\n", ("E711", "B006")),
    ("try:\n    import simplejson\nexcept:\n    pass\n\n", ("E722", "F401")),
    ("l = lambda x: x\n\n", ("E731", "E741")),
    ("print('%s' % ('a', 'b'))\n\n", ("F507",)),
)


def lint_gate(place: Place, rng: random.Random) -> Told:
    """The linter finds something, or files are not formatted."""
    made = _project(place, rng)
    file = made.folder / made.render(rng.choice(("src/pricing.py", "src/orders.py", "src/client.py")))
    text, rules = rng.choice(LINTS)
    file.write_text(file.read_text() + "\n\n" + text)
    made.write("ruff.toml", 'line-length = 140\n[lint]\nselect = ["E", "F", "B"]\n')
    if rng.random() < 0.35:
        made.run(*_tool("ruff"), "format", *rng.choice((("--check",), ("--diff",))), "src", "tests")
        return made.told("files are not formatted", [r"(?i)would (be )?reformat"])
    style = rng.choice(("full", "concise", "github"))
    made.run(*_tool("ruff"), "check", "--no-cache", "--output-format", style, "src", "tests")
    truth = [rf"\b({'|'.join(rules)}|invalid-syntax)\b", r"^Found \d+ errors?"]
    return made.told("the linter found errors", truth, entity=file.name)


TYPES = (
    ("def count(text: str) -> int:\n    return text.strip()\n", r"Incompatible return value type"),
    ("def first(rows: list[int]) -> str:\n    return rows[0].upper()\n", r'"int" has no attribute "upper"'),
    (
        "def twice(number: int) -> int:\n    return number * 2\n\n\ntwice('4')\n",
        r'Argument 1 to "twice" has incompatible type',
    ),
    (
        "from typing import Optional\n\n\ndef size(text: Optional[str]) -> int:\n    return len(text)\n",
        r'incompatible type "(str \| None|Optional\[str\])"',
    ),
    ("def total(a: int, b: int) -> int:\n    return a + b\n\n\ntotal(1)\n", r"Missing positional argument"),
    ("import yamlish\n", r"Cannot find implementation or library stub"),
    ("def f(x: int) -> int:\n    if x > 1:\n        return x\n", r"Missing return statement"),
)


def type_gate(place: Place, rng: random.Random) -> Told:
    """The type checker finds something."""
    made = _project(place, rng)
    text, error = rng.choice(TYPES)
    name = rng.choice(("src/totals.py", "src/helpers.py", "src/order_types.py"))
    made.write(name, text)
    strict = rng.choice(((), ("--strict",), ("--pretty",)))
    made.run(
        *_tool("mypy"), "--no-color-output", "--no-incremental", "--cache-dir=/dev/null", *strict, made.render(name)
    )
    return made.told(
        "the type checker found errors",
        [error, r": error: ", r"^Found \d+ errors?"],
        entity=Path(made.render(name)).name,
    )


TOOLS = (
    "terraform",
    "poetry",
    "kubectl",
    "helm",
    "yarn",
    "pnpm",
    "docker-compose",
    "gradle",
    "protoc",
    "golangci-lint",
)


def missing_tool(place: Place, rng: random.Random) -> Told:
    """A step calls a tool that the runner does not have."""
    made = _project(place, rng)
    tool = rng.choice(TOOLS)
    command = f"{tool} {rng.choice(('--version', 'install', 'build', 'lint', 'run check'))}"
    script = made.write("ci.sh", f"set -e\necho 'running checks for {made.name}'\nls src\n{command}\necho done\n")
    (place.folder / "bin").mkdir()
    for known in ("bash", "sh", "ls"):  # nothing else is on this runner
        (place.folder / "bin" / known).symlink_to(shutil.which(known) or known)
    shell = rng.choice((("bash", "-e"), ("sh", "-e"), ("bash", "-ex")))
    made.run(*shell, script.name, env={"PATH": str(place.folder / "bin")})
    return made.told(f"{tool} is not on the runner", [r"not found$"], entity=tool, accepted=("code_defect_crash",))


def runner_full(place: Place, rng: random.Random) -> Told:
    """The disk of the runner is full."""
    made = _project(place, rng)
    (place.folder / "site").mkdir()
    mount = f"-t tmpfs -o size={rng.choice((200, 400))}k tmpfs {place.folder}/site"
    shelf, names = _shelf(made)
    with zipfile.ZipFile(shelf / f"{names[0].replace('-', '_')}-1.4.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr(f"{names[0].replace('-', '_')}/data.bin", rng.randbytes(700_000))
    kind = rng.choice(("pip", "tar", "pytest"))
    if kind == "pip":
        arguments = [
            *_tool("pip"),
            "install",
            "--isolated",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
            "--no-index",
        ]
        command = [
            *arguments,
            "--no-cache-dir",
            "--find-links",
            str(shelf),
            "--target",
            str(place.folder / "site"),
            f"{names[0]}==1.4.0",
        ]
        made.run(*private(command, mount), env={"TMPDIR": str(place.folder / "site")})
    elif kind == "tar":
        made.run(*private(["tar", "-cvf", f"{place.folder}/site/cache.tar", "."], mount))
    else:
        made.write(
            "tests/test_export.py",
            "def test_export(tmp_path):\n    (tmp_path / 'rows.bin').write_bytes(b'x' * 900_000)\n",
        )
        made.run(*private([*_pytest(rng), f"--basetemp={place.folder}/site/tmp"], mount))
    return made.told("the disk of the runner is full", [r"No space left on device"], accepted=("disk_storage_full",))


def passing(place: Place, rng: random.Random) -> Told:
    """All tests pass; some of them print errors, because errors are what they test."""
    made = _project(place, rng)
    made.run(
        *_pytest(rng),
        *rng.choice(((), ("-o", "log_cli=true"), ("-o", "log_cli=true", "-o", "log_cli_level=INFO"), ("-rA",))),
    )
    return made.told("", [], failed=False)


def installed(place: Place, rng: random.Random) -> Told:
    """Packages are installed, the linter and the type checker have nothing to say."""
    made = _project(place, rng)
    shelf, names = _shelf(made)
    _pip(made, "--no-index", "--find-links", str(shelf), names[1], "-v" if rng.random() < 0.3 else "--no-input")
    made.run(*_tool("ruff"), "check", "--no-cache", "src", "tests")
    return made.told("", [], failed=False)


_TESTS = (test_failure, slow_test, unittest_failure, doctest_failure, warning_as_error)
_PACKAGES = (unknown_package, conflicting_packages, unfit_python, index_away)
_GATES: tuple[tuple[str, Callable[[Place, random.Random], Told], tuple[str, ...]], ...] = (
    ("pytest", missing_module, ()),
    ("ruff", lint_gate, ()),
    ("mypy", type_gate, ()),
    ("bash", missing_tool, ("bash",)),
    ("pip", runner_full, ("unshare",)),
)
FAULTS = (
    *(staged("pytest", "ci_test_failure", (), body) for body in _TESTS),
    *(staged("pip", "ci_build_dependency", (), body) for body in _PACKAGES),
    *(staged(program, "ci_build_dependency", needs, body) for program, body, needs in _GATES),
    staged("pytest", "", (), passing, kind="healthy"),
    staged("pip", "", (), installed, kind="healthy"),
)
