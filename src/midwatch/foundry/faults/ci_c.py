"""Build jobs of a C project: make, gcc and its sanitizers."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import random

from midwatch.foundry.place import Place
from midwatch.foundry.props import limited
from midwatch.foundry.stage import Told, staged
from midwatch.foundry.workshop import Change, Workshop, workshop

_MAKE = r"^make(\[\d+\])?: \*\*\* "
COMPILER = (
    Change(file="src/pricing.c", before="long total = 0;", after="long total = 0", error=r"error: expected "),
    Change(
        file="src/pricing.c",
        before="total += line_total",
        after="totl += line_total",
        error=r"error: .totl. undeclared",
    ),
    Change(
        file="src/pricing.c",
        before="order->coupon);",
        after="order->voucher_id);",
        error=r"error: .*has no member named",
    ),
    Change(
        file="src/pricing.c",
        before="#include <string.h>",
        after="#include <stringutil.h>",
        error=r"fatal error: stringutil\.h: No such file",
    ),
    Change(
        file="src/orders.c",
        before="#include <stdlib.h>",
        after="#include <jansson.h>\n#include <stdlib.h>",
        error=r"fatal error: jansson\.h: No such file",
    ),
    Change(
        file="src/orders.c",
        before="void order_free(struct order *order)",
        after="int order_free(struct order *order)",
        error=r"error: conflicting types for",
    ),
    Change(file="src/queue.c", before="queue->length--;\n    }", after="queue->length--;", error=r"error: "),
    Change(
        file="src/queue.c",
        before="return fits;",
        after="return fits + missing();",
        error=r"warning: implicit declaration|undefined reference to|error: ",
    ),
    Change(file="src/main.c", before="order_free(order);", after="order_free();", error=r"error: too few arguments"),
    Change(
        file="src/main.c", before="order_new(1, 1)", after='order_new("1", "1", 1)', error=r"error: too many arguments"
    ),
    Change(
        file="src/pricing.c",
        before="return line->price_cents * line->quantity;",
        after="return line * line->quantity;",
        error=r"error: invalid operands",
    ),
    Change(
        file="include/orders.h",
        before="struct queue;",
        after="#error this compiler is not supported\nstruct queue;",
        error=r"error: #error",
    ),
)
LINKER = (
    Change(file="Makefile", before=" build/queue.o", after="", error=r"undefined reference to"),
    Change(
        file="Makefile",
        before="LDLIBS = -lpthread",
        after="LDLIBS = -lpthread -ljansson",
        error=r"cannot find -ljansson",
    ),
    Change(
        file="Makefile", before="LDLIBS = -lpthread", after="LDLIBS = -lpthread -lorders_core", error=r"cannot find -l"
    ),
    Change(
        file="src/orders.c",
        before="const char *order_status",
        after="static const char *status",
        error=r"undefined reference to",
    ),
    Change(
        file="src/main.c",
        before="int main(void)",
        after="long discount(long a, const char *b) { return a + !b; }\nint main(void)",
        error=r"multiple definition of",
    ),
)
MAKEFILE = (
    Change(
        file="Makefile",
        before="src/%.c include/orders.h | build",
        after="src/%.cc include/orders.h | build",
        error=r"No rule to make target",
    ),
    Change(file="Makefile", before="\tmkdir -p build", after="    mkdir -p build", error=r"missing separator"),
    Change(
        file="Makefile",
        before="CC = gcc",
        after="CC = clang-19",
        error=r"clang-19: (command )?not found|No such file or directory",
    ),
    Change(
        file="Makefile",
        before="CC = gcc",
        after="CC = arm-none-eabi-gcc",
        error=r"arm-none-eabi-gcc: (command )?not found|No such file or directory",
    ),
    Change(file="Makefile", before="-std=c11", after="-std=c31", error=r"error: unrecognized command-line option"),
    Change(
        file="Makefile",
        before="all: build/orderctl",
        after="all: build/orderctl proto/orders.pb.c",
        error=r"No rule to make target",
    ),
    Change(
        file="Makefile",
        before="LDLIBS = -lpthread",
        after="CFLAGS += $(shell pkg-config --cflags libcurl)\nLDLIBS = -lpthread -lcurl",
        error=r"cannot find -lcurl|pkg-config",
    ),
)
STRICT = (
    Change(
        file="src/pricing.c",
        before="long total = 0;",
        after="long total = 0;\n    int unused = 3;",
        error=r"unused variable",
    ),
    Change(
        file="src/orders.c",
        before="order->id = id;",
        after="order->id = id;\n    if (order->id = 0) return NULL;",
        error=r"suggest parentheses",
    ),
    Change(
        file="src/queue.c",
        before="int value = -1;",
        after="int value = -1;\n    for (int at = 0; at < queue->room; at++) value = at - 1;",
        error=r"comparison of integer expressions",
    ),
    Change(file="src/main.c", before="%ld", after="%d", error=r"expects argument of type"),
    Change(
        file="src/pricing.c",
        before="    return 0;\n}\n\nlong order_total",
        after="}\n\nlong order_total",
        error=r"control reaches end",
    ),
)
WRONG = (
    Change(
        file="src/pricing.c", before="return total / 10;", after="return total / 100;", error=r"Assertion .* failed"
    ),
    Change(file="src/pricing.c", before="total - discount", after="total - 1 - discount", error=r"Assertion .* failed"),
    Change(
        file="src/pricing.c",
        before="index = 0; index < order",
        after="index = 1; index < order",
        error=r"Assertion .* failed",
    ),
    Change(
        file="src/pricing.c",
        before="price_cents * line->quantity",
        after="price_cents + line->quantity",
        error=r"Assertion .* failed",
    ),
    Change(file="src/orders.c", before='"empty" : "open"', after='"none" : "open"', error=r"Assertion .* failed"),
    Change(
        file="src/queue.c",
        before="queue->length < queue->room",
        after="queue->length <= queue->room",
        error=r"Assertion .* failed",
    ),
    Change(
        file="src/pricing.c",
        before="if (coupon == NULL)\n        return 0;",
        after="",
        error=r"Segmentation fault|SIGSEGV",
    ),
    Change(
        file="src/orders.c",
        before="order->lines = calloc(count, sizeof *order->lines);",
        after="",
        error=r"Segmentation fault|SIGSEGV",
    ),
)
SANITIZED = (
    (Change(file="src/pricing.c", before="index < order->count", after="index <= order->count", error=r"ERROR: AddressSanitizer|SUMMARY: AddressSanitizer"), "address"),
    (Change(file="src/orders.c", before="    free(order->lines);\n", after="", error=r"ERROR: LeakSanitizer|SUMMARY: AddressSanitizer|Direct leak"), "address"),
    (Change(file="src/orders.c", before="    free(order);", after="    free(order->lines);\n    free(order);", error=r"ERROR: AddressSanitizer|SUMMARY: AddressSanitizer"), "address"),
    (Change(file="src/queue.c", before="    pthread_mutex_lock(&queue->lock);\n    int fits", after="    int fits", error=r"WARNING: ThreadSanitizer|SUMMARY: ThreadSanitizer"), "thread"),
    (Change(file="src/pricing.c", before="return total / 10;", after="return total / (total - 1000);", error=r"runtime error: division by zero|Floating point exception"), "undefined"),
)  # fmt: skip


def _project(place: Place, rng: random.Random) -> Workshop:
    return workshop(place, rng, "c")


def _make(made: Workshop, *arguments: str) -> None:
    made.run("make", *made.rng.choice(((), ("-j2",), ("--no-print-directory",))), *arguments)


def _broken(
    place: Place, rng: random.Random, change: Change, cause: str, *arguments: str, accepted: tuple[str, ...] = ()
) -> Told:
    made = _project(place, rng)
    made.change(change)
    _make(made, *arguments)
    file = made.render(change.file).split("/")[-1]
    shown = any(file in line.text for line in place.lines())
    return made.told(cause, [change.error, _MAKE], entity=file if shown else "", accepted=accepted)


def compiler_error(place: Place, rng: random.Random) -> Told:
    """The compiler does not take the code."""
    return _broken(place, rng, rng.choice(COMPILER), "the code does not compile")


def linker_error(place: Place, rng: random.Random) -> Told:
    """The linker misses something."""
    return _broken(place, rng, rng.choice(LINKER), "the program cannot be linked", "all", "check")


def makefile_error(place: Place, rng: random.Random) -> Told:
    """Make itself, or a tool that it calls, is wrong or missing."""
    return _broken(place, rng, rng.choice(MAKEFILE), "the build is not set up for this runner")


def warnings_gate(place: Place, rng: random.Random) -> Told:
    """Warnings are errors, and there is one."""
    return _broken(
        place,
        rng,
        rng.choice(STRICT),
        "a warning counts as an error",
        "CFLAGS=-std=c11 -Wall -Wextra -Werror -O1 -Iinclude",
    )


def failing_check(place: Place, rng: random.Random) -> Told:
    """An assertion of a test does not hold, or a test crashes."""
    return _broken(place, rng, rng.choice(WRONG), "a test failed after a change of the code", "check")


def sanitizer(place: Place, rng: random.Random) -> Told:
    """A sanitizer finds a memory error, a leak, a race or undefined behaviour while tests run."""
    change, kind = rng.choice(SANITIZED)
    flags = f"CFLAGS=-std=c11 -O1 -g -Iinclude -fsanitize={kind}" + (
        " -fno-sanitize-recover=all" if kind == "undefined" else ""
    )
    return _broken(
        place,
        rng,
        change,
        f"the {kind} sanitizer found an error while tests ran",
        flags,
        "check",
        accepted=("code_defect_crash",),
    )


def compiler_out_of_memory(place: Place, rng: random.Random) -> Told:
    """The compiler needs more memory than the runner gives it."""
    made = _project(place, rng)
    numbers = ",".join(str(number * 7) for number in range(rng.randrange(200_000, 400_000)))
    made.write(
        "src/table.c", f"static const long table[] = {{{numbers}}};\nlong entry(int at) {{ return table[at]; }}\n"
    )
    made.change(Change(file="Makefile", before="build/queue.o", after="build/queue.o build/table.o", error=""))
    made.run(*limited(["make"], v=rng.choice((60_000, 70_000, 80_000, 90_000))))
    truth = [
        r"out of memory|virtual memory exhausted|Cannot allocate memory|memory exhausted",
        r"error while loading shared libraries",
        _MAKE,
    ]
    return made.told("the compiler ran out of memory", truth, accepted=("oom_memory",))


def passing(place: Place, rng: random.Random) -> Told:
    """All is built, all tests pass; a warning or two does no harm."""
    made = _project(place, rng)
    if rng.random() < 0.6:
        made.change(rng.choice(STRICT[:3]))
    _make(made, "all", "check")
    return made.told("", [], failed=False)


_BUILD = (compiler_error, linker_error, makefile_error, warnings_gate, compiler_out_of_memory)
FAULTS = (
    *(staged("make", "ci_build_dependency", ("make", "gcc"), body) for body in _BUILD),
    *(staged("make", "ci_test_failure", ("make", "gcc"), body) for body in (failing_check, sanitizer)),
    staged("make", "", ("make", "gcc"), passing, kind="healthy"),
)
