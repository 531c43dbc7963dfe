"""What looks like trouble and is none, and what a quiet day prints: scenes of our services, for every language."""

from __future__ import annotations

import time
from contextlib import ExitStack

from midwatch.foundry.props import dependency
from midwatch.foundry.recording import Recording
from midwatch.foundry.services.kit import Kit, Scenes
from midwatch.foundry.services.service import Service, version


def _stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _served(service: Service, stack: ExitStack) -> None:
    service.depends_on(stack.enter_context(dependency()).port)


def quiet_day(service: Service, kit: Kit) -> Recording:
    """Normal traffic: a few 404s, a rejected order, deprecation warnings."""
    with ExitStack() as stack:
        _served(service, stack)
        process = service.start()
        service.ready()
        odd = service.calls(bodies=[{"customer": {"address": {"country": "DE"}}}], reads=False)
        service.traffic([*service.calls() * 3, *odd]).send(service.rng, service.rng.uniform(2.5, 4.0))
        if service.rng.random() < 0.3:
            service.place.stop(process)
        return service.record(kind="healthy", alert="none", severity="info", entity="")


def planned_restart(service: Service, kit: Kit) -> Recording:
    """Somebody restarts the service on purpose, and says so."""
    rng, place = service.rng, service.place
    with ExitStack() as stack:
        _served(service, stack)
        first = service.start()
        service.ready()
        service.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke_at = place.now
        who = rng.choice(("ops", "maintenance", "cron", "deploy"))
        words = (
            f"{_stamp()} {who}: planned restart of {service.name} begins (kernel update window)",
            f"{_stamp()} {who}: maintenance window open for {service.name}, restarting",
            f"{_stamp()} {who}: scheduled nightly restart of {service.name}",
            f"{_stamp()} {who}: {service.name} restart requested (change CHG-{rng.randrange(10000, 99999)})",
        )
        place.note(who, rng.choice(words))
        place.stop(first)
        service.start()
        service.ready()
        mended_at = place.now
        place.note(
            who,
            rng.choice(
                (
                    f"{_stamp()} {who}: {service.name} is healthy again, maintenance finished",
                    f"{_stamp()} {who}: restart of {service.name} completed",
                    f"{_stamp()} {who}: window closed, all checks green for {service.name}",
                )
            ),
        )
        service.traffic().send(rng, rng.uniform(0.6, 1.2))
        return service.record(
            kind="false_alarm",
            category="benign_false_alarm",
            truth=[rf" {who}: "],
            broke_at=broke_at,
            mended_at=mended_at,
            severity="info",
            alert="restarts",
            cause="{service} was restarted on purpose",
        )


def rolling_deploy(service: Service, kit: Kit) -> Recording:
    """A new version starts well, and the old one is told to go."""
    rng, place = service.rng, service.place
    before, after = version(rng)
    service.env["VERSION"] = before
    with ExitStack() as stack:
        _served(service, stack)
        old = service.start()
        service.ready()
        service.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke_at = place.now
        place.stop(old)
        service.start(env={"VERSION": after, "PREVIOUS_VERSION": before})
        service.ready()
        place.note(
            "deploy",
            rng.choice(
                (
                    f"{_stamp()} deploy: rollout of {service.name} {after} complete, old replica terminated",
                    f"{_stamp()} deploy: {service.name} {before} drained and terminated, {after} serves, no errors",
                    f'{_stamp()} deploy: deployment "{service.name}" successfully rolled out ({after})',
                )
            ),
        )
        mended_at = place.now
        service.traffic().send(rng, rng.uniform(0.8, 1.4))
        return service.record(
            kind="false_alarm",
            category="benign_false_alarm",
            truth=[r" deploy: "],
            broke_at=broke_at,
            mended_at=mended_at,
            severity="info",
            alert="restarts",
            cause="an old instance of {service} ended as part of a rollout that went well",
        )


def retried(service: Service, kit: Kit) -> Recording:
    """Single calls fail and succeed when tried again; no caller notices."""
    with ExitStack() as stack:
        served = stack.enter_context(dependency())
        service.depends_on(served.port)
        service.start(env={service.setting("ATTEMPTS"): "3"})
        service.ready()
        service.traffic().send(service.rng, 0.6)
        broke_at = service.place.now
        served.manner, served.every = service.rng.choice(("reset", "close")), service.rng.choice((4, 5, 7))
        service.traffic(workers=1).send(service.rng, service.rng.uniform(1.2, 2.2))
        served.manner = "ok"
        service.traffic().send(service.rng, 0.6)
        return service.record(
            kind="false_alarm",
            category="benign_false_alarm",
            truth=[service.said("retried")],
            broke_at=broke_at,
            mended_at=service.place.now,
            severity="low",
            cause="single calls to {upstream} failed and succeeded on retry",
        )


def blip(service: Service, kit: Kit) -> Recording:
    """The dependency is away for a moment; the breaker opens, closes again, and all is well."""
    rng, place = service.rng, service.place
    with ExitStack() as stack:
        served = stack.enter_context(dependency())
        service.depends_on(served.port)
        service.start(env={"BREAKER_THRESHOLD": "3"})
        service.ready()
        service.traffic().send(rng, 0.6)
        broke_at = place.now
        served.manner, served.status, served.reason = "status", 503, "Service Unavailable"
        service.traffic(rate=30).send(rng, 10.0, lambda: service.heard(service.said("breaker_open"), broke_at))
        served.manner, mended_at = "ok", place.now
        service.traffic(rate=20).send(rng, rng.uniform(1.5, 2.2))
        return service.record(
            kind="false_alarm",
            category="benign_false_alarm",
            truth=[service.said("breaker_closed")],
            broke_at=broke_at,
            mended_at=mended_at,
            severity="low",
            cause="{upstream} failed for a moment and has recovered",
        )


def load_test(service: Service, kit: Kit) -> Recording:
    """A load test runs, as announced; slow answers are what it is for."""
    rng, place = service.rng, service.place
    users = rng.choice((50, 100, 200, 500))
    with ExitStack() as stack:
        served = stack.enter_context(dependency())
        service.depends_on(served.port)
        service.start(env={service.setting("TIMEOUT"): "5", "POOL_SIZE": "20"})
        service.ready()
        service.traffic().send(rng, 0.6)
        broke_at = place.now
        tool = rng.choice(("k6", "locust", "loadtest", "vegeta"))
        place.note(
            tool,
            rng.choice(
                (
                    f"{_stamp()} {tool}: load test against {service.name} started, {users} virtual users",
                    f"{_stamp()} {tool}: scheduled load test begins: target={service.name} users={users} duration=10m",
                )
            ),
        )
        served.manner, served.delay_s = "status", 0.45
        service.traffic(rate=40, workers=6, timeout_s=3).send(rng, rng.uniform(1.5, 2.2))
        served.manner = "ok"
        place.note(
            tool,
            rng.choice(
                (
                    f"{_stamp()} {tool}: load test finished, 0.0% errors, p95={rng.randrange(450, 900)}ms",
                    f"{_stamp()} {tool}: test done: all checks passed, ramping down {users} users",
                )
            ),
        )
        service.traffic().send(rng, 0.6)
        return service.record(
            kind="false_alarm",
            category="benign_false_alarm",
            truth=[rf" {tool}: "],
            broke_at=broke_at,
            mended_at=place.now,
            severity="info",
            alert="latency",
            cause="an announced load test of {service}",
        )


CALM: Scenes = {
    "quiet": ("", quiet_day, ()),
    "planned-restart": ("benign_false_alarm", planned_restart, ()),
    "rolling-deploy": ("benign_false_alarm", rolling_deploy, ()),
    "retried": ("benign_false_alarm", retried, ()),
    "blip": ("benign_false_alarm", blip, ()),
    "load-test": ("benign_false_alarm", load_test, ()),
}
"""Name, category (empty: healthy), how it is done, and what it needs."""
