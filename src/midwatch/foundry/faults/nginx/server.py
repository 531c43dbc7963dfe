"""A real nginx in a place: its configuration is drawn, its clients and its upstreams are ours."""

# ruff: noqa: E501 - a directive is a line
from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.foundry.place import Place
from midwatch.foundry.props import Call, Traffic
from midwatch.foundry.stage import Told

SITES = (
    "shop.example.com",
    "api.example.org",
    "www.example.net",
    "portal.acme.io",
    "app.contoso.dev",
    "cdn.example.com",
)
UPSTREAMS = ("orders_backend", "app_servers", "api_pool", "webapp", "catalog_upstream", "auth_backend", "php_workers")
AREAS = ("orders", "catalog", "users", "search", "invoices", "reports", "media", "sessions")
FORMATS = {
    "combined": """'$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"'""",
    "timed": """'$remote_addr - - [$time_local] "$request" $status $body_bytes_sent rt=$request_time uct="$upstream_connect_time" urt="$upstream_response_time" upstream="$upstream_addr" us=$upstream_status'""",
    "json": """escape=json '{"time":"$time_iso8601","remote_addr":"$remote_addr","host":"$host","request":"$request","status":$status,"bytes":$body_bytes_sent,"upstream_addr":"$upstream_addr","upstream_status":"$upstream_status","request_time":$request_time}'""",
    "ingress": """'$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent" $request_length $request_time [$proxy_host] [] $upstream_addr $upstream_response_length $upstream_response_time $upstream_status'""",
}  # fmt: skip
AGENTS = ("Mozilla/5.0 (X11; Linux x86_64)", "curl/8.5.0", "okhttp/4.12.0", "python-requests/2.32.3", "kube-probe/1.30")


@dataclass(kw_only=True)
class Edge:
    """An nginx of a place. `hide` is what its lines must not show and what they show instead."""

    place: Place
    rng: random.Random
    site: str
    upstream: str
    area: str
    port: int
    layout: str
    hide: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """The names of its lines that may be renamed."""
        return {self.site: "domain", self.upstream: "service"}

    def backend(self, port: int) -> str:
        """An address to configure for a port of ours; lines show a host of an inner network."""
        rng = self.rng
        address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(2, 250)}"
        self.hide[f"127.0.0.1:{port}"] = f"{address}:{rng.choice((8080, 8000, 3000, 9000))}"
        return f"127.0.0.1:{port}"

    def configure(
        self,
        body: str,
        *,
        outside: str = "",
        top: str = "",
        level: str = "warn",
        connections: int = 64,
        listen: str = "",
        access: str = "/dev/stdout",
        name: str = "nginx.conf",
    ) -> Path:
        """Write a configuration: `body` stands in its server, `outside` in its http block, `top` at its top."""
        temporary = "".join(
            f"  {kind}_temp_path {self.place.folder}/run/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.place.folder / "run").mkdir(exist_ok=True)
        (self.place.folder / "www").mkdir(exist_ok=True)
        return self.place.write(
            f"conf/{name}",
            f"daemon off;\nerror_log stderr {level};\npid {self.place.folder}/run/nginx.pid;\n{top}\n"
            f"events {{ worker_connections {connections}; }}\n"
            f"http {{\n  log_format main {FORMATS[self.layout]};\n  access_log {access} main;\n{temporary}"
            f"  keepalive_timeout 5s;\n{outside}\n  server {{\n    listen {listen or f'127.0.0.1:{self.port}'};\n"
            f"    server_name {self.site};\n    root {self.place.folder}/www;\n{body}\n  }}\n}}\n",
        )

    def command(self, config: Path, *more: str) -> list[str]:
        """How nginx is run with a configuration."""
        return ["nginx", "-p", str(self.place.folder), "-e", "stderr", "-c", str(config), *more]

    def start(self, config: Path, wrap: Callable[[Sequence[str]], list[str]] = list) -> subprocess.Popen[bytes]:
        """Start it and wait until it answers."""
        process = self.place.start("nginx", wrap(self.command(config)))
        self.place.wait_until(lambda: self.port in _listening(), what="nginx listening")
        return process

    def proxying(self, *ports: int, more: str = "", options: str = "") -> tuple[str, str]:
        """The upstream block and the location that passes to it, for ports of ours."""
        servers = "".join(f"    server {self.backend(port)}{more};\n" for port in ports)
        timeouts = f"proxy_connect_timeout 300ms; proxy_read_timeout {self.rng.choice((300, 500, 700))}ms;"
        location = f"    location /api/ {{ proxy_pass http://{self.upstream}; {timeouts} {options} }}"
        return f"  upstream {self.upstream} {{\n{servers}  }}\n", location

    def calls(self) -> list[Call]:
        """What clients ask for."""
        rng = self.rng
        paths = [f"/api/{self.area}", f"/api/{self.area}/{rng.randrange(10, 9000)}", f"/api/{self.area}?page=2"]
        return [*[("GET", path, "") for path in paths], ("POST", f"/api/{self.area}", '{"n": 1}')]

    def traffic(self, calls: Sequence[Call] | None = None, *, rate: float = 15.0, workers: int = 3) -> Traffic:
        """Clients of the site."""
        headers = {"Host": self.site, "User-Agent": self.rng.choice(AGENTS)}
        return Traffic(port=self.port, calls=calls or self.calls(), rate=rate, workers=workers, headers=headers)

    def told(
        self,
        cause: str,
        truth: Sequence[str],
        broke_at: float | None,
        *,
        entity: str | None = None,
        accepted: tuple[str, ...] = (),
        mended_at: float | None = None,
        severity: str = "high",
    ) -> Told:
        """What was done, for the recording."""
        shown = str(self.rng.choice((80, 8080, 443)))
        alerts = (
            f"HighErrorRate {self.site}",
            f"5xx on {self.site}",
            f"nginx errors on {self.site}",
            f"{self.site} down",
        )
        folder = self.place.folder
        swaps = {
            f"{folder}/conf": "/etc/nginx",
            f"{folder}/www": self.rng.choice(("/usr/share/nginx/html", "/var/www/html", "/srv/www")),
            f"{folder}/run": "/var/lib/nginx",
            f"{folder}/tls": "/etc/nginx/tls",
            f"127.0.0.1:{self.port}": f"0.0.0.0:{shown}",
            f":{self.port}": "",
            os.uname().release: "6.1.0-28-amd64",
            "127.0.0.1": f"10.{self.rng.randrange(256)}.{self.rng.randrange(256)}.{self.rng.randrange(2, 250)}",
        }
        return Told(
            cause=cause,
            ended_at=self.place.now,
            entity=self.site if entity is None else entity,
            truth=truth,
            broke_at=broke_at,
            mended_at=mended_at,
            names=self.names,
            hide={**self.hide, **swaps},
            alert=(self.rng.choice(alerts) if broke_at is not None else "", ""),
            accepted=accepted,
            severity=severity,
        )


def edge(place: Place, rng: random.Random) -> Edge:
    """Draw an nginx."""
    return Edge(
        place=place,
        rng=rng,
        site=rng.choice(SITES),
        upstream=rng.choice(UPSTREAMS),
        area=rng.choice(AREAS),
        port=place.free_port(),
        layout=rng.choice(tuple(FORMATS)),
    )


def _listening() -> set[int]:
    """The TCP ports that somebody of this machine listens on."""
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return {int(row.split()[1].split(":")[1], 16) for row in rows if row.split()[3] == "0A"}
