"""A defect that ends the process, and an alarm about nothing."""

from __future__ import annotations

import random
import signal

from recorder import house
from recorder.incident import Alert, Incident
from recorder.servers import call
from recorder.stage import Stage

_WWW = "10.20.0.20"


def _crash(stage: Stage) -> None:
    stage.begin()
    service = [house.find("python3"), stage.shop("quote_api.py")]
    stage.python("supervise", "--name", "quote-api", *service, name="quote-api")
    stage.wait_for("quote-api", "listening")

    def quote(rng: random.Random) -> None:
        call(_WWW, 8080, "GET", f"/quote/P-{rng.randrange(400)}/{rng.randrange(1, 5)}", timeout_s=2)

    with stage.traffic(quote, seed=9, rate_per_s=12, clients=3):
        stage.wait_for("quote-api", " 200$", count=80)
        for crash in range(1, 4):

            def gift(_: random.Random) -> None:
                call(_WWW, 8080, "GET", "/quote/GIFT-CARD/1", timeout_s=2)

            with stage.traffic(gift, seed=90 + crash, rate_per_s=1, clients=1):
                stage.wait_for("quote-api", "exited with code 1", count=crash)
            stage.wait_for("quote-api", "listening", count=crash + 1)


CRASH = Incident(
    name="crash-stack-trace",
    service="quote-api",
    delivery="text",
    category="code_defect_crash",
    severity="high",
    entity="quote-api",
    title="quote-api restarted three times",
    broken="A gift card has no weight: None times a quantity ends the process, the supervisor restarts it, and "
    "the customer asks again.",
    reasoning="An unhandled TypeError with its stack trace, and exit code 1.",
    shows=(
        r"Traceback \(most recent call last\)",
        r"TypeError: unsupported operand",
        r"quote-api \(pid \d+\) exited with code 1",
    ),
    run=_crash,
)


def _false_alarm(stage: Stage) -> None:
    stage.begin()
    release = stage.python("release", name="booking-api")
    stage.wait_for("booking-api", "3.2.0 is healthy")
    stage.python("prober")

    def slots(rng: random.Random) -> None:
        call(_WWW, 8080, "GET", f"/slots/{rng.randrange(365)}", timeout_s=2)

    with stage.traffic(slots, seed=12, rate_per_s=8, clients=2):
        stage.wait_for("booking-api", " 200 ", count=60)
        release.send_signal(signal.SIGUSR1)
        stage.wait_for("prober", "probe_success=0")
        stage.fire()
        stage.wait_for("booking-api", "CHG-2231 done")
        stage.wait_for("prober", "probe_success=1 .*in_a_row=20")


FALSE_ALARM = Incident(
    name="false-alarm",
    service="booking-api",
    delivery="loki+alertmanager",
    category="benign_false_alarm",
    severity="info",
    entity="booking-api",
    title="booking-api does not answer its probe",
    broken="Nothing: a planned restart with a new version; the probe fails while the new process loads its "
    "calendar, and all is well again before anyone reads the alert.",
    reasoning="Planned, clean exit, already recovered, and stays so: benign. health_probe would be a probe that is "
    "itself wrong or that keeps failing.",
    shows=(
        r"planned restart",
        r"stopped cleanly",
        r"exited with code 0",
        r"is healthy, CHG-2231 done",
        r"in_a_row=20\b",
    ),
    run=_false_alarm,
    alert=Alert(
        name="ProbeFailed",
        severity="critical",
        summary="booking-api does not answer its probe",
        description="The health check of booking-api has failed.",
        expr='probe_success{target="booking-api"} == 0',
    ),
)
