"""What is wrong in the program itself, in its settings, or in its new version."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack

from midwatch.errors import FoundryError
from midwatch.foundry.recording import Recording
from midwatch.foundry.services.kit import Kit, Scenes, calm, supervised, with_dependency
from midwatch.foundry.services.service import Service, good_order, render, version


def defect_in_requests(service: Service, kit: Kit) -> Recording:
    """An input that nobody thought of: some requests end in an unhandled error."""
    defect = service.rng.choice([one for one in kit.defects if not one.job])
    bad = [{**good_order(service.rng), **defect.fields} for _ in range(4)]
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start()
        service.ready()
        calm(service)
        broke_at = service.place.now
        calls = [*service.calls(), *service.calls(bodies=bad, reads=False) * service.rng.choice((1, 2))]
        service.traffic(calls).send(service.rng, service.rng.uniform(1.2, 2.5))
        return service.record(
            category="code_defect_crash",
            truth=[defect.error],
            broke_at=broke_at,
            cause="some requests to {service} end in an unhandled error, from a defect in its code",
        )


def defect_in_worker(service: Service, kit: Kit) -> Recording:
    """A job that kills the thread which works on it."""
    defect = service.rng.choice([one for one in kit.defects if one.job])
    bad = [{**good_order(service.rng), **defect.fields}]
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start(env={"QUEUE_LIMIT": "10"})
        service.ready()
        calm(service)
        broke_at = service.place.now
        calls = [*service.calls() * 2, *service.calls(bodies=bad, reads=False) * 3]
        service.traffic(calls).send(service.rng, service.rng.uniform(1.5, 2.5))
        return service.record(
            category="code_defect_crash",
            truth=[defect.error, kit.patterns["thread"]],
            broke_at=broke_at,
            alert=service.rng.choice(("queue", "errors")),
            cause="a worker of {service} died of an unhandled error",
        )


def defect_in_spool(service: Service, kit: Kit) -> Recording:
    """A file that the consumer cannot read: it dies, is started again, and meets the same file."""
    defect = service.rng.choice([one for one in kit.defects if not one.job])
    quiet = service.rng.random() < 0.3
    spool = service.place.folder / "data"

    def put(name: str, order: Mapping[str, object]) -> None:
        (spool / f"{name}.part").write_text(render(json.dumps(order), service.words))
        (spool / f"{name}.part").rename(spool / f"{name}.json")

    for number in range(service.rng.randrange(2, 6)):
        put(f"a-{1000 + number}", good_order(service.rng))
    with_dependency(service, stack := ExitStack())
    with stack:
        watcher = supervised(service, kit, lambda: service.start("worker", env={"ASYNC": "1" if quiet else "0"}))
        put("b-2000", {**good_order(service.rng), **defect.fields})
        broke_at = service.place.now
        if quiet:
            watcher.start()
            service.place.wait_for(defect.error, timeout_s=20)
            for number in range(3):
                put(f"c-{3000 + number}", good_order(service.rng))
        else:
            watcher.crash_loop(service.rng.randrange(2, 5))
        return service.record(
            category="code_defect_crash",
            truth=[defect.error],
            broke_at=broke_at,
            alert="restarts",
            cause="a message that {service} cannot process crashes its consumer",
        )


def defect_behind_flag(service: Service, kit: Kit) -> Recording:
    """A feature flag is turned on, and what it enables does not work."""
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start()
        service.ready()
        calm(service)
        broke_at = service.place.now
        service.traffic([("GET", "/flags/" + service.words["next_pricing"], "")], workers=1, rate=1).send(
            service.rng, 0.05
        )
        plain = [{k: v for k, v in good_order(service.rng).items() if k != "coupon"} for _ in range(4)]
        service.traffic([*service.calls(bodies=plain, reads=False), *service.calls()]).send(service.rng, 1.8)
        truth = [kit.patterns["flag"], service.said("flag_on")]
        return service.record(
            category="code_defect_crash",
            accepted=("deploy_regression",),
            truth=truth,
            broke_at=broke_at,
            cause="a feature that a flag turned on in {service} fails with an unhandled error",
        )


def bad_setting(service: Service, kit: Kit) -> Recording:
    """A setting is missing or wrong; the program cannot start, again and again."""
    name, value, error = service.rng.choice(kit.settings)
    name = render(name, service.words)
    if value == "FILE":
        value = str(service.place.write("limits.json", '{\n  "queue": 200,\n}\n'))
        service.hide[value] = f"/etc/{service.name}/limits.json"
    with ExitStack() as stack:
        with_dependency(service, stack)
        if service.rng.random() < 0.5:
            before = service.start()
            service.ready()
            calm(service)
            service.place.stop(before)
        broke_at = service.place.now
        if value is None:
            service.env.pop(name)
        else:
            service.env[name] = value
        supervised(service, kit, service.start).crash_loop(service.rng.randrange(2, 5), lives_s=8)
        return service.record(
            category="config_env_error",
            truth=[render(error, service.words)],
            broke_at=broke_at,
            severity="critical",
            alert="restarts",
            entity=name,
            cause="{service} cannot start, because the setting "
            + name
            + (" is missing" if value is None else " is not valid"),
        )


def bad_release(service: Service, kit: Kit) -> Recording:
    """A new version is started, and errors begin at once."""
    release = service.rng.choice(kit.releases)
    before, after = version(service.rng)
    service.env["VERSION"] = before
    with ExitStack() as stack:
        with_dependency(service, stack)
        old = service.start()
        service.ready()
        calm(service)
        broke_at = service.place.now
        service.place.stop(old)
        file = service.place.folder / "app" / render(release.file, service.words)
        text, changed = file.read_text(), render(release.before, service.words)
        if changed not in text:
            raise FoundryError(f"{file.name} has no {changed!r} to release.")
        file.write_text(text.replace(changed, render(release.after, service.words)))
        service.command = kit.runtime.command(service.place, service.rng)
        env = {"VERSION": after, "PREVIOUS_VERSION": before}
        if release.at_start:
            service.place.note("deploy", _rollout_words(service, before, after))
            supervised(service, kit, lambda: service.start(env=env)).crash_loop(3, lives_s=8)
        else:
            service.start(env=env)
            service.ready()
            service.traffic().send(service.rng, service.rng.uniform(1.2, 2.2))
        truth = [service.said("replaced"), r"(?i)\brollout of", render(release.error, service.words)]
        return service.record(
            category="deploy_regression",
            accepted=("code_defect_crash",),
            truth=truth,
            broke_at=broke_at,
            severity="critical",
            alert="restarts" if release.at_start else "errors",
            cause="errors of {service} began right after " + f"{after} replaced {before}",
        )


def _rollout_words(service: Service, before: str, after: str) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return service.rng.choice(
        (
            f"{stamp} deploy: rollout of {service.name} {after} started (replaces {before})",
            f"{stamp} [deploy] Rollout of {service.name}: {before} -> {after}",
            f"{stamp} release-bot rollout of {service.name}:{after} to production (was {before})",
        )
    )


IN_CODE: Scenes = {
    "unhandled": ("code_defect_crash", defect_in_requests, ()),
    "worker-died": ("code_defect_crash", defect_in_worker, ()),
    "poison-message": ("code_defect_crash", defect_in_spool, ()),
    "feature-flag": ("code_defect_crash", defect_behind_flag, ()),
    "bad-setting": ("config_env_error", bad_setting, ()),
    "bad-release": ("deploy_regression", bad_release, ()),
}
"""Name: category, how it is done, and what it needs."""
