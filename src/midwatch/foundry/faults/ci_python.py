"""Build jobs of Python projects: pytest, unittest and doctest, run for real in a small project."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

from midwatch.errors import FoundryError
from midwatch.foundry.place import Place
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


def tool(name: str) -> list[str]:
    """How a tool of this Python is run. Raises `FoundryError` where it is not installed."""
    if importlib.util.find_spec(name) is None:
        raise FoundryError(
            f"{name} is not installed beside this Python.", "Install the dev extra, or leave its faults out."
        )
    return [sys.executable, "-B", "-m", name]


def project(place: Place, rng: random.Random) -> Workshop:
    """A small Python project in a place."""
    made = workshop(place, rng, "python")
    made.hide.update({str(Path(sys.prefix)): "/opt/venv", str(Path(sys.base_prefix).resolve()): "/usr/local"})
    return made


def pytest_command(rng: random.Random) -> list[str]:
    """How pytest is run: its verbosity is drawn."""
    style = rng.choice((("-q",), ("-v",), ("-q", "--tb=short"), ("-ra",), ("-v", "--tb=short"), ("-q", "-x")))
    quiet = ("-p", "no:asyncio", "-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:cacheprovider")
    return [*tool("pytest"), *quiet, "--color=no", *style]


def _failed_test(made: Workshop) -> str:
    """The name of the first test that the summary names as failed."""
    for line in made.place.lines():
        for word in ("FAILED ", "ERROR "):
            if line.text.startswith(word) and "::" in line.text:
                return line.text.removeprefix(word).split(" ")[0]
    return ""


def test_failure(place: Place, rng: random.Random) -> Told:
    """A change makes some tests fail."""
    made = project(place, rng)
    made.change(rng.choice(FAILURES))
    made.run(*pytest_command(rng))
    return made.told("a test failed after a change of the code", _FAILED, entity=_failed_test(made))


def slow_test(place: Place, rng: random.Random) -> Told:
    """A test that waits for something which does not come in time."""
    made = project(place, rng)
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
        tool("pytest_timeout")
        made.run(*pytest_command(rng), *options, timeout_s=20)
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
        made.run(*pytest_command(rng))
        truth = list(_FAILED)
    return made.told("a test did not end in time", truth, entity=_failed_test(made))


def unittest_failure(place: Place, rng: random.Random) -> Told:
    """The same with unittest."""
    made = project(place, rng)
    made.change(FAILURES[rng.choice((0, 2, 3, 4, 5, 6))])
    made.run(sys.executable, "-B", "-m", "unittest", *rng.choice(((), ("-v",))), "tests.test_legacy")
    return made.told(
        "a test failed after a change of the code",
        [r"^(AssertionError|KeyError|TypeError)\b", r"^(FAIL|ERROR): "],
    )


def doctest_failure(place: Place, rng: random.Random) -> Told:
    """An example in a docstring is no longer true."""
    made = project(place, rng)
    made.change(
        Change(
            file="src/pricing.py",
            before="    Decimal('5.00')",
            after=rng.choice(("    Decimal('5.0')", "    5.00", "    Decimal('4.00')")),
            error="",
        )
    )
    made.run(*pytest_command(rng), "--doctest-modules", "src")
    truth = [r"^Expected:", r"^Got:", r"^    (Decimal\('|5\.00)", r"^(FAILED|ERROR) \S+::"]
    return made.told("an example in a docstring does not hold", truth, entity=_failed_test(made))


def warning_as_error(place: Place, rng: random.Random) -> Told:
    """Warnings are errors here, and the code gives one."""
    made = project(place, rng)
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
    made.run(*pytest_command(rng), "-W", "error")
    return made.told("a test failed, because a warning counts as an error", _FAILED, entity=_failed_test(made))


def missing_module(place: Place, rng: random.Random) -> Told:
    """Tests cannot be collected, because a module is not installed, or cannot be parsed."""
    made = project(place, rng)
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
    made.run(*pytest_command(rng))
    truth = [error, r"^ERROR \S+"]
    return made.told(
        "tests could not be collected", truth, accepted=("ci_test_failure",), entity=module if module in error else ""
    )


def passing(place: Place, rng: random.Random) -> Told:
    """All tests pass; some of them print errors, because errors are what they test."""
    made = project(place, rng)
    made.run(
        *pytest_command(rng),
        *rng.choice(((), ("-o", "log_cli=true"), ("-o", "log_cli=true", "-o", "log_cli_level=INFO"), ("-rA",))),
    )
    return made.told("", [], failed=False)


FAULTS = (
    *(
        staged("pytest", "ci_test_failure", (), body)
        for body in (test_failure, slow_test, unittest_failure, doctest_failure, warning_as_error)
    ),
    staged("pytest", "ci_build_dependency", (), missing_module),
    staged("pytest", "", (), passing, kind="healthy"),
)
