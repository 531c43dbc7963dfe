"""A certificate that expires, an upstream that is gone, a name that stops resolving, a client that asks too often."""

from __future__ import annotations

import random
import signal
from datetime import UTC, datetime, timedelta

from recorder import house
from recorder.incident import Alert, Incident
from recorder.servers import call, nginx, version
from recorder.stage import Stage

_WWW = house.ADDRESS["www.shop.internal"]
_PRICING = house.ADDRESS["pricing.shop.internal"]
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36",
)
_CA = """\
[ca]
default_ca = shop
[shop]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
"""


def _certificate(stage: Stage) -> None:
    pki = stage.folder("pki")
    (pki / "ca.cnf").write_text(_CA)
    (pki / "index.txt").write_text("")
    (pki / "serial").write_text("01\n")
    openssl = house.find("openssl")
    version(stage, "openssl", "version")
    version(stage, "curl", "--version")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    stage.output(
        [
            openssl,
            "req",
            "-x509",
            *key,
            "-keyout",
            f"{pki}/ca.key",
            "-out",
            f"{pki}/ca.pem",
            "-days",
            "30",
            "-subj",
            "/CN=Shop Internal CA",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]
    )
    stage.output(
        [
            openssl,
            "req",
            *key,
            "-keyout",
            f"{pki}/mail.key",
            "-out",
            f"{pki}/mail.csr",
            "-subj",
            "/CN=mail.shop.internal",
            "-addext",
            "subjectAltName=DNS:mail.shop.internal",
        ]
    )
    now = datetime.now(UTC)
    start, end = (at.strftime("%Y%m%d%H%M%SZ") for at in (now - timedelta(days=90), now + timedelta(seconds=18)))
    # `openssl ca` reads its file names relative to where it runs.
    stage.output(
        [
            "/bin/sh",
            "-c",
            (
                f"cd {pki} && {openssl} ca -batch -config ca.cnf -cert ca.pem -keyfile ca.key -notext "
                f"-in mail.csr -out mail.pem -startdate {start} -enddate {end}"
            ),
        ]
    )
    stage.python("mail_relay")
    nginx(
        stage,
        (
            f"server {{ listen {house.ADDRESS['mail.shop.internal']}:8443 ssl; server_name mail.shop.internal;\n"
            f"ssl_certificate {pki}/mail.pem; ssl_certificate_key {pki}/mail.key;\n"
            "location / { proxy_pass http://127.0.0.1:9025; } }"
        ),
        error_level="info",
    )
    stage.wait_port("127.0.0.1", 9025)
    stage.wait_port(house.ADDRESS["mail.shop.internal"], 8443)
    stage.begin()
    stage.python("invoice_mailer")
    stage.start("relay-check", ["/bin/sh", stage.shop("relay_check.sh")])
    stage.wait_for("invoice-mailer", "sent, relay id", count=25)
    stage.wait_for("invoice-mailer", "not sent", count=20)
    stage.wait_for("relay-check", r"curl: \(60\)", count=3)


CERTIFICATE = Incident(
    name="expired-certificate",
    service="invoice-mailer",
    delivery="loki",
    category="tls_cert_expiry",
    severity="critical",
    entity="mail.shop.internal",
    title="invoices are not sent",
    broken="The mail relay's certificate, signed by the shop's own authority, expires while invoices are being "
    "sent; the mailer and curl verify it.",
    reasoning="Verification fails with `certificate has expired`.",
    shows=(r"certificate has expired", r"certificate expired"),
    needs=("nginx", "openssl", "curl"),
    run=_certificate,
)


def _upstream(stage: Stage) -> None:
    site = stage.folder("site")
    (site / "logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>\n")
    catalog = stage.python("catalog")
    stage.wait_port("10.20.0.21", 8080)
    nginx(
        stage,
        (
            "upstream catalog { server 10.20.0.21:8080; }\n"
            f"server {{ listen {_WWW}:80; server_name www.shop.internal; root {site};\n"
            "location /products/ { proxy_pass http://catalog; proxy_connect_timeout 2s; } }"
        ),
    )
    stage.wait_port(_WWW, 80)
    stage.begin()

    def page(rng: random.Random) -> None:
        path = "/logo.svg" if rng.random() < 0.3 else f"/products/{rng.randrange(1, 910)}"
        call(_WWW, 80, "GET", path, agent=rng.choice(_AGENTS), source=f"10.20.1.{rng.randrange(2, 60)}")

    with stage.traffic(page, seed=4, rate_per_s=10, clients=3):
        stage.wait_for("nginx", r'" 200 ', count=80)
        stage.stop(catalog, with_signal=signal.SIGKILL)
        stage.wait_for("nginx", r'" 502 ', count=8)
        stage.fire()
        stage.wait_for("nginx", r'" 502 ', count=35)


DEAD_UPSTREAM = Incident(
    name="nginx-dead-upstream",
    service="storefront",
    delivery="loki+alertmanager",
    category="service_routing",
    alternatives=("network_connectivity", "dependency_failure"),
    severity="critical",
    entity="catalog",
    title="storefront answers 502",
    broken="The only upstream of nginx, the catalog, was killed with SIGKILL and nothing starts it again.",
    reasoning="502 from the gateway with no live upstream is the taxonomy's service_routing. The lines also say "
    "`connection refused` (network_connectivity), and another service is down (dependency_failure): both "
    "are accepted.",
    shows=(r"connect\(\) failed \(111", r'" 502 '),
    needs=("nginx",),
    run=_upstream,
    alert=Alert(
        name="GatewayErrors",
        severity="critical",
        summary="storefront answers 502",
        description="More than 20% of the requests to www.shop.internal have been answered 502 for the last minute.",
        expr='sum(rate(nginx_http_requests_total{status="502"}[1m])) / sum(rate(nginx_http_requests_total[1m])) > 0.2',
    ),
)


def _dns(stage: Stage) -> None:
    version(stage, "curl", "--version")
    zone = stage.root / "zone"
    mirror = "rates-mirror.shop.internal 10.20.0.40\n"
    zone.write_text(f"api.ratefeed.example 10.20.0.40\n{mirror}")
    stage.python("resolver")
    stage.wait_for("resolver", "ready")
    stage.python("rate_feed", collect=False)
    stage.wait_port("10.20.0.40", 80)
    stage.begin()
    stage.python("fx_rates")
    stage.start("feed-check", ["/bin/sh", stage.shop("feed_check.sh")])
    stage.wait_for("fx-rates", "feed=partner .* rate=", count=25)
    new = stage.root / "zone.new"
    new.write_text(mirror)
    new.replace(zone)
    stage.wait_for("fx-rates", "fetch failed", count=14)
    stage.wait_for("feed-check", r"curl: \(6\)", count=2)


DNS = Incident(
    name="dns-failure",
    service="fx-rates",
    delivery="loki",
    category="dns_resolution",
    severity="high",
    entity="api.ratefeed.example",
    title="exchange rates are stale",
    broken="The resolver's zone loses the name of the partner's feed (NXDOMAIN); other names still resolve. The "
    "name ends in .example, which is reserved like .invalid but does not read like a wrong setting.",
    reasoning="glibc and curl both say that the name does not resolve.",
    shows=(r"Name or service not known", r"Could not resolve host"),
    needs=("curl",),
    run=_dns,
)


def _rate_limit(stage: Stage) -> None:
    stage.python("pricing_api")
    stage.wait_port("127.0.0.1", 8080)
    nginx(
        stage,
        (
            "limit_req_zone $binary_remote_addr zone=partners:1m rate=10r/s; limit_req_status 429;\n"
            f"server {{ listen {_PRICING}:80; server_name pricing.shop.internal;\n"
            "location / { limit_req zone=partners burst=20 nodelay; proxy_pass http://127.0.0.1:8080; } }"
        ),
    )
    stage.wait_port(_PRICING, 80)
    stage.begin()

    def price(rng: random.Random) -> None:
        call(_PRICING, 80, "GET", f"/prices/{rng.randrange(1, 900)}", agent="storefront/4.1", source="10.20.0.20")

    with stage.traffic(price, seed=11, rate_per_s=3, clients=2):
        stage.wait_for("nginx", "storefront", count=15)
        importer = stage.python("price_importer", "8")
        stage.wait_for("price-importer", "incomplete", count=2)
        stage.fire()
        stage.wait_for("price-importer", "incomplete", count=3)
        stage.stop(importer)


RATE_LIMIT = Incident(
    name="rate-limited-client",
    service="price-importer",
    delivery="loki+alertmanager",
    category="quota_rate_limit",
    severity="medium",
    entity="price-importer",
    title="price-importer batches are incomplete",
    broken="The batch client runs with 8 workers against an nginx that lets a client ask 10 times a second.",
    reasoning="HTTP 429 in the client, `limiting requests` in nginx; the shop's own traffic to the same API is fine.",
    shows=(r"HTTP 429", r"limiting requests, excess", r'" 429 '),
    needs=("nginx",),
    run=_rate_limit,
    alert=Alert(
        name="ImportIncomplete",
        severity="warning",
        summary="price-importer batches are incomplete",
        description="Several batches of price-importer have ended with prices missing.",
        expr='increase(import_batches_incomplete_total{service="price-importer"}[5m]) > 1',
    ),
)
