"""Build jobs of a Java project: javac, and tests run by the project's own small runner."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import random

from midwatch.foundry.place import Place
from midwatch.foundry.stage import Told, staged
from midwatch.foundry.workshop import Change, Workshop, workshop

COMPILER = (
    Change(
        file="src/Order.java",
        before="reduce(BigDecimal.ZERO, BigDecimal::add);",
        after="reduce(BigDecimal.ZERO, BigDecimal::add)",
        error=r"error: ';' expected",
    ),
    Change(
        file="src/Order.java",
        before="Discounts.of(sum, coupon)",
        after="Discounts.forCoupon(sum, coupon)",
        error=r"error: cannot find symbol",
    ),
    Change(
        file="src/Order.java",
        before="Discounts.of(sum, coupon)",
        after="Discounts.of(sum)",
        error=r"error: method of in class Discounts cannot be applied",
    ),
    Change(
        file="src/Order.java",
        before="import java.util.List;",
        after="import java.util.List;\nimport org.slf4j.Logger;",
        error=r"error: package org\.slf4j does not exist",
    ),
    Change(
        file="src/OrderStore.java",
        before="import java.util.Optional;",
        after="import com.fasterxml.jackson.databind.ObjectMapper;\nimport java.util.Optional;",
        error=r"error: package com\.fasterxml\.jackson\.databind does not exist",
    ),
    Change(file="src/OrderStore.java", before="import java.util.List;\n", after="", error=r"error: cannot find symbol"),
    Change(
        file="src/OrderStore.java",
        before="return Optional.ofNullable(kept.get(id));",
        after="return kept.get(id);",
        error=r"error: incompatible types",
    ),
    Change(
        file="src/OrderStore.java",
        before="public void add(Order order) {",
        after='public void add(Order order) {\n        java.nio.file.Files.readString(java.nio.file.Path.of("x"));',
        error=r"error: unreported exception",
    ),
    Change(file="src/OrderStore.java", before="return found;", after="", error=r"error: missing return statement"),
    Change(
        file="src/Discounts.java", before="int percent =", after="String percent =", error=r"error: incompatible types"
    ),
    Change(
        file="src/Discounts.java",
        before="public final class Discounts",
        after="public final class Rebates",
        error=r"error: (class Rebates is public|invalid method declaration|cannot find symbol)",
    ),
    Change(
        file="src/Discounts.java",
        before="    private Discounts() {}\n",
        after="    private Discounts() {\n",
        error=r"error: (illegal start of expression|reached end of file|class, interface)",
    ),
    Change(
        file="test/OrderTests.java",
        before="new OrderStore().find(1).isEmpty()",
        after="new OrderStore().findById(1).isEmpty()",
        error=r"error: cannot find symbol",
    ),
    Change(
        file="test/OrderTests.java",
        before="new Order(id, List.of(), null);\n",
        after="new Order(id, List.of());\n",
        error=r"error: constructor .* cannot be applied",
    ),
)
WRONG = (
    Change(file="src/Order.java", before="sum.subtract(", after="sum.add(", error=""),
    Change(file="src/Order.java", before="price.multiply(BigDecimal.valueOf(quantity))", after="price.add(BigDecimal.valueOf(quantity))", error=""),
    Change(file="src/Discounts.java", before='"SPRING10", 10', after='"SPRING10", 15', error=""),
    Change(file="src/Discounts.java", before="PERCENT.getOrDefault(coupon, 0)", after="PERCENT.get(coupon)", error=""),
    Change(file="src/Discounts.java", before="2, RoundingMode.HALF_UP", after="1, RoundingMode.HALF_UP", error=""),
    Change(file="src/OrderStore.java", before="Integer.compare(left.id(), right.id())", after="Integer.compare(right.id(), left.id())", error=""),
    Change(file="src/OrderStore.java", before="Optional.ofNullable(kept.get(id))", after="Optional.of(kept.get(id))", error=""),
    Change(file="src/OrderStore.java", before="new ArrayList<>(kept.values())", after="List.copyOf(kept.values())", error=""),
)  # fmt: skip


def _project(place: Place, rng: random.Random) -> Workshop:
    return workshop(place, rng, "java")


def _compile(made: Workshop, *options: str) -> int:
    files = sorted(str(path.relative_to(made.folder)) for path in made.folder.rglob("*.java"))
    return made.run("javac", "-J-XX:TieredStopAtLevel=1", "-d", "classes", *options, *files)


def compiler_error(place: Place, rng: random.Random) -> Told:
    """The compiler does not take the code, or misses a package."""
    made = _project(place, rng)
    change = rng.choice(COMPILER)
    made.change(change)
    _compile(made)
    return made.told(
        "the code does not compile",
        [change.error, r": error: ", r"^\d+ errors?$"],
        entity=made.render(change.file).split("/")[-1],
    )


def unfit_tools(place: Place, rng: random.Random) -> Told:
    """Options or libraries that this compiler or this runner does not have."""
    made = _project(place, rng)
    options, error = rng.choice(
        (
            (("--release", rng.choice(("21", "23", "25"))), r"error: release version \d+ not supported"),
            (("--module-path", "libs", "--add-modules", "org.postgresql.jdbc"), r"error: module not found"),
            (("-Werror", "-Xlint:all", "-proc:none"), r"error: warnings found and -Werror specified|warning: \["),
            (("-processor", "org.mapstruct.ap.MappingProcessor"), r"error: Annotation processor .* not found"),
            (("--enable-previewing",), r"error: invalid flag"),
        )
    )
    if "-Werror" in options:
        cast = "java.util.ArrayList raw = new java.util.ArrayList();\n        return (List<Order>) raw;"
        made.change(Change(file="src/OrderStore.java", before="return found;", after=cast, error=""))
    _compile(made, *options)
    return made.told("this runner's compiler cannot build the project", [error, r"^error: "], entity="")


def test_failure(place: Place, rng: random.Random) -> Told:
    """A test does not find what it expects, or meets an exception or a race."""
    made = _project(place, rng)
    made.change(rng.choice(WRONG))
    package = made.render("com.acme.shop")
    if _compile(made) == 0:
        made.run("java", "-XX:TieredStopAtLevel=1", "-cp", "classes", f"{package}.{made.render('OrderTests')}")
    failed = next((line.text for line in place.lines() if " FAILED (" in line.text), "")
    truth = [r"^\[ERROR\] ", r"^java\.\S+(Error|Exception)", r"^Exception in thread"]
    return made.told("a test failed after a change of the code", truth, entity=failed.split(" ")[1] if failed else "")


def passing(place: Place, rng: random.Random) -> Told:
    """All is compiled, with a note about deprecation, and all tests pass."""
    made = _project(place, rng)
    if rng.random() < 0.5:
        made.change(
            Change(
                file="src/OrderStore.java",
                before="kept.put(order.id(), order);",
                after="kept.put(new Integer(order.id()), order);",
                error="",
            )
        )
    _compile(made, *rng.choice(((), ("-Xlint:deprecation",), ("-verbose",) if rng.random() < 0.2 else ())))
    made.run(
        "java",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        "classes",
        f"{made.render('com.acme.shop')}.{made.render('OrderTests')}",
    )
    return made.told("", [], failed=False)


FAULTS = (
    staged("javac", "ci_build_dependency", ("javac",), compiler_error),
    staged("javac", "ci_build_dependency", ("javac",), unfit_tools),
    staged("javac", "ci_test_failure", ("javac", "java"), test_failure),
    staged("javac", "", ("javac", "java"), passing, kind="healthy"),
)
