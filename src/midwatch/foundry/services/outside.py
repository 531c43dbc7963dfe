"""What a service depends on: names, the network, another service, its rates, credentials and certificates."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import ExitStack, suppress

from midwatch.foundry.props import certificate, deaf_port, dependency, name_server, private
from midwatch.foundry.recording import Recording
from midwatch.foundry.services.kit import Kit, Scenes, calm, with_dependency
from midwatch.foundry.services.service import Service


def name_not_found(service: Service, kit: Kit) -> Recording:
    """The name of the dependency cannot be resolved."""
    place, rng = service.place, service.rng
    host = service.host if "." in service.host else service.host + ".internal"
    loop = f"127.0.{rng.randrange(1, 250)}.{rng.randrange(2, 250)}"
    resolver = place.write("resolv.conf", f"nameserver {loop}\noptions timeout:1 attempts:1\n")
    service.env[service.setting("URL")] = f"http://{host}:{rng.choice((80, 8080, 443))}"
    with name_server(loop, rng.choice((2, 3, 3, 3, 5, None))):
        broke_at = place.now
        service.start(wrap=lambda command: private(command, f"--bind {resolver} /etc/resolv.conf"))
        service.ready()
        service.traffic(rate=8, timeout_s=4).send(rng, rng.uniform(2.0, 3.0))
        return service.record(
            category="dns_resolution",
            truth=[kit.patterns["dns"]],
            broke_at=broke_at,
            entity=host,
            names={host: "domain"},
            cause=f"the name {host} cannot be resolved",
        )


def unreachable(service: Service, kit: Kit) -> Recording:
    """The dependency refuses, resets, or does not answer connections."""
    rng, place = service.rng, service.place
    manner = rng.choice(("refused", "refused", "reset", "close", "deaf", "silent"))
    mended_at = None
    with ExitStack() as stack:
        outer = stack.enter_context(ExitStack())
        served = with_dependency(service, outer)
        service.start(env={service.setting("ATTEMPTS"): rng.choice(("1", "2", "3"))})
        service.ready()
        calm(service)
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
            calm(service)
        return service.record(
            category="network_connectivity",
            accepted=("dependency_failure",),
            truth=[kit.patterns[manner]],
            broke_at=broke_at,
            mended_at=mended_at,
            entity=service.upstream,
            cause="{service} cannot reach {upstream} over the network",
        )


def failing_dependency(service: Service, kit: Kit) -> Recording:
    """The dependency answers with errors of its own until the breaker opens."""
    rng, mended_at = service.rng, None
    status, reason = rng.choice(
        ((500, "Internal Server Error"), (502, "Bad Gateway"), (503, "Service Unavailable"), (504, "Gateway Timeout"))
    )
    with ExitStack() as stack:
        served = with_dependency(service, stack)
        service.start(env={"BREAKER_THRESHOLD": str(rng.randrange(3, 7))})
        service.ready()
        calm(service)
        broke_at = service.place.now
        served.status, served.reason, served.manner = status, reason, "status"
        service.traffic(rate=30).send(rng, rng.uniform(1.2, 2.4))
        if rng.random() < 0.25:
            served.manner, mended_at = "ok", service.place.now
            calm(service, least=1.0)
        truth = [service.said("upstream_status"), service.said("breaker_open"), service.said("breaker_rejects")]
        return service.record(
            category="dependency_failure",
            truth=truth,
            broke_at=broke_at,
            mended_at=mended_at,
            entity=service.upstream,
            cause=f"{{upstream}} answers {{service}} with {status} {reason}",
        )


def rate_limited(service: Service, kit: Kit) -> Recording:
    """The dependency says 429, with a Retry-After."""
    with ExitStack() as stack:
        served = with_dependency(service, stack)
        service.start(env={service.setting("ATTEMPTS"): service.rng.choice(("1", "2"))})
        service.ready()
        calm(service)
        broke_at = service.place.now
        served.status, served.reason, served.manner = 429, "Too Many Requests", "status"
        served.headers = {"Retry-After": str(service.rng.choice((1, 5, 30, 60)))}
        served.every = service.rng.choice((1, 1, 2))
        service.traffic().send(service.rng, service.rng.uniform(1.2, 2.2))
        return service.record(
            category="quota_rate_limit",
            truth=[service.said("upstream_limited")],
            broke_at=broke_at,
            entity=service.upstream,
            cause="{upstream} limits the rate of calls from {service}",
        )


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
        served = with_dependency(service, stack)
        service.start()
        service.ready()
        calm(service)
        broke_at = service.place.now
        served.status, served.reason, served.body = service.rng.choice(DENIALS)
        served.manner = "status"
        service.traffic().send(service.rng, service.rng.uniform(1.2, 2.2))
        return service.record(
            category="authn_authz",
            truth=[service.said("upstream_denied")],
            broke_at=broke_at,
            entity=service.upstream,
            cause="{upstream} rejects the credentials of {service}",
        )


def bad_certificate(service: Service, kit: Kit) -> Recording:
    """The dependency's certificate has expired, is not trusted, or is another host's."""
    rng, place = service.rng, service.place
    kind = rng.choice(("expired", "expired", "untrusted", "other"))
    host = service.host if "." in service.host else service.host + ".internal"
    other = "staging." + host
    authority = certificate(place.folder / "tls", rng.choice(("Internal Root CA", "Issuing CA 3", "Corp CA")))
    alone = kind == "untrusted" and rng.random() < 0.5
    made = certificate(
        place.folder / "tls",
        other if kind == "other" else host,
        days=-rng.randrange(1, 40) if kind == "expired" else 90,
        alias=other if kind == "other" else "localhost",
        issuer=None if alone else authority,
    )
    with dependency(certificate=made) as served:
        service.host = host
        service.depends_on(served.port, "https")
        service.hide["localhost"] = host
        if kind != "untrusted":
            service.env[service.setting("CA")] = str(authority.cert)
        broke_at = place.now
        service.start()
        service.ready()
        service.traffic().send(rng, rng.uniform(1.5, 2.5))
        return service.record(
            category="tls_cert_expiry",
            truth=[kit.patterns[f"tls_{kind}"]],
            broke_at=broke_at,
            entity=service.upstream,
            names={host: "domain"},
            cause=f"the certificate of {{upstream}} is not accepted ({kind})",
        )


def own_certificate(service: Service, kit: Kit) -> Recording:
    """The service's own certificate has expired: its callers end the handshake with an alert."""
    rng, place = service.rng, service.place
    host = service.name + ".example.net"
    made = certificate(place.folder / "tls", host, days=-rng.randrange(1, 30))
    with ExitStack() as stack:
        with_dependency(service, stack)
        service.start(env=kit.tls_settings(made))
        place.wait_for(service.said("listening"), timeout_s=30)
        broke_at = place.now
        strict = ssl.create_default_context(cafile=str(made.cert))
        strict.maximum_version = ssl.TLSVersion.TLSv1_2  # so that the server reads the alert before the connection ends
        deadline = place.now + rng.uniform(1.2, 2.0)
        while place.now < deadline:
            with socket.create_connection(("127.0.0.1", service.port), 1) as raw:
                with suppress(OSError):
                    strict.wrap_socket(raw, server_hostname="localhost")
                time.sleep(rng.uniform(0.05, 0.2))
        return service.record(
            category="tls_cert_expiry",
            truth=[kit.patterns["tls_alert"]],
            broke_at=broke_at,
            cause="callers of {service} refuse its certificate, which has expired",
        )


OUTSIDE: Scenes = {
    "dns": ("dns_resolution", name_not_found, ("unshare",)),
    "unreachable": ("network_connectivity", unreachable, ()),
    "dependency-5xx": ("dependency_failure", failing_dependency, ()),
    "upstream-429": ("quota_rate_limit", rate_limited, ()),
    "upstream-denied": ("authn_authz", denied, ()),
    "upstream-certificate": ("tls_cert_expiry", bad_certificate, ("openssl",)),
    "own-certificate": ("tls_cert_expiry", own_certificate, ("openssl",)),
}
"""Name: category, how it is done, and what it needs."""
