"""Build jobs of a Node.js project: npm, and the tests that Node itself runs."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import json
import random

from midwatch.foundry.place import Place
from midwatch.foundry.props import dependency, private
from midwatch.foundry.stage import Told, staged
from midwatch.foundry.workshop import Change, Workshop, workshop

WRONG = (
    Change(file="src/pricing.js", before="/ 100);\n}", after="/ 1000);\n}", error=""),
    Change(file="src/pricing.js", before="line.quantity ?? 1", after="line.quantity || 0", error=""),
    Change(file="src/pricing.js", before="sum - discount", after="sum + discount", error=""),
    Change(file="src/pricing.js", before="status: order.status ?? 'open'", after="status: order.status", error=""),
    Change(file="src/pricing.js", before="lines: order.lines.length", after="lineCount: order.lines.length", error=""),
    Change(file="src/pricing.js", before="currency: 'EUR'", after="currency: 'usd'", error=""),
    Change(file="src/orders.js", before="this.#kept.size + 1", after="this.#kept.size", error=""),
    Change(
        file="src/orders.js", before="if (!order) throw new RangeError(`order ${id} not found`);", after="", error=""
    ),
    Change(file="src/orders.js", before="].map(summary)", after="].reverse().map(summary)", error=""),
    Change(file="src/orders.js", before="attempt >= attempts", after="attempt > attempts - 2", error=""),
    Change(file="src/orders.js", before="{ ...order, id }", after="Object.freeze({ id })", error=""),
    Change(
        file="src/orders.js",
        before="return await post(order);",
        after="await new Promise((resolve) => setTimeout(resolve, 400));\n      return await post(order);",
        error="",
    ),
)
UNBUILT = (
    Change(file="src/orders.js", before="from './pricing.js'", after="from './prices.js'", error=r"Cannot find module .*prices\.js|ERR_MODULE_NOT_FOUND"),
    Change(file="src/orders.js", before="import { summary } from './pricing.js';", after="import { summary } from './pricing.js';\nimport pino from 'pino';", error=r"Cannot find package 'pino'|ERR_MODULE_NOT_FOUND"),
    Change(file="src/orders.js", before="import { summary }", after="import { overview }", error=r"does not provide an export named 'overview'"),
    Change(file="src/pricing.js", before="export function orderTotal(order) {", after="export function orderTotal(order {", error=r"SyntaxError: "),
    Change(file="src/pricing.js", before="const COUPONS =", after="const COUPONS = const", error=r"SyntaxError: "),
    Change(file="src/orders.js", before="export class Orders {", after="export class Orders {{", error=r"SyntaxError: "),
)  # fmt: skip
_NPM = (
    r"^npm (error|ERR!) (code E|404 Not Found|404  The requested|notarget No matching|network request|Could not resolve)",
    r"^npm (error|ERR!) (Conflicting|While resolving|Missing|.* can only install|(engine|notsup) Not compatible|5\d\d |401 )",
    r"request to \S+ failed, reason",
)
"""The lines of npm that say what is wrong; its advice follows them."""


def _project(place: Place, rng: random.Random) -> Workshop:
    return workshop(place, rng, "node")


def _npm(made: Workshop, *arguments: str) -> int:
    env = {f"npm_config_{name}": "false" for name in ("update_notifier", "audit", "fund")}
    made.hide["http://localhost:9/"] = "https://registry.npmjs.org/"
    env |= {"npm_config_fetch_retries": "0", "npm_config_registry": "http://localhost:9/", "NO_COLOR": "1"}
    return made.run("npm", *arguments, env=env)


def _test(made: Workshop) -> None:
    style = made.rng.choice(("spec", "spec", "tap"))
    if made.rng.random() < 0.5:
        _npm(made, "test", "--", f"--test-reporter={style}")
    else:
        made.run("node", "--test", f"--test-reporter={style}")


def _package(made: Workshop, **fields: object) -> None:
    """Change fields of package.json."""
    path = made.folder / "package.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}, indent=2) + "\n", encoding="utf-8"
    )


def test_failure(place: Place, rng: random.Random) -> Told:
    """A test does not find what it expects, or does not end in time."""
    made = _project(place, rng)
    made.change(rng.choice(WRONG))
    _test(made)
    truth = [
        r"^\s*(✖|not ok \d+ -) \S+ [^(\s].*[^:]$",
        r"^\s*(Uncaught )?(AssertionError|TypeError|RangeError|Error)\b",
        r"Expected values to be|Missing expected|did not match|test timed out|^\s*error: '",
    ]
    return made.told("a test failed after a change of the code", truth)


def unbuilt(place: Place, rng: random.Random) -> Told:
    """A file cannot be parsed, or a module or package that it imports is not there."""
    made = _project(place, rng)
    change = rng.choice(UNBUILT)
    made.change(change)
    _test(made)
    return made.told("the code cannot be loaded", [change.error], accepted=("ci_test_failure",))


def missing_script(place: Place, rng: random.Random) -> Told:
    """A script that package.json does not have, or one whose tool is not installed."""
    made = _project(place, rng)
    script = rng.choice(("build", "lint", "typecheck", "test:ci", "e2e", "coverage"))
    _npm(made, "run", script)
    return made.told(
        f"npm cannot run {script}",
        [r"^npm (error|ERR!) Missing script", r"(tsc|eslint): (command )?not found", r"^npm (error|ERR!) code 127"],
    )


def registry_away(place: Place, rng: random.Random) -> Told:
    """The registry cannot be reached, or answers with errors."""
    made = _project(place, rng)
    package = rng.choice(("express", "lodash", "zod", "vite", "typescript"))
    manner = rng.choice(("refused", "name", "status"))
    host = rng.choice(("npm.internal", "registry.corp.example", "nexus.ci.svc"))
    _package(made, dependencies={package: "^4.0.0"})
    with dependency() as served:
        served.manner, served.status, served.reason = "status", rng.choice((500, 503, 401)), "Error"
        port = place.free_port() if manner == "refused" else served.port
        made.hide.update({f"localhost:{port}": host, f"127.0.0.1:{port}": "10.3.0.18:443"})
        _npm(made, "install", "--registry", f"http://{host}/" if manner == "name" else f"http://localhost:{port}/")
    accepted = ("dns_resolution",) if manner == "name" else ("network_connectivity", "dependency_failure")
    return made.told(
        "the package registry cannot be used", _NPM, entity=package if manner == "status" else "", accepted=accepted
    )


def unknown_version(place: Place, rng: random.Random) -> Told:
    """The registry does not have the package, or not this version."""
    made = _project(place, rng)
    package, missing = rng.choice(("left-pad-core", "acme-http", "initech-events")), rng.random() < 0.5
    _package(made, dependencies={package: rng.choice(("^9.0.0", "3.1.4", "~2.7.0"))})
    with dependency() as served:
        served.manner, served.status, served.reason = (
            "status",
            404 if missing else 200,
            "Not Found" if missing else "OK",
        )
        versions = {
            one: {"name": package, "version": one, "dist": {"tarball": "http://localhost/x.tgz"}}
            for one in ("1.0.0", "1.2.0")
        }
        known = {"name": package, "dist-tags": {"latest": "1.2.0"}, "versions": versions}
        served.body = json.dumps({"error": "not found"} if missing else known)
        made.hide.update({f"localhost:{served.port}": "registry.npmjs.org", "http://registry": "https://registry"})
        _npm(made, "install", "--registry", f"http://localhost:{served.port}/")
    return made.told(
        f"npm cannot find {package} in the version asked for", _NPM, entity=package, names={package: "pkg"}
    )


def peer_conflict(place: Place, rng: random.Random) -> Told:
    """Two packages ask for versions of a third that exclude each other."""
    made = _project(place, rng)
    stem = rng.choice(("initech", "umbra", "northwind"))
    core, plugin = f"{stem}-core", f"{stem}-{rng.choice(('react', 'router', 'forms', 'charts'))}"
    for name, version, peers in ((core, "2.0.1", {}), (plugin, "1.3.0", {core: "^1.0.0"})):
        text = json.dumps({"name": name, "version": version, "peerDependencies": peers})
        place.write(f"project/packages/{name}/package.json", text)
    _package(made, dependencies={core: f"file:packages/{core}", plugin: f"file:packages/{plugin}"})
    dist = {"tarball": "http://localhost/x.tgz"}
    versions = {one: {"name": core, "version": one, "dist": dist} for one in ("1.0.0", "1.4.2")}
    with dependency() as served:
        served.manner, served.status = "status", 200
        served.body = json.dumps({"name": core, "dist-tags": {"latest": "1.4.2"}, "versions": versions})
        _npm(made, "install", "--strict-peer-deps", "--registry", f"http://localhost:{served.port}/")
    truth = [*_NPM, r"^npm (error|ERR!) +peer "]
    return made.told("npm cannot resolve peer dependencies", truth, entity=plugin, names={core: "pkg", plugin: "pkg"})


def lock_gate(place: Place, rng: random.Random) -> Told:
    """The lock file is missing or does not fit, or this Node is not the one that the project asks for."""
    made = _project(place, rng)
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            lock = {"name": made.name, "version": "1.4.2", "lockfileVersion": 3, "packages": {"": {"name": made.name}}}
            place.write("project/package-lock.json", json.dumps(lock))
            part = rng.choice(("initech-http", "umbra-forms", "northwind-auth"))
            place.write(f"project/packages/{part}/package.json", json.dumps({"name": part, "version": "2.1.0"}))
            _package(made, dependencies={part: f"file:packages/{part}"})
        _npm(made, "ci")
        truth = [*_NPM, r"in sync|existing package-lock"]
    else:
        _package(made, engines={"node": rng.choice((">=24", "^16.0.0", "22.x"))})
        _npm(made, "install", "--engine-strict")
        truth = [*_NPM, r"^npm (error|ERR!) notsup (Required|Actual)"]
    return made.told("npm refuses to install", truth)


def runner_full(place: Place, rng: random.Random) -> Told:
    """The disk of the runner is full while packages are installed, or a build writes its output."""
    made = _project(place, rng)
    place.write(
        "project/build.mjs",
        "import fs from 'node:fs';\nfs.mkdirSync('dist', { recursive: true });\nfor (let n = 0; n < 60; n += 1) {\n  console.log(`writing dist/chunk-${n}.js`);\n  fs.writeFileSync(`dist/chunk-${n}.js`, 'x'.repeat(30000 + n * 511));\n}\n",
    )
    (made.folder / "dist").mkdir()
    made.run(*private(["node", "build.mjs"], f"-t tmpfs -o size={rng.choice((256, 384, 512))}k tmpfs dist"))
    return made.told("the disk of the runner is full", [r"ENOSPC"], accepted=("disk_storage_full",))


def build_out_of_memory(place: Place, rng: random.Random) -> Told:
    """A build step needs more memory than it may have."""
    made = _project(place, rng)
    place.write(
        "project/bundle.mjs",
        "const modules = [];\nfor (let n = 0; ; n += 1) {\n  if (n % 400 === 0) console.log(`transforming (${n}) src/module-${n}.js`);\n  modules.push({ id: n, code: Array.from({ length: 400 }, (_, at) => ({ at, n })) });\n}\n",
    )
    made.run("node", f"--max-old-space-size={rng.choice((24, 32, 48))}", "bundle.mjs")
    return made.told(
        "the build ran out of memory", [r"JavaScript heap out of memory|Reached heap limit"], accepted=("oom_memory",)
    )


def passing(place: Place, rng: random.Random) -> Told:
    """All tests pass; some print errors, because errors are what they test."""
    made = _project(place, rng)
    if rng.random() < 0.5:
        _npm(made, "install")
    _test(made)
    return made.told("", [], failed=False)


_BUILD = (unbuilt, missing_script, registry_away, unknown_version, peer_conflict, lock_gate, build_out_of_memory)
FAULTS = (
    staged("npm", "ci_test_failure", ("node", "npm"), test_failure),
    *(staged("npm", "ci_build_dependency", ("node", "npm"), body) for body in _BUILD),
    staged("npm", "ci_build_dependency", ("node", "unshare"), runner_full),
    staged("npm", "", ("node", "npm"), passing, kind="healthy"),
)
