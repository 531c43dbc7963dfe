"""What HAProxy says when servers, their checks, its configuration, its limits or certificates are wrong."""

from __future__ import annotations

import random
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

from midwatch.foundry.faults.haproxy.server import Balancer, balancer
from midwatch.foundry.place import Place
from midwatch.foundry.props import certificate, deaf_port, dependency, limited
from midwatch.foundry.services.supervisor import Supervisor
from midwatch.foundry.stage import Told


def server_lost(place: Place, rng: random.Random) -> Told:
    """One of two servers can no longer be reached; the other goes on."""
    edge = balancer(place, rng)
    deaf = rng.random() < 0.4
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        gone = first.enter_context(dependency()).port
        stays = stack.enter_context(dependency()).port
        edge.start(edge.configure(gone, stays, checked="check inter 150ms fall 2 rise 2"))
        edge.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        first.close()
        if deaf:
            stack.enter_context(deaf_port(gone))
        edge.traffic().send(rng, rng.uniform(1.4, 2.4))
        return edge.told(
            f"a server of {edge.back} cannot be reached",
            [r"is DOWN, reason: Layer4 (connection problem|timeout)"],
            broke,
            accepted=("dependency_failure", "health_probe", "service_routing"),
        )


def no_server(place: Place, rng: random.Random) -> Told:
    """All servers are down, so the backend has none that could serve."""
    edge = balancer(place, rng)
    count = rng.choice((1, 2, 3))
    with ExitStack() as stack:
        servers = stack.enter_context(ExitStack())
        ports = [servers.enter_context(dependency()).port for _ in range(count)]
        edge.start(edge.configure(*ports))
        edge.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        servers.close()
        edge.traffic().send(rng, rng.uniform(1.6, 2.6))
        truth = [r"has no server available", r"/<NOSRV> .* 503 ", r"is DOWN, reason: Layer4"]
        accepted = ("network_connectivity", "dependency_failure", "health_probe")
        return edge.told(f"backend {edge.back} has no server that could serve", truth, broke, accepted=accepted)


def check_failing(place: Place, rng: random.Random) -> Told:
    """The health check asks for a path that servers do not have, or they say that they are not well."""
    edge = balancer(place, rng)
    path = rng.choice(("/health", "/healthz", "/status", "/ping"))
    status, reason = rng.choice(((404, "Not Found"), (503, "Service Unavailable"), (500, "Internal Server Error")))
    with ExitStack() as stack:
        served = [stack.enter_context(dependency()) for _ in range(rng.choice((1, 2)))]
        ports = [one.port for one in served]
        edge.start(edge.configure(*ports, back=f"  option httpchk GET {path}"))
        edge.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        for one in served:
            one.status, one.reason, one.manner = status, reason, "status"
        edge.traffic().send(rng, rng.uniform(1.2, 2.0))
        truth = [r"is DOWN, reason: Layer7 wrong status", r"has no server available"]
        return edge.told(
            f"the health checks of {edge.back} fail", truth, broke, accepted=("dependency_failure", "service_routing")
        )


def server_failing(place: Place, rng: random.Random) -> Told:
    """A server takes requests and does not answer, or answers badly; there is no check that would take it out."""
    edge = balancer(place, rng)
    manner = rng.choice(("silent", "close", "reset", "garbage"))
    with dependency() as served:
        edge.start(edge.configure(served.port, checked=""))
        edge.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        served.manner = manner  # type: ignore[assignment]
        edge.traffic().send(rng, rng.uniform(1.6, 2.6))
        truth = [rf" {edge.back}/\S+ .* (sH|SH|SD|PH|sD|sC|SC)--"]
        return edge.told(
            f"the server of {edge.back} does not answer properly", truth, broke, accepted=("network_connectivity",)
        )


_BROKEN = (
    ("  balnce leastconn", ""),
    ("  timeout serverr 5s", ""),
    ("  option httpcheck GET /", ""),
    ("  timeout server 5 seconds", ""),
    ("  server extra", ""),
    ("  http-request set-header X-A", ""),
    ("  server extra 10.0.0.4:99999 check", ""),
    ("  balance fastest", ""),
    ("", "  use_backend missing_pool if { path /x }"),
    ("", "  acl is_api path_begg /api"),
    ("", "  bind :443 ssl crt /etc/haproxy/certs/missing.pem"),
)
"""Lines of a backend, and lines of a frontend, that are wrong."""


def config_refused(place: Place, rng: random.Random) -> Told:
    """A configuration that HAProxy does not take."""
    edge = balancer(place, rng)
    back, front = rng.choice(_BROKEN)
    config = edge.configure(place.free_port(), back=back, front=front)
    broke = place.now
    style = rng.choice(("supervisord", "keeper", "kubelet"))
    Supervisor(
        place=place, rng=rng, name="haproxy", style=style, start=lambda: place.start("haproxy", edge.command(config))
    ).crash_loop(rng.choice((1, 2, 3)), lives_s=5)
    return edge.told("HAProxy refuses its configuration", [r"\[ALERT\] .* config : "], broke, entity="haproxy")


def port_taken(place: Place, rng: random.Random) -> Told:
    """Another program listens on the port."""
    edge = balancer(place, rng)
    with dependency(edge.port):
        broke = place.now
        for _ in range(rng.choice((1, 2, 3))):
            place.run("haproxy", edge.command(edge.configure(place.free_port())), timeout_s=5)
        truth = [r"cannot bind socket \(Address already in use\)"]
        accepted = ("connection_exhaustion", "network_connectivity")
        return edge.told("HAProxy cannot listen: its port is taken", truth, broke, entity="haproxy", accepted=accepted)


def name_unknown(place: Place, rng: random.Random) -> Told:
    """The name of a server cannot be resolved, at the start or while HAProxy runs."""
    edge = balancer(place, rng)
    name = rng.choice(("orders.internal", "api.prod.svc.cluster.local", "app.service.consul", "web-1.example.net"))
    broke = place.now
    if rng.random() < 0.5:
        config = edge.configure(8080, host=name)
        for _ in range(rng.choice((1, 2))):
            place.run("haproxy", edge.command(config), timeout_s=8)
    else:
        edge.start(edge.configure(8080, host=name, checked="check inter 300ms init-addr libc,none"))
        edge.traffic().send(rng, rng.uniform(1.4, 2.2))
    truth = [r"could not resolve address"]
    told = edge.told(f"HAProxy cannot resolve {name}", truth, broke, accepted=("config_env_error", "service_routing"))
    return replace(told, names={**told.names, name: "domain"})


def too_many(place: Place, rng: random.Random) -> Told:
    """The server takes fewer connections at once than clients bring; the rest wait and give up."""
    edge = balancer(place, rng)
    with dependency() as served:
        edge.start(edge.configure(served.port, checked="maxconn 1"))
        edge.traffic(rate=4, workers=1).send(rng, rng.uniform(0.8, 1.4))
        broke = place.now
        served.manner, served.status, served.delay_s = "status", 200, 0.35
        edge.traffic(rate=40, workers=8).send(rng, rng.uniform(1.8, 2.6))
        return edge.told(
            f"requests for {edge.back} wait longer for a free connection than they may",
            [rf" {edge.back}/\S+ .* sQ--"],
            broke,
            accepted=("queue_backlog", "cpu_saturation", "dependency_failure"),
        )


def few_files(place: Place, rng: random.Random) -> Told:
    """It may not open as many files as its maxconn needs."""
    edge = balancer(place, rng)
    config = edge.configure(place.free_port(), top=f"  maxconn {rng.choice((2000, 4000, 20000))}")
    broke = place.now
    limit = rng.choice((64, 128, 256))
    for _ in range(rng.choice((1, 2))):
        place.run("haproxy", limited(edge.command(config), n=limit), timeout_s=2)
    truth = [r"Cannot raise FD limit|FD limit \(\d+\) too low|Please raise 'ulimit-n'|automatic maxconn"]
    return edge.told(
        "HAProxy may not open enough files", truth, broke, entity="haproxy", accepted=("config_env_error",)
    )


def rate_limit(place: Place, rng: random.Random) -> Told:
    """Clients call more often than a rule allows, and get 429."""
    edge = balancer(place, rng)
    rule = (
        "  stick-table type ip size 10k expire 10s store http_req_rate(2s)\n  http-request track-sc0 src\n"
        f"  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {rng.choice((12, 15, 20))} }}"
    )
    with dependency() as served:
        edge.start(edge.configure(served.port, front=rule))
        edge.traffic(rate=4, workers=1).send(rng, rng.uniform(1.0, 1.8))
        broke = place.now
        edge.traffic(rate=40, workers=5).send(rng, rng.uniform(1.2, 2.0))
        return edge.told("clients exceed the rate that HAProxy allows", [r" 429 .* PR--"], broke, entity=edge.front)


def denied(place: Place, rng: random.Random) -> Told:
    """A rule or a missing password keeps clients out."""
    edge = balancer(place, rng)
    users, top = rng.random() < 0.5, ""
    rule = "  http-request deny if !{ src 10.0.0.0/8 }"
    if users:
        top = "userlist staff\n  user alice insecure-password secret\n"
        rule = "  http-request auth realm staff if !{ http_auth(staff) }"
    with dependency() as served:
        broke = place.now
        config = edge.configure(served.port, front=rule)
        if top:
            config.write_text(top + config.read_text())
        edge.start(config)
        edge.traffic(rate=8).send(rng, rng.uniform(1.2, 2.2))
        return edge.told(
            "HAProxy denies access",
            [r" (401|403) .* (PR|LR)--"],
            broke,
            entity=edge.front,
            accepted=("config_env_error",),
        )


def handshake_refused(place: Place, rng: random.Random) -> Told:
    """The certificate has expired, so that clients end the handshake; or it cannot be loaded; or a server's is bad."""
    edge = balancer(place, rng)
    kind = rng.choice(("clients", "clients", "file", "server"))
    host = rng.choice(("shop.example.com", "api.example.org"))
    made = certificate(place.folder / "tls", host, days=-rng.randrange(1, 40))
    both = place.write("tls/site.pem", made.cert.read_text() + ("" if kind == "file" else made.key.read_text()))
    broke = place.now
    bind = f"127.0.0.1:{edge.port} ssl crt {both}"
    if kind == "file":
        place.run("haproxy", edge.command(edge.configure(place.free_port(), bind=bind)), timeout_s=5)
        truth = [
            r"unable to load SSL (certificate|private key)|No Private Key found|inconsistencies between private key"
        ]
        return edge.told(
            "HAProxy cannot load its certificate", truth, broke, entity="haproxy", accepted=("config_env_error",)
        )
    if kind == "server":
        with dependency(certificate=made) as served:
            options = f"ssl verify required ca-file {made.cert} check inter 200ms fall 2"
            edge.start(edge.configure(served.port, checked=options))
            edge.traffic().send(rng, rng.uniform(1.4, 2.2))
            truth = [r"SSL handshake failure", r"certificate verify failed"]
            return edge.told(f"the certificate of the server of {edge.back} is not accepted", truth, broke)
    edge.start(edge.configure(place.free_port(), bind=bind, checked=""))
    _handshakes(edge, made.cert.read_text(), host)
    return edge.told(
        "clients do not accept the certificate of HAProxy", [r"SSL handshake failure"], broke, entity=edge.front
    )


def _handshakes(edge: Balancer, trusted: str, host: str) -> None:
    strict = ssl.create_default_context(cadata=trusted)
    strict.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = edge.place.now + edge.rng.uniform(1.2, 2.2)
    while edge.place.now < ends:
        with suppress(OSError), socket.create_connection(("127.0.0.1", edge.port), 1) as raw:
            strict.wrap_socket(raw, server_hostname=host)
        time.sleep(edge.rng.uniform(0.05, 0.2))


def maintenance(place: Place, rng: random.Random) -> Told:
    """An operator takes a server out and puts it back; the other serves meanwhile."""
    edge = balancer(place, rng)
    with dependency() as first, dependency() as second:
        edge.start(edge.configure(first.port, second.port))
        edge.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        server = f"{edge.back}/{edge.server.format(1)}"
        edge.order(f"disable server {server}")
        edge.traffic().send(rng, rng.uniform(0.8, 1.4))
        edge.order(f"enable server {server}")
        edge.traffic().send(rng, rng.uniform(0.6, 1.0))
        truth = [r"going DOWN for maintenance", r"is UP/READY|leaving forced maintenance"]
        cause = f"a server of {edge.back} was taken out for maintenance and put back"
        return edge.told(cause, truth, broke, mended_at=place.now, severity="info")


def server_back(place: Place, rng: random.Random) -> Told:
    """A server restarts: its check fails for a moment and passes again, and the other serves meanwhile."""
    edge = balancer(place, rng)
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        gone = first.enter_context(dependency()).port
        stays = stack.enter_context(dependency()).port
        edge.start(edge.configure(gone, stays, checked="check inter 150ms fall 2 rise 2"))
        edge.traffic().send(rng, rng.uniform(0.6, 1.0))
        broke = place.now
        first.close()
        place.wait_for(r"is DOWN", since=broke, timeout_s=10)
        stack.enter_context(dependency(gone))
        place.wait_for(r"is UP", since=broke, timeout_s=10)
        mended = place.now
        edge.traffic().send(rng, rng.uniform(0.8, 1.4))
        cause = f"a server of {edge.back} was away for a moment and is back"
        return edge.told(cause, [r"is UP, reason: Layer\d check passed"], broke, mended_at=mended, severity="low")


def quiet(place: Place, rng: random.Random) -> Told:
    """A quiet day."""
    edge = balancer(place, rng)
    with dependency() as first, dependency() as second:
        second.status, second.manner, second.every = 404, "status", 9
        second.reason = "Not Found"
        edge.start(edge.configure(first.port, second.port))
        edge.traffic(rate=rng.uniform(12, 25)).send(rng, rng.uniform(2.5, 4.0))
        return edge.told("", [], None, severity="info")


ALL = (
    ("network_connectivity", server_lost),
    ("service_routing", no_server),
    ("health_probe", check_failing),
    ("dependency_failure", server_failing),
    ("config_env_error", config_refused),
    ("config_env_error", port_taken),
    ("dns_resolution", name_unknown),
    ("connection_exhaustion", too_many),
    ("connection_exhaustion", few_files),
    ("quota_rate_limit", rate_limit),
    ("authn_authz", denied),
    ("tls_cert_expiry", handshake_refused),
)
"""Category and what is done."""
