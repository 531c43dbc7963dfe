"""Our own small services, in several languages: how one is written into a place, started, asked and heard.

Their sources lie in `apps/`, are real programs, and speak of orders; for each run the words (`order`, `payments`,
`coupon`) are swapped for another trade's, the layout of the log and the wording of each message are drawn, so that
no two runs print alike. What the runtime itself prints is left as it is.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from midwatch.foundry.place import Place
from midwatch.foundry.props import Call, Traffic, ask
from midwatch.foundry.recording import Kind, RecordedLine, Recording

APPS = Path(__file__).parent / "apps"
MAX_LINES = 64
_HEAD, _LEAD = 12, 40
"""Of a long recording, lines kept from its beginning and lines kept before the first that tells something."""
TRADES = (
    ("checkout", "order", "payments"),
    ("billing", "invoice", "ledger"),
    ("booking", "trip", "fares"),
    ("shipping", "parcel", "carriers"),
    ("media", "clip", "transcoder"),
    ("accounts", "profile", "identity"),
    ("events", "ticket", "venues"),
    ("lending", "loan", "scoring"),
    ("insurance", "claim", "policies"),
    ("library", "lease", "licensing"),
    ("kitchen", "meal", "suppliers"),
    ("fleet", "vehicle", "tracking"),
    ("clinic", "visit", "records"),
    ("auctions", "bid", "escrow"),
)
"""Service, what it handles, whom it depends on."""
OTHER_WORDS = {
    "coupon": ("coupon", "voucher", "promo", "rebate", "campaign"),
    "receipt": ("receipt", "document", "label", "voucher", "export"),
    "customer": ("customer", "buyer", "client", "member", "tenant"),
    "next_pricing": ("next_pricing", "new_totals", "fast_quotes", "beta_discounts", "rules_v2", "dynamic_rates"),
    "acme": ("acme", "initech", "northwind", "contoso", "umbra"),
    "shop": ("shop", "core", "platform", "backend", "app"),
    "points": ("points", "credits", "stars", "bonus"),
}
PREFIXES = ("", "", "", "acme-", "core-", "prod-")
SUFFIXES = ("", "", "-api", "-service", "-svc", "-backend")
HOSTS = ("{name}", "{name}.internal", "{name}.prod.svc.cluster.local", "{name}.svc", "api.{name}.example.net")
ROOTS = ("/srv", "/app", "/opt/service", "/usr/src/app", "/home/deploy/current")
ALERTS = {
    "errors": (
        "5xx rate of {service} above 5 %",
        "{service} HighErrorRate",
        "HTTP errors on {service}",
        "{service}: SLO burn rate",
    ),
    "latency": (
        "{service} p99 latency above 1 s",
        "SlowResponses {service}",
        "{service} is slow",
        "latency SLO of {service} burning",
    ),
    "restarts": (
        "{service} restarts repeatedly",
        "InstanceDown {service}",
        "{service} is not running",
        "{service} CrashLooping",
    ),
    "queue": ("work of {service} is delayed", "{service} throughput dropped", "{service}: jobs late"),
    "none": ("",),
}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A language that our service is written in.

    `command` gives, for a place and a random source, how its program is run (the sources are in the place by then).
    `swaps` maps texts of this machine (an interpreter's folder) to what another one would print.
    """

    family: str
    formats: tuple[str, ...]
    command: Callable[[Place, random.Random], list[str]]
    phrases: str = "common"
    trades: tuple[tuple[str, str, str], ...] = TRADES
    swaps: Callable[[Place], Mapping[str, str]] = lambda place: {}


def render(text: str, words: Mapping[str, str]) -> str:
    """Swap whole words of a source text, in lower case, Capitalised, and CAPITALS before an underscore."""
    for word, other in words.items():
        text = re.sub(rf"(?<![A-Za-z]){word}(?=s?(?![a-z]))", other, text)
        text = re.sub(rf"(?<![A-Z]){word.capitalize()}(?=s?(?![a-z]))", other.capitalize(), text)
        text = re.sub(rf"(?<![A-Z]){word.upper()}(?=_)", other.upper().replace("-", "_"), text)
    return text


@dataclass(kw_only=True)
class Service:
    """A service of a place, its words drawn.

    `env` is what it is started with, `hide` what its lines must not show and what they show instead.
    """

    place: Place
    rng: random.Random
    runtime: Runtime
    name: str
    words: dict[str, str]
    phrases: dict[str, str]
    env: dict[str, str]
    port: int
    host: str
    command: list[str]
    hide: dict[str, str] = field(default_factory=dict)

    @property
    def upstream(self) -> str:
        """Whom the service depends on."""
        return self.words["payments"]

    def start(
        self,
        *arguments: str,
        wrap: Callable[[Sequence[str]], list[str]] = list,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start it, with more environment. `wrap` puts limits or mounts around its command."""
        command = wrap([*self.command, *arguments])
        folder = self.place.folder / "app"
        return self.place.start(self.name, command, env={**self.env, **(env or {})}, cwd=folder, user=user)

    def setting(self, name: str) -> str:
        """The full name of a setting about the dependency, such as `PAYMENTS_URL` for `URL`."""
        return f"{self.upstream.upper()}_{name}"

    def ready(self, *, timeout_s: float = 30.0) -> None:
        """Wait until it answers. Raises `FoundryError` if it does not."""
        self.place.wait_until(
            lambda: ask(self.port, "/healthz") > 0, timeout_s=timeout_s, what=f"{self.name} answering"
        )

    def depends_on(self, port: int, scheme: str = "http") -> None:
        """Make it depend on what listens on a port of this machine; the lines show a host of its own."""
        shown = self.rng.choice((8080, 8443, 9000, 443, 7070)) if scheme == "http" else self.rng.choice((8443, 443))
        self.env[self.setting("URL")] = f"{scheme}://localhost:{port}"
        address = f"10.{self.rng.randrange(256)}.{self.rng.randrange(256)}.{self.rng.randrange(2, 250)}"
        self.hide.update({f"localhost:{port}": f"{self.host}:{shown}", f"127.0.0.1:{port}": f"{address}:{shown}"})
        self.hide.update({f"localhost/{address}:{shown}": f"{self.host}/{address}:{shown}"})

    def said(self, key: str, **slots: str) -> str:
        """A pattern of how this run words a message, with some slots narrowed to patterns."""
        text = self.phrases[key].replace("{service}", self.name)
        parts = re.split(r"\{(\w+)\}", text.replace('"', '\\"') if "json" in self.env["LOG_FORMAT"] else text)
        shaped = [re.escape(part) if index % 2 == 0 else slots.get(part, ".*") for index, part in enumerate(parts)]
        return "".join(shaped)

    def heard(self, pattern: str, since: float) -> bool:
        """Whether a line that matches was printed at or after a moment."""
        return any(line.truth for line in self.place.lines([pattern], since=since))

    def calls(self, *, bodies: Sequence[Mapping[str, object]] = (), reads: bool = True) -> list[Call]:
        """What good callers send, or with `bodies` what is posted instead."""
        noun = self.words["order"]
        good = bodies or [good_order(self.rng) for _ in range(6)]
        posts = [("POST", f"/{noun}s", render(json.dumps(body), self.words)) for body in good]
        if not reads:
            return posts
        rare = [("GET", path, "") for path in ("/favicon.ico", "/robots.txt", f"/{noun}s/archive")]
        return [*posts, *[("GET", f"/{noun}s", "")] * 4, self.rng.choice(rare)]

    def traffic(
        self, calls: Sequence[Call] | None = None, *, rate: float = 0.0, workers: int = 3, timeout_s: float = 1.5
    ) -> Traffic:
        """Callers of this service."""
        return Traffic(
            port=self.port,
            calls=calls or self.calls(),
            rate=rate or self.rng.uniform(8, 25),
            workers=workers,
            timeout_s=timeout_s,
        )

    def record(
        self,
        *,
        kind: Kind = "fault",
        category: str = "",
        truth: Sequence[str] = (),
        broke_at: float | None = None,
        mended_at: float | None = None,
        alert: str = "errors",
        entity: str | None = None,
        names: Mapping[str, str] | None = None,
        accepted: Sequence[str] = (),
        cause: str = "",
        severity: str = "high",
    ) -> Recording:
        """What was heard, as a recording; lines that match `truth` after the break show the cause."""
        lines = self.place.lines(truth, since=broke_at or 0.0, hide=self._swaps())
        here = "\n".join(f"{line.source} {line.text}" for line in lines)
        host = "domain" if "." in self.host else "host"
        known = {self.host: host, self.name: "service", self.upstream: "service", **(names or {})}
        began = lines[0].at if lines else 0.0
        return Recording(
            id="",
            program=self.runtime.family,
            fault="",
            kind=kind,
            category=category,
            severity=severity,
            entity=self.name if entity is None or (entity and entity not in here) else entity,
            cause=cause.format(service=self.name, upstream=self.upstream),
            accepted=tuple(accepted),
            alert_title=self.rng.choice(ALERTS[alert]).format(service=self.name),
            names={name: what for name, what in known.items() if name in here},
            broke_at=None if broke_at is None else max(0.0, broke_at - began),
            mended_at=None if mended_at is None else max(0.0, mended_at - began),
            lines=trimmed(lines),
        )

    def _swaps(self) -> dict[str, str]:
        port = str(8000 + self.rng.randrange(100) * 10)
        folder = {
            str(self.place.folder / "app"): self.rng.choice(ROOTS),
            str(self.place.folder): "/var/lib/" + self.name,
        }
        return {
            **self.hide,
            **folder,
            **self.runtime.swaps(self.place),
            f"127.0.0.1:{self.port}": f"0.0.0.0:{port}",
            f":{self.port}": f":{port}",
            f"{self.port}": port,
            "127.0.0.1": f"10.{self.rng.randrange(256)}.{self.rng.randrange(256)}.{self.rng.randrange(2, 250)}",
        }


def service(place: Place, rng: random.Random, runtime: Runtime, **env: str) -> Service:
    """Draw a service and write its sources into the place."""
    trade, noun, upstream = rng.choice(runtime.trades)
    name = rng.choice(PREFIXES) + trade + rng.choice(SUFFIXES)
    words = {"order": noun, "payments": upstream, **{word: rng.choice(others) for word, others in OTHER_WORDS.items()}}
    spoken = tomllib.loads((APPS / "phrases.toml").read_text(encoding="utf-8"))[runtime.phrases]
    phrases = {key: render(rng.choice(choices), words) for key, choices in spoken.items()}
    place.write("app/phrases.json", json.dumps(phrases))
    for source in sorted((APPS / runtime.family).iterdir()):
        text = render(source.read_text(encoding="utf-8"), {**words, "checkout": name})
        place.write("app/" + render(source.name.removesuffix(".in"), words), text)
    (place.folder / "data").mkdir()
    (place.folder / "data").chmod(0o777)
    port, loud = place.free_port(), upstream.upper()
    settings = {
        "PORT": str(port),
        "VERSION": version(rng)[1],
        "DATABASE_PATH": str(place.folder / "data" / f"{noun}s.db"),
        f"{loud}_URL": "http://localhost:9",
        f"{loud}_TOKEN": "t-1",
        "POOL_SIZE": str(rng.choice((4, 5, 8, 10))),
        f"{loud}_TIMEOUT": rng.choice(("0.5", "0.4", "0.3")),
        "DATA_DIR": str(place.folder / "data"),
        "WORKERS": str(rng.choice((1, 2, 3))),
        "LOG_FORMAT": rng.choice(runtime.formats),
        **env,
    }
    return Service(
        place=place,
        rng=rng,
        runtime=runtime,
        name=name,
        words=words,
        phrases=phrases,
        env=settings,
        port=port,
        host=rng.choice(HOSTS).format(name=upstream),
        command=runtime.command(place, rng),
    )


def version(rng: random.Random) -> tuple[str, str]:
    """A version and the one after it, as a release would be named."""
    major, minor, patch = rng.randrange(4), rng.randrange(30), rng.randrange(12)
    shape = rng.choice(("v{}.{}.{}", "{}.{}.{}", "{}.{}.{}", "release-{}.{}.{}"))
    after = rng.choice(((major, minor + 1, 0), (major, minor, patch + 1), (major + 1, 0, 0)))
    return shape.format(major, minor, patch), shape.format(*after)


def good_order(rng: random.Random) -> dict[str, object]:
    """An order that our services accept."""
    lines = [
        {"price": f"{rng.randrange(1, 300)}.{rng.randrange(100):02d}", "quantity": rng.randrange(1, 5)}
        for _ in range(2)
    ]
    body: dict[str, object] = {
        "lines": lines,
        "customer": {"name": "A. Reader", "address": {"country": rng.choice(("DE", "FR", "US"))}},
    }
    if rng.random() < 0.3:
        body["coupon"] = "SPRING10"
    if rng.random() < 0.02:
        body["voucher_code"] = "old"
    return body


def trimmed(lines: tuple[RecordedLine, ...], limit: int = MAX_LINES) -> tuple[RecordedLine, ...]:
    """At most `limit` lines: the beginning, then what is around and after the first telling line. Times begin at 0."""
    if not lines:
        return lines
    telling = next((at for at, line in enumerate(lines) if line.truth), 0)
    left_out = min(max(0, len(lines) - limit), max(0, telling - _LEAD - _HEAD))
    kept = (*lines[:_HEAD], *lines[_HEAD + left_out :])[:limit]
    first = lines[0].at
    return tuple(replace(line, at=max(0.0, line.at - first)) for line in kept)
