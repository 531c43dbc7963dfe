"""What else a build job of a Python project runs: pip, ruff, mypy, and tools that may not be there."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

from midwatch.foundry.faults.ci_python import project, pytest_command, tool
from midwatch.foundry.place import Place
from midwatch.foundry.props import dependency, private
from midwatch.foundry.stage import Told, staged
from midwatch.foundry.workshop import Workshop


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
        *tool("pip"), "install", "--isolated", "--disable-pip-version-check", "--no-color", "--root-user-action=ignore",
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
    made = project(place, rng)
    shelf, names = _shelf(made)
    wanted = rng.choice((f"{names[3]}==1.2.0", f"{names[1]}==9.9", f"{names[3]}>=2,<3", f"{names[1]}~=4.0"))
    made.place.write("project/requirements.txt", f"{wanted}\n{names[2]}\n")
    _pip(made, "--no-index", "--find-links", str(shelf), "-r", "requirements.txt")
    truth = [r"Could not find a version that satisfies", r"No matching distribution found"]
    package = wanted.split("=")[0].rstrip("<>~")
    return made.told(f"pip cannot find {wanted}", truth, entity=package, names={package: "pkg"})


def conflicting_packages(place: Place, rng: random.Random) -> Told:
    """Two requirements that cannot both be met."""
    made = project(place, rng)
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
    made = project(place, rng)
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
    made = project(place, rng)
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
    made = project(place, rng)
    file = made.folder / made.render(rng.choice(("src/pricing.py", "src/orders.py", "src/client.py")))
    text, rules = rng.choice(LINTS)
    file.write_text(file.read_text() + "\n\n" + text)
    made.write("ruff.toml", 'line-length = 140\n[lint]\nselect = ["E", "F", "B"]\n')
    if rng.random() < 0.35:
        made.run(*tool("ruff"), "format", *rng.choice((("--check",), ("--diff",))), "src", "tests")
        return made.told("files are not formatted", [r"(?i)would (be )?reformat"])
    style = rng.choice(("full", "concise", "github"))
    made.run(*tool("ruff"), "check", "--no-cache", "--output-format", style, "src", "tests")
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
    made = project(place, rng)
    text, error = rng.choice(TYPES)
    name = rng.choice(("src/totals.py", "src/helpers.py", "src/order_types.py"))
    made.write(name, text)
    strict = rng.choice(((), ("--strict",), ("--pretty",)))
    made.run(
        *tool("mypy"), "--no-color-output", "--no-incremental", "--cache-dir=/dev/null", *strict, made.render(name)
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
    made = project(place, rng)
    missing = rng.choice(TOOLS)
    command = f"{missing} {rng.choice(('--version', 'install', 'build', 'lint', 'run check'))}"
    script = made.write("ci.sh", f"set -e\necho 'running checks for {made.name}'\nls src\n{command}\necho done\n")
    (place.folder / "bin").mkdir()
    for known in ("bash", "sh", "ls"):  # nothing else is on this runner
        (place.folder / "bin" / known).symlink_to(shutil.which(known) or known)
    shell = rng.choice((("bash", "-e"), ("sh", "-e"), ("bash", "-ex")))
    made.run(*shell, script.name, env={"PATH": str(place.folder / "bin")})
    return made.told(
        f"{missing} is not on the runner", [r"not found$"], entity=missing, accepted=("code_defect_crash",)
    )


def runner_full(place: Place, rng: random.Random) -> Told:
    """The disk of the runner is full."""
    made = project(place, rng)
    (place.folder / "site").mkdir()
    mount = f"-t tmpfs -o size={rng.choice((200, 400))}k tmpfs {place.folder}/site"
    shelf, names = _shelf(made)
    with zipfile.ZipFile(shelf / f"{names[0].replace('-', '_')}-1.4.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr(f"{names[0].replace('-', '_')}/data.bin", rng.randbytes(700_000))
    kind = rng.choice(("pip", "tar", "pytest"))
    if kind == "pip":
        arguments = [
            *tool("pip"),
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
        made.run(*private([*pytest_command(rng), f"--basetemp={place.folder}/site/tmp"], mount))
    return made.told("the disk of the runner is full", [r"No space left on device"], accepted=("disk_storage_full",))


def installed(place: Place, rng: random.Random) -> Told:
    """Packages are installed, the linter and the type checker have nothing to say."""
    made = project(place, rng)
    shelf, names = _shelf(made)
    _pip(made, "--no-index", "--find-links", str(shelf), names[1], "-v" if rng.random() < 0.3 else "--no-input")
    made.run(*tool("ruff"), "check", "--no-cache", "src", "tests")
    return made.told("", [], failed=False)


FAULTS = (
    *(
        staged("pip", "ci_build_dependency", (), one)
        for one in (unknown_package, conflicting_packages, unfit_python, index_away)
    ),
    staged("pip", "ci_build_dependency", ("unshare",), runner_full),
    staged("ruff", "ci_build_dependency", (), lint_gate),
    staged("mypy", "ci_build_dependency", (), type_gate),
    staged("bash", "ci_build_dependency", ("bash",), missing_tool),
    staged("pip", "", (), installed, kind="healthy"),
)
