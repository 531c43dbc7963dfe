"""The ways our services are broken, the same for every language: each is a function of a drawn service and its kit."""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from midwatch.errors import FoundryError
from midwatch.foundry.faults import Fault
from midwatch.foundry.place import Place
from midwatch.foundry.props import Dependency, certificate, deaf_port, dependency, limited, name_server, private
from midwatch.foundry.recording import Recording
from midwatch.foundry.services import Runtime, Service, good_order, render, service, version
from midwatch.foundry.supervisor import Supervisor


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A fault in the program that an order with these `fields` brings out: the error printed, and where it arises."""

    fields: Mapping[str, object]
    error: str
    function: str
    job: bool = False


@dataclass(frozen=True, kw_only=True)
class Release:
    """A new version: `after` in place of `before` in a source file, the error that it prints at once, and where."""

    file: str
    before: str
    after: str
    error: str
    function: str = ""
    at_start: bool = False


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What differs between languages. `patterns` say how its runtime words each trouble; `settings` are bad settings
    with what is printed about them (None: the setting is missing). `small` wraps a command or gives environment."""

    runtime: Runtime
    patterns: Mapping[str, str]
    defects: Sequence[Defect]
    releases: Sequence[Release]
    settings: Sequence[tuple[str, str | None, str]]
    tight_memory: Callable[[Service], tuple[Callable[[Sequence[str]], list[str]], dict[str, str]]]
    heavy: Callable[[random.Random], str]
    slow_search: Callable[[random.Random], str]
    open_files: int
    styles: tuple[str, ...] = ("supervisord", "kubelet", "keeper")
    user_command: Callable[[Service], list[str]] = lambda service: service.command
    extra: Mapping[str, Callable[[Service, Kit], Recording]] = field(default_factory=dict)


Scene = Callable[[Service, Kit], Recording]


def _calm(service: Service, *, least: float = 0.5, most: float = 1.4) -> None:
    service.traffic().send(service.rng, service.rng.uniform(least, most))


def _with_good_dependency(service: Service, stack: ExitStack) -> Dependency:
    served = stack.enter_context(dependency())
    service.depends_on(served.port)
    return served


def _supervisor(service: Service, kit: Kit, start: Callable[[], object]) -> Supervisor:
    return Supervisor(
        place=service.place,
        rng=service.rng,
        name=service.name,
        style=service.rng.choice(kit.styles),
        start=start,  # type: ignore[arg-type]
    )


def _where(kit: Kit, service: Service, function: str) -> str:
    return kit.patterns["frame"].format(function=render(function, service.words)) if function else r"\A\Z"


def out_of_memory(service: Service, kit: Kit) -> Recording:
    """A report that needs more memory than there is."""
    wrap, env = kit.tight_memory(service)
    watcher = _supervisor(service, kit, lambda: service.start(wrap=wrap, **env))
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        process = watcher.start()
        service.ready()
        _calm(service)
        broke_at = service.place.now
        heavy = [("GET", kit.heavy(service.rng), "")]
        service.traffic([*service.calls(), *heavy * 4], timeout_s=6).send(
            service.rng, 4.0, lambda: process.poll() is not None
        )
        if process.poll() is not None:
            service.place.stop(process)
            watcher.died(process.returncode)
        return service.record(
            category="oom_memory", truth=[kit.patterns["oom"]], broke_at=broke_at, severity="critical",
            alert=service.rng.choice(("errors", "restarts")), cause="{service} ran out of memory while building a report",
        )  # fmt: skip


def defect_in_requests(service: Service, kit: Kit) -> Recording:
    """An input that nobody thought of: some requests end in an unhandled error."""
    defect = service.rng.choice([one for one in kit.defects if not one.job])
    bad = [{**good_order(service.rng), **defect.fields} for _ in range(4)]
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start()
        service.ready()
        _calm(service)
        broke_at = service.place.now
        calls = [*service.calls(), *service.calls(bodies=bad, reads=False) * service.rng.choice((1, 2))]
        service.traffic(calls).send(service.rng, service.rng.uniform(1.2, 2.5))
        return service.record(
            category="code_defect_crash", truth=[defect.error, _where(kit, service, defect.function)], broke_at=broke_at,
            cause="some requests to {service} end in an unhandled error, from a defect in its code",
        )  # fmt: skip


def defect_in_worker(service: Service, kit: Kit) -> Recording:
    """A job that kills the thread which works on it."""
    defect = service.rng.choice([one for one in kit.defects if one.job])
    bad = [{**good_order(service.rng), **defect.fields}]
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start(QUEUE_LIMIT="10")
        service.ready()
        _calm(service)
        broke_at = service.place.now
        calls = [*service.calls() * 2, *service.calls(bodies=bad, reads=False) * 3]
        service.traffic(calls).send(service.rng, service.rng.uniform(1.5, 2.5))
        return service.record(
            category="code_defect_crash", truth=[defect.error, kit.patterns["thread"], _where(kit, service, defect.function)],
            broke_at=broke_at, alert=service.rng.choice(("queue", "errors")),
            cause="a worker of {service} died of an unhandled error",
        )  # fmt: skip


def defect_in_spool(service: Service, kit: Kit) -> Recording:
    """A file that the consumer cannot read: it dies, is started again, and meets the same file."""
    defect = service.rng.choice([one for one in kit.defects if not one.job])
    quiet = service.rng.random() < 0.3
    spool = service.place.folder / "data"

    def put(name: str, order: Mapping[str, object]) -> None:
        (spool / f"{name}.part").write_text(render(__import__("json").dumps(order), service.words))
        (spool / f"{name}.part").rename(spool / f"{name}.json")

    for number in range(service.rng.randrange(2, 6)):
        put(f"a-{1000 + number}", good_order(service.rng))
    _with_good_dependency(service, stack := ExitStack())
    with stack:
        watcher = _supervisor(service, kit, lambda: service.start("worker", ASYNC="1" if quiet else "0"))
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
            category="code_defect_crash", truth=[defect.error, _where(kit, service, defect.function)], broke_at=broke_at,
            alert="restarts", cause="a message that {service} cannot process crashes its consumer",
        )  # fmt: skip


def defect_behind_flag(service: Service, kit: Kit) -> Recording:
    """A feature flag is turned on, and what it enables does not work."""
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start()
        service.ready()
        _calm(service)
        broke_at = service.place.now
        service.traffic([("GET", "/flags/next_pricing", "")], workers=1, rate=1).send(service.rng, 0.05)
        plain = [{k: v for k, v in good_order(service.rng).items() if k != "coupon"} for _ in range(4)]
        service.traffic([*service.calls(bodies=plain, reads=False), *service.calls()]).send(service.rng, 1.8)
        truth = [kit.patterns["flag"], service.said("flag_on"), _where(kit, service, kit.patterns["flag_function"])]
        return service.record(
            category="code_defect_crash", accepted=("deploy_regression",), truth=truth, broke_at=broke_at,
            cause="a feature that a flag turned on in {service} fails with an unhandled error",
        )  # fmt: skip


def bad_setting(service: Service, kit: Kit) -> Recording:
    """A setting is missing or wrong; the program cannot start, again and again."""
    name, value, error = service.rng.choice(kit.settings)
    name = render(name, service.words)
    if value == "FILE":
        value = str(service.place.write("limits.json", '{\n  "queue": 200,\n}\n'))
        service.hide[value] = f"/etc/{service.name}/limits.json"
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        if service.rng.random() < 0.5:
            before = service.start()
            service.ready()
            _calm(service)
            service.place.stop(before)
        broke_at = service.place.now
        if value is None:
            service.env.pop(name)
        else:
            service.env[name] = value
        _supervisor(service, kit, service.start).crash_loop(service.rng.randrange(2, 5), lives_s=8)
        return service.record(
            category="config_env_error", truth=[render(error, service.words)], broke_at=broke_at, severity="critical",
            alert="restarts", entity=name, names={name: "setting"},
            cause="{service} cannot start, because the setting " + name + (" is missing" if value is None else " is not valid"),
        )  # fmt: skip


def bad_release(service: Service, kit: Kit) -> Recording:
    """A new version is started, and errors begin at once."""
    release = service.rng.choice(kit.releases)
    before, after = version(service.rng)
    service.env["VERSION"] = before
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        old = service.start()
        service.ready()
        _calm(service)
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
            _supervisor(service, kit, lambda: service.start(**env)).crash_loop(3, lives_s=8)
        else:
            service.start(**env)
            service.ready()
            service.traffic().send(service.rng, service.rng.uniform(1.2, 2.2))
        truth = [
            service.said("replaced"),
            r"(?i)\brollout of",
            render(release.error, service.words),
            _where(kit, service, release.function),
        ]
        return service.record(
            category="deploy_regression", accepted=("code_defect_crash",), truth=truth, broke_at=broke_at, severity="critical",
            alert="restarts" if release.at_start else "errors", names={before: "version", after: "version"},
            cause="errors of {service} began right after " + f"{after} replaced {before}",
        )  # fmt: skip


def _rollout_words(service: Service, before: str, after: str) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return service.rng.choice(
        (
            f"{stamp} deploy: rollout of {service.name} {after} started (replaces {before})",
            f"{stamp} [deploy] Rollout of {service.name}: {before} -> {after}",
            f"{stamp} release-bot rollout of {service.name}:{after} to production (was {before})",
        )
    )


def name_not_found(service: Service, kit: Kit) -> Recording:
    """The name of the dependency cannot be resolved."""
    place, rng = service.place, service.rng
    host = service.host if "." in service.host else service.host + ".internal"
    loop = f"127.0.{rng.randrange(1, 250)}.{rng.randrange(2, 250)}"
    resolver = place.write("resolv.conf", f"nameserver {loop}\noptions timeout:1 attempts:1\n")
    service.env[f"{service.upstream.upper()}_URL"] = f"http://{host}:{rng.choice((80, 8080, 443))}"
    with name_server(loop, rng.choice((2, 3, 3, 3, 5, None))):
        broke_at = place.now
        service.start(wrap=lambda command: private(command, f"--bind {resolver} /etc/resolv.conf"))
        service.ready()
        service.traffic(rate=8, timeout_s=4).send(rng, rng.uniform(2.0, 3.0))
        return service.record(
            category="dns_resolution", truth=[kit.patterns["dns"]], broke_at=broke_at, entity=host,
            names={host: "host"}, cause=f"the name {host} cannot be resolved",
        )  # fmt: skip


def unreachable(service: Service, kit: Kit) -> Recording:
    """The dependency refuses, resets, or does not answer connections."""
    rng, place = service.rng, service.place
    manner = rng.choice(("refused", "refused", "reset", "close", "deaf", "silent"))
    mended_at = None
    with ExitStack() as stack:
        outer = stack.enter_context(ExitStack())
        served = _with_good_dependency(service, outer)
        service.start(**{f"{service.upstream.upper()}_ATTEMPTS": rng.choice(("1", "2", "3"))})
        service.ready()
        _calm(service)
        broke_at = place.now
        if manner in ("refused", "deaf"):
            outer.close()
            if manner == "deaf":
                stack.enter_context(deaf_port(served.port))
        else:
            served.manner = manner  # type: ignore[assignment]
        service.traffic(timeout_s=3).send(rng, rng.uniform(1.2, 2.4))
        if manner == "refused" and rng.random() < 0.3:
            stack.enter_context(dependency(served.port))
            mended_at = place.now
            _calm(service)
        return service.record(
            category="network_connectivity", accepted=("dependency_failure",), truth=[kit.patterns[manner]], broke_at=broke_at,
            mended_at=mended_at, entity=service.upstream, cause="{service} cannot reach {upstream} over the network",
        )  # fmt: skip


def failing_dependency(service: Service, kit: Kit) -> Recording:
    """The dependency answers with errors of its own until the breaker opens."""
    rng, mended_at = service.rng, None
    status, reason = rng.choice(
        ((500, "Internal Server Error"), (502, "Bad Gateway"), (503, "Service Unavailable"), (504, "Gateway Timeout"))
    )
    with ExitStack() as stack:
        served = _with_good_dependency(service, stack)
        service.start(BREAKER_THRESHOLD=str(rng.randrange(3, 7)))
        service.ready()
        _calm(service)
        broke_at = service.place.now
        served.status, served.reason, served.manner = status, reason, "status"
        service.traffic(rate=30).send(rng, rng.uniform(1.2, 2.4))
        if rng.random() < 0.25:
            served.manner, mended_at = "ok", service.place.now
            _calm(service, least=1.0)
        truth = [service.said("upstream_status"), service.said("breaker_open"), service.said("breaker_rejects")]
        return service.record(
            category="dependency_failure", truth=truth, broke_at=broke_at, mended_at=mended_at, entity=service.upstream,
            cause=f"{{upstream}} answers {{service}} with {status} {reason}",
        )  # fmt: skip


def out_of_files(service: Service, kit: Kit) -> Recording:
    """Files that are never closed, until no more may be opened."""
    service.place.write("data/catalogue.csv", "sku,price\n1,9.90\n")
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start(wrap=lambda command: limited(command, n=kit.open_files))
        service.ready()
        _calm(service)
        broke_at = service.place.now
        service.traffic([*service.calls(), *[("GET", "/catalogue", "")] * 8], rate=60).send(service.rng, 2.2)
        return service.record(
            category="connection_exhaustion", truth=[kit.patterns["files"]], broke_at=broke_at,
            cause="{service} has too many open files, up to its limit",
        )  # fmt: skip


def pool_exhausted(service: Service, kit: Kit) -> Recording:
    """Connections that are lent and not given back, until the pool is empty."""
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start()
        service.ready()
        _calm(service)
        broke_at = service.place.now
        calls = [*service.calls(), *[("GET", "/lend", "")] * 3]
        service.traffic(calls, rate=30, workers=6).send(service.rng, service.rng.uniform(1.8, 2.8))
        return service.record(
            category="connection_exhaustion", truth=[service.said("pool_exhausted")], broke_at=broke_at,
            cause="the connection pool of {service} is exhausted",
        )  # fmt: skip


def rate_limited(service: Service, kit: Kit) -> Recording:
    """The dependency says 429, with a Retry-After."""
    with ExitStack() as stack:
        served = _with_good_dependency(service, stack)
        service.start(**{f"{service.upstream.upper()}_ATTEMPTS": service.rng.choice(("1", "2"))})
        service.ready()
        _calm(service)
        broke_at = service.place.now
        served.status, served.reason, served.manner = 429, "Too Many Requests", "status"
        served.headers = {"Retry-After": str(service.rng.choice((1, 5, 30, 60)))}
        served.every = service.rng.choice((1, 1, 2))
        service.traffic().send(service.rng, service.rng.uniform(1.2, 2.2))
        return service.record(
            category="quota_rate_limit", truth=[service.said("upstream_limited")], broke_at=broke_at, entity=service.upstream,
            cause="{upstream} limits the rate of calls from {service}",
        )  # fmt: skip


DENIALS = (
    (401, "Unauthorized", '{"error": "token expired"}'),
    (401, "Unauthorized", '{"error":"invalid_token","error_description":"The access token expired"}'),
    (401, "Unauthorized", '{"message": "signature verification failed"}'),
    (403, "Forbidden", '{"error": "insufficient_scope", "scope": "write"}'),
    (403, "Forbidden", '{"message": "service account is not authorized for this resource"}'),
    (401, "Unauthorized", '{"error": "API key revoked"}'),
)


def denied(service: Service, kit: Kit) -> Recording:
    """The dependency no longer accepts the token."""
    with ExitStack() as stack:
        served = _with_good_dependency(service, stack)
        service.start()
        service.ready()
        _calm(service)
        broke_at = service.place.now
        served.status, served.reason, served.body = service.rng.choice(DENIALS)
        served.manner = "status"
        service.traffic().send(service.rng, service.rng.uniform(1.2, 2.2))
        return service.record(
            category="authn_authz", truth=[service.said("upstream_denied")], broke_at=broke_at, entity=service.upstream,
            cause="{upstream} rejects the credentials of {service}",
        )  # fmt: skip


def bad_certificate(service: Service, kit: Kit) -> Recording:
    """The dependency's certificate has expired, is not trusted, or is another host's."""
    rng, place = service.rng, service.place
    kind = rng.choice(("expired", "expired", "untrusted", "other"))
    host = service.host if "." in service.host else service.host + ".internal"
    other = "staging." + host
    made = certificate(
        place.folder / "tls", other if kind == "other" else host, days=-rng.randrange(1, 40) if kind == "expired" else 90,
        alias=other if kind == "other" else "localhost",
    )  # fmt: skip
    with dependency(certificate=made) as served:
        service.host = host
        service.depends_on(served.port, "https")
        service.hide["localhost"] = host
        if kind != "untrusted":
            service.env[f"{service.upstream.upper()}_CA"] = str(made.cert)
        broke_at = place.now
        service.start()
        service.ready()
        service.traffic().send(rng, rng.uniform(1.5, 2.5))
        return service.record(
            category="tls_cert_expiry", truth=[kit.patterns[f"tls_{kind}"]], broke_at=broke_at, entity=service.upstream,
            names={host: "host"}, cause=f"the certificate of {{upstream}} is not accepted ({kind})",
        )  # fmt: skip


def own_certificate(service: Service, kit: Kit) -> Recording:
    """The service's own certificate has expired: its callers end the handshake with an alert."""
    rng, place = service.rng, service.place
    host = service.name + ".example.net"
    made = certificate(place.folder / "tls", host, days=-rng.randrange(1, 30))
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start(TLS_CERT=str(made.cert), TLS_KEY=str(made.key))
        place.wait_for(service.said("listening"), timeout_s=30)
        broke_at = place.now
        strict = ssl.create_default_context(cafile=str(made.cert))
        deadline = place.now + rng.uniform(1.2, 2.0)
        while place.now < deadline:
            with suppress(OSError), __import__("socket").create_connection(("127.0.0.1", service.port), 1) as raw:
                strict.wrap_socket(raw, server_hostname="localhost")
            time.sleep(rng.uniform(0.05, 0.2))
        return service.record(
            category="tls_cert_expiry", truth=[kit.patterns["tls_alert"]], broke_at=broke_at,
            cause="callers of {service} refuse its certificate, which has expired",
        )  # fmt: skip


def disk_full(service: Service, kit: Kit) -> Recording:
    """The volume that receipts are written to is small and gets full."""
    data = Path(service.env["DATA_DIR"])
    receipts, database = service.place.folder / "files", service.rng.random() < 0.3
    receipts.mkdir()
    service.env["DATA_DIR"] = str(data if database else receipts)
    size = service.rng.choice((96, 128, 200))
    wrap = lambda command: private(command, f"-t tmpfs -o size={size}k tmpfs {service.env['DATA_DIR']}")  # noqa: E731
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        broke_at = service.place.now
        service.start(wrap=wrap, RECEIPTS="1", RECEIPT_BYTES=str(service.rng.choice((9000, 15000, 20000))))
        service.ready()
        service.traffic(rate=20).send(service.rng, service.rng.uniform(2.2, 3.2))
        return service.record(
            category="disk_storage_full", truth=[kit.patterns["full"]], broke_at=broke_at,
            cause="the disk that {service} writes to is full",
        )  # fmt: skip


def bad_volume(service: Service, kit: Kit) -> Recording:
    """The volume for receipts is missing, read-only, or not ours to write to."""
    kind = service.rng.choice(("missing", "readonly", "denied"))
    volume = service.place.folder / "volume"
    service.hide[str(volume)] = service.rng.choice(("/mnt/receipts", "/data", "/var/lib/app/files", "/mnt/nfs/export"))
    service.env["DATA_DIR"] = str(volume / "outgoing" if kind == "missing" else volume)
    if kind != "missing":
        volume.mkdir(mode=0o755)
    wrap: Callable[[Sequence[str]], list[str]] = list
    if kind == "readonly":
        wrap = lambda command: private(command, f"-t tmpfs -o ro,size=64k tmpfs {volume}")  # noqa: E731
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        broke_at = service.place.now
        if kind == "denied":
            service.command = kit.user_command(service)
        service.start(wrap=wrap, RECEIPTS="1", user="nobody" if kind == "denied" else None)
        service.ready()
        service.traffic().send(service.rng, service.rng.uniform(1.5, 2.5))
        return service.record(
            category="storage_volume_mount", accepted=("authn_authz",) if kind == "denied" else (), broke_at=broke_at,
            truth=[kit.patterns[f"volume_{kind}"]], entity=service.hide[str(volume)],
            names={service.hide[str(volume)]: "volume"}, cause=f"{{service}} cannot use its volume ({kind})",
        )  # fmt: skip


def busy(service: Service, kit: Kit) -> Recording:
    """Requests that cost seconds of CPU each, so that nothing else gets its turn."""
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        service.start(WATCH_CPU="1")
        service.ready()
        _calm(service)
        broke_at = service.place.now
        search = [("GET", kit.slow_search(service.rng), "") for _ in range(3)]
        service.traffic([*service.calls(), *search], workers=6, timeout_s=4).send(
            service.rng, service.rng.uniform(3.5, 5.0)
        )
        return service.record(
            category="cpu_saturation", truth=[service.said("busy")], broke_at=broke_at, alert="latency",
            cause="{service} uses all of its CPU, so that requests wait",
        )  # fmt: skip


def failing_probe(service: Service, kit: Kit) -> Recording:
    """The supervisor's health check fails, so it restarts a program that may well be working."""
    rng = service.rng
    kind = rng.choice(("unready", "path", "port"))
    reasons = ("warm-up of the cache not finished", "last sync is 312 s old", "migrations pending", "leader not known")
    env = {"BROKEN": rng.choice(reasons)} if kind == "unready" else {}
    watcher = _supervisor(service, kit, lambda: service.start(**env))
    wrong = service.place.free_port()
    address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(2, 250)}"
    why = f'Get "http://{address}:8081/healthz": dial tcp {address}:8081: connect: connection refused'
    if kind == "path":
        watcher.probe = rng.choice(("/health", "/ready", "/live", "/status"))
    elif kind == "port":
        watcher.probe_port = wrong
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        broke_at = service.place.now
        for _ in range(rng.choice((1, 2))):
            process = watcher.start()
            watcher.say("started", pid=process.pid)
            service.ready()
            _calm(service, least=0.3, most=0.6)
            watcher.probing(process, why, port=service.port)
        truth = [
            r"(?i)probe failed|health check (of \S+ )?failed|did not pass|failed liveness|unhealthy|health checks failed|failed checks"
        ]
        return service.record(
            category="health_probe", truth=[*truth, service.said("unready")], broke_at=broke_at, alert="restarts",
            cause="the health check of {service} fails, so it is restarted",
        )  # fmt: skip


def backlog(service: Service, kit: Kit) -> Recording:
    """More work than the consumers can do; some of it ends as dead letters."""
    failing = service.rng.random() < 0.5
    with ExitStack() as stack:
        _with_good_dependency(service, stack)
        env = {"JOB_SECONDS": "0.02" if failing else "0.4", "WORKERS": "1", "QUEUE_LIMIT": str(service.rng.choice((4, 6, 8))),
               "JOB_FAILURES": "0.9" if failing else "0"}  # fmt: skip
        service.start(**env)
        service.ready()
        broke_at = service.place.now
        service.traffic(rate=30, workers=5).send(service.rng, service.rng.uniform(3.0, 4.5))
        return service.record(
            category="queue_backlog", truth=[service.said("queue_high"), service.said("dead_letter")], broke_at=broke_at,
            alert="queue", cause="the jobs of {service} pile up faster than its workers do them",
        )  # fmt: skip


SCENES: Mapping[str, tuple[str, Scene, tuple[str, ...]]] = {
    "oom": ("oom_memory", out_of_memory, ()),
    "unhandled": ("code_defect_crash", defect_in_requests, ()),
    "worker-died": ("code_defect_crash", defect_in_worker, ()),
    "poison-message": ("code_defect_crash", defect_in_spool, ()),
    "feature-flag": ("code_defect_crash", defect_behind_flag, ()),
    "bad-setting": ("config_env_error", bad_setting, ()),
    "bad-release": ("deploy_regression", bad_release, ()),
    "dns": ("dns_resolution", name_not_found, ("unshare",)),
    "unreachable": ("network_connectivity", unreachable, ()),
    "dependency-5xx": ("dependency_failure", failing_dependency, ()),
    "open-files": ("connection_exhaustion", out_of_files, ()),
    "pool": ("connection_exhaustion", pool_exhausted, ()),
    "upstream-429": ("quota_rate_limit", rate_limited, ()),
    "upstream-denied": ("authn_authz", denied, ()),
    "upstream-certificate": ("tls_cert_expiry", bad_certificate, ("openssl",)),
    "own-certificate": ("tls_cert_expiry", own_certificate, ("openssl",)),
    "disk-full": ("disk_storage_full", disk_full, ("unshare",)),
    "volume": ("storage_volume_mount", bad_volume, ("unshare",)),
    "busy": ("cpu_saturation", busy, ()),
    "probe": ("health_probe", failing_probe, ()),
    "backlog": ("queue_backlog", backlog, ()),
}
"""Name, category, how it is done, and what it needs."""


def faults_of(
    kit: Kit, scenes: Mapping[str, tuple[str, Scene, tuple[str, ...]]], needs: tuple[str, ...]
) -> list[Fault]:
    """The scenes, done with a kit, as faults."""

    def fault(name: str, category: str, scene: Scene, more: tuple[str, ...]) -> Fault:
        full = f"{kit.runtime.family}-{name}"

        def record(place: Place, rng: random.Random) -> Recording:
            made = scene(service(place, rng, kit.runtime), kit)
            return replace(made, fault=full, id=full)

        return Fault(name=full, program=kit.runtime.family, category=category, needs=(*needs, *more), record=record)

    return [fault(name, *scene) for name, scene in scenes.items()]
