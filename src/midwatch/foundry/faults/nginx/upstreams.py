"""What nginx says when those behind it, or their names and certificates, fail."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import replace

from midwatch.foundry.faults.nginx.server import edge
from midwatch.foundry.place import Place
from midwatch.foundry.props import certificate, deaf_port, dependency, name_server
from midwatch.foundry.stage import Told


def upstream_refused(place: Place, rng: random.Random) -> Told:
    """The only backend is gone: connections to it are refused."""
    front, mended = edge(place, rng), None
    with ExitStack() as stack:
        backend = stack.enter_context(ExitStack())
        port = backend.enter_context(dependency()).port
        outside, body = front.proxying(port)
        front.start(front.configure(body, outside=outside))
        front.traffic().send(rng, rng.uniform(0.6, 1.4))
        broke = place.now
        backend.close()
        front.traffic().send(rng, rng.uniform(1.0, 2.2))
        if rng.random() < 0.3:
            stack.enter_context(dependency(port))
            mended = place.now
            front.traffic().send(rng, rng.uniform(0.6, 1.2))
        return front.told(
            f"the backend of {front.site} refuses connections",
            [r"connect\(\) failed \(111: Connection refused\)"],
            broke,
            accepted=("dependency_failure", "service_routing"),
            mended_at=mended,
        )


def upstream_unreachable(place: Place, rng: random.Random) -> Told:
    """Packets to the backend are lost: connecting to it times out."""
    front = edge(place, rng)
    with ExitStack() as stack:
        backend = stack.enter_context(ExitStack())
        port = backend.enter_context(dependency()).port
        outside, body = front.proxying(port)
        front.start(front.configure(body, outside=outside))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        backend.close()
        stack.enter_context(deaf_port(port))
        front.traffic().send(rng, rng.uniform(1.6, 2.6))
        return front.told(
            f"connections from {front.site} to its backend time out",
            [r"upstream timed out \(110: [^)]*\) while connecting"],
            broke,
            accepted=("dependency_failure",),
        )


def upstream_failing(place: Place, rng: random.Random) -> Told:
    """The backend takes requests but does not answer them, breaks off, or answers with errors of its own."""
    front = edge(place, rng)
    manner = rng.choice(("silent", "reset", "close", "garbage", "status"))
    if manner == "status":
        front.layout = rng.choice(("timed", "json", "ingress"))
    with dependency() as served:
        outside, body = front.proxying(served.port)
        front.start(front.configure(body, outside=outside))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        served.status, served.reason = rng.choice(((500, "Error"), (503, "Service Unavailable"), (504, "Timeout")))
        served.manner = manner  # type: ignore[assignment]
        front.traffic().send(rng, rng.uniform(1.2, 2.4))
        truth = {
            "silent": r"upstream timed out \(110: [^)]*\) while reading",
            "reset": r"recv\(\) failed \(104: Connection reset by peer\) while reading",
            "close": r"upstream prematurely closed connection",
            "garbage": r"upstream sent (no valid|invalid)|no valid HTTP/1.0 header",
            "status": rf'us={served.status}\b|"upstream_status":"{served.status}"| {served.status}$',
        }
        return front.told(
            f"the backend of {front.site} does not answer properly",
            [truth[manner]],
            broke,
            accepted=("network_connectivity", "service_routing"),
        )


def no_live_upstreams(place: Place, rng: random.Random) -> Told:
    """Every backend has been taken out, so there is nobody to pass a request to."""
    front = edge(place, rng)
    ports = [place.free_port() for _ in range(rng.choice((2, 2, 3)))]
    with ExitStack() as stack:
        backends = [stack.enter_context(ExitStack()) for _ in ports]
        for backend, port in zip(backends, ports, strict=True):
            backend.enter_context(dependency(port))
        outside, body = front.proxying(*ports, more=" max_fails=1 fail_timeout=10s")
        front.start(front.configure(body, outside=outside))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        for backend in backends:
            backend.close()
        front.traffic().send(rng, rng.uniform(1.4, 2.4))
        return front.told(
            f"no backend of {front.site} is left that could serve",
            [r"no live upstreams while connecting to upstream", r"connect\(\) failed \(111"],
            broke,
            entity=front.upstream,
            accepted=("network_connectivity", "dependency_failure"),
        )


def route_missing(place: Place, rng: random.Random) -> Told:
    """After a reload a location is gone, so that calls are looked for among the files and answered with 404."""
    front = edge(place, rng)
    with dependency() as served:
        outside, body = front.proxying(served.port)
        process = front.start(front.configure(body, outside=outside, level="notice"))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        wrong = rng.choice(("/v2/", "/app/", "/backend/", f"/{front.area}/"))
        front.configure(body.replace("location /api/", f"location {wrong}"), outside=outside, level="notice")
        process.send_signal(1)
        place.wait_for("gracefully shutting down|exiting", timeout_s=10)
        front.traffic().send(rng, rng.uniform(1.2, 2.0))
        return front.told(
            f"requests to {front.site} are not passed on, because no location matches them",
            [rf'open\(\) "[^"]*/api/{front.area}[^"]*" failed \(2: No such file or directory\)'],
            broke,
            accepted=("config_env_error",),
        )


def name_unknown(place: Place, rng: random.Random) -> Told:
    """The name of the backend cannot be resolved, at the start or while it runs."""
    front = edge(place, rng)
    name = rng.choice(("orders.internal", "api.prod.svc.cluster.local", "backend-1.example.net", "auth.service.consul"))
    broke = place.now
    if rng.random() < 0.4:
        config = front.configure(f"    location /api/ {{ proxy_pass http://{name}:8080; }}")
        for _ in range(rng.choice((1, 2, 3))):
            place.run("nginx", front.command(config))
    else:
        loop = f"127.0.{rng.randrange(1, 250)}.{rng.randrange(2, 250)}"
        with name_server(loop, rng.choice((2, 3, 3, None))):
            body = (
                f"    resolver {loop} valid=1s; resolver_timeout 400ms;\n"
                f"    location /api/ {{ set $target {name}; proxy_pass http://$target:8080; }}"
            )
            front.start(front.configure(body))
            front.traffic().send(rng, rng.uniform(1.6, 2.6))
    told = front.told(
        f"nginx cannot resolve {name}",
        [r"host not found in upstream", r"could not be resolved"],
        broke,
        entity=name,
        accepted=("config_env_error",),
    )
    return replace(told, names={**told.names, name: "domain"})


def upstream_certificate(place: Place, rng: random.Random) -> Told:
    """The backend's certificate has expired, or is another's."""
    front = edge(place, rng)
    expired = rng.random() < 0.6
    issuer = certificate(place.folder / "tls", "internal-ca")
    inner, days = "backend.internal", -rng.randrange(1, 60) if expired else 90
    made = certificate(place.folder / "tls", inner, days=days, alias=inner, issuer=issuer)
    with dependency(certificate=made) as served:
        outside, body = front.proxying(
            served.port,
            options=f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {issuer.cert}; proxy_ssl_server_name on; "
            f"proxy_ssl_name {inner if expired else 'payments.internal'};",
        )
        broke = place.now
        front.start(front.configure(body.replace("http://", "https://"), outside=outside))
        front.traffic().send(rng, rng.uniform(1.2, 2.2))
        return front.told(
            f"the certificate of the backend of {front.site} is not accepted",
            [r"upstream SSL certificate (verify error|does not match)"],
            broke,
        )


ALL = (
    ("network_connectivity", upstream_refused),
    ("network_connectivity", upstream_unreachable),
    ("dependency_failure", upstream_failing),
    ("service_routing", no_live_upstreams),
    ("service_routing", route_missing),
    ("dns_resolution", name_unknown),
    ("tls_cert_expiry", upstream_certificate),
)
"""Category and what is done."""
