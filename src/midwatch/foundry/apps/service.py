"""A service that keeps asking a store, and says so in its log. Started as `python service.py plan.json`.

The plan is an object: `service`, `version`, `style` (see applog), `driver` (a module beside this file with
`connect(**target)`), `target`, `routes`, `threads`, `pause_s` (mean time between requests of a thread), `pooled`
(keep a connection), `failing` (how an error is told: traceback, line, retry, bare), `quiet` (no line for a success),
`seed`, `greeting` (lines at the start). A route has `name`, `ok` (status), `steps` (texts for the driver, in which
`{id}` and `{word}` are filled; `sleep 0.5` waits), `weight`, `refused` (a status: errors are an everyday thing),
`tells` (said with the last answer in it; a warning when that is a number above `limit`). It runs until SIGTERM.
"""

from __future__ import annotations

import importlib
import json
import logging
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

BLOB = "c29tZSBieXRlcw" * 1200
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "harbor", "islet", "juniper", "kelp", "larch")
RETRIES = 3
SLOWEST = 5


class Service:
    """The routes of a plan, asked by threads."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.driver = importlib.import_module(plan["driver"])
        self.log = logging.getLogger(plan["service"])
        self.stopping = threading.Event()

    def serve(self) -> None:
        """Run until told to stop."""
        plan = self.plan
        self.log.info("starting %s %s", plan["service"], plan["version"])
        for line in plan.get("greeting", ()):
            self.log.info("%s", line)
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(plan["threads"])]
        for thread in threads:
            thread.daemon = True
            thread.start()
        self.stopping.wait()
        self.log.info("shutting down %s %s", plan["service"], plan["version"])
        for thread in threads:
            thread.join(0.2)

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self.plan['seed']}-{number}")
        weights = [route.get("weight", 1) for route in self.plan["routes"]]
        session, failures = None, 0
        while not self.stopping.wait(rng.expovariate(1 / self.plan["pause_s"]) * min(1 + failures, SLOWEST)):
            route = rng.choices(self.plan["routes"], weights)[0]
            began = time.monotonic()
            try:
                if session is None:
                    session = self.driver.connect(**self.plan["target"])
                answer = self.handle(session, route, rng)
            except Exception as error:
                session, failures = self._close(session), failures + 1
                self._tell(route, error, began, failures)
            else:
                failures = 0
                if route.get("tells"):
                    self._report(route, answer)
                elif not self.plan.get("quiet"):
                    self.log.info("%s %s %dms", route["name"], route["ok"], 1000 * (time.monotonic() - began))
                if not self.plan["pooled"]:
                    session = self._close(session)
        self._close(session)

    def _close(self, session: Any) -> Any:
        """Close a session; what is kept instead of it is none."""
        if session is not None:
            session.close()
        return None

    def handle(self, session: Any, route: dict[str, Any], rng: random.Random) -> Any:
        """One request: the steps of its route, in order. Returns the last answer."""
        values = {"id": rng.randint(1, 90), "word": rng.choice(WORDS), "other": rng.randint(1, 90)}
        values |= {"uid": f"{rng.getrandbits(48):012x}", "blob": BLOB}
        answer = None
        for step in route["steps"]:
            text = step
            for key, value in values.items():
                text = text.replace("{" + key + "}", str(value))
            text = text.replace("{huge}", BLOB * 80)
            if text.startswith("sleep "):
                self.stopping.wait(float(text.removeprefix("sleep ")))
            else:
                answer = session.run(text)
        return answer

    def _report(self, route: dict[str, Any], answer: Any) -> None:
        above = str(answer).isdigit() and int(answer) > route.get("limit", 0)
        self.log.log(logging.WARNING if above else logging.INFO, route["tells"], answer)

    def _tell(self, route: dict[str, Any], error: Exception, began: float, failures: int) -> None:
        took = 1000 * (time.monotonic() - began)
        way = self.plan["failing"]
        text = " ".join(str(error).split())
        if route.get("refused"):
            self.log.warning("%s %s: %s", route["name"], route["refused"], text)
            return
        if way == "traceback":
            self.log.error("%s failed", route["name"], exc_info=error)
        elif way == "line":
            self.log.error("%s failed: %s: %s", route["name"], type(error).__name__, text)
        elif way == "retry":
            attempt = (failures - 1) % RETRIES + 1
            self.log.warning("%s: attempt %d/%d failed, backing off: %s", route["name"], attempt, RETRIES, text)
            if attempt < RETRIES:
                return
        self.log.log(logging.WARNING if way == "retry" else logging.ERROR, "%s 500 %dms", route["name"], took)


def main() -> None:
    """Read the plan and serve it."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    importlib.import_module("applog").set_up(plan["style"], logging.INFO)
    service = Service(plan)
    signal.signal(signal.SIGTERM, lambda *_: service.stopping.set())
    service.serve()


if __name__ == "__main__":
    main()
