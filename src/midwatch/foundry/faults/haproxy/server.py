"""A real HAProxy in a place: its configuration is drawn, its clients and its servers are ours."""

# ruff: noqa: E501 - a directive is a line
from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.foundry.place import Place
from midwatch.foundry.props import Call, Traffic
from midwatch.foundry.stage import Told

BACKENDS = ("be_orders", "orders", "api-backend", "web_pool", "app", "bk_checkout", "search-svc", "static_files")
FRONTENDS = ("fe_main", "http-in", "public", "edge_http", "www")
SERVERS = ("s{}", "web-{}", "app0{}", "node{}", "srv-{}")


@dataclass(kw_only=True)
class Balancer:
    """An HAProxy of a place. `hide` is what its lines must not show and what they show instead."""

    place: Place
    rng: random.Random
    front: str
    back: str
    server: str
    port: int
    hide: dict[str, str] = field(default_factory=dict)

    def configure(
        self,
        *ports: int,
        checked: str = "check inter 200ms fall 2 rise 2",
        front: str = "",
        back: str = "",
        top: str = "",
        bind: str = "",
        host: str = "127.0.0.1",
    ) -> Path:
        """Write a configuration with a server for each port of ours; `front` and `back` add lines to their sections."""
        rows = "".join(
            f"  server {self.server.format(number)} {host}:{port} {checked}\n" for number, port in enumerate(ports, 1)
        )
        for port in ports:
            address = f"10.{self.rng.randrange(256)}.{self.rng.randrange(256)}.{self.rng.randrange(2, 250)}"
            self.hide[f"127.0.0.1:{port}"] = f"{address}:8080"
        return self.place.write(
            "conf/haproxy.cfg",
            f"global\n  log stdout format raw local0 info\n  stats socket {self.place.folder}/admin.sock mode 600 level admin\n"
            f"{top}\ndefaults\n  log global\n  mode http\n  option httplog\n  option dontlognull\n  timeout connect 300ms\n"
            f"  timeout client 3s\n  timeout server 500ms\n  timeout queue 400ms\n  retries 1\n"
            f"frontend {self.front}\n  bind {bind or f'127.0.0.1:{self.port}'}\n  default_backend {self.back}\n{front}\n"
            f"backend {self.back}\n  balance roundrobin\n{back}\n{rows}",
        )

    def command(self, config: Path, *more: str) -> list[str]:
        """How HAProxy is run with a configuration."""
        return ["haproxy", "-f", str(config), "-db", *more]

    def start(self, config: Path, wrap: Callable[[Sequence[str]], list[str]] = list) -> subprocess.Popen[bytes]:
        """Start it and wait until it takes connections."""
        process = self.place.start("haproxy", wrap(self.command(config)))
        self.place.wait_until((self.place.folder / "admin.sock").exists, what="haproxy running")
        return process

    def order(self, command: str) -> None:
        """Tell the running HAProxy something by its stats socket, as an operator would."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.place.folder / "admin.sock"))
            link.sendall(command.encode() + b"\n")
            link.recv(4096)

    def traffic(self, *, rate: float = 15.0, workers: int = 3, calls: Sequence[Call] = ()) -> Traffic:
        """Clients."""
        area = self.rng.choice(("orders", "catalog", "users", "search"))
        paths = (f"/{area}", f"/{area}/{self.rng.randrange(10, 9000)}", "/", "/favicon.ico")
        chosen = calls or [*[("GET", path, "") for path in paths], ("POST", f"/{area}", "{}")]
        return Traffic(port=self.port, calls=chosen, rate=rate, workers=workers)

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
        alerts = (
            f"HAProxy {self.back} errors",
            "HighErrorRate edge",
            f"{self.back} 5xx",
            f"backend {self.back} unhealthy",
        )
        swaps = {f"{self.place.folder}/conf": "/etc/haproxy", f"{self.place.folder}/tls": "/etc/haproxy/certs"}
        client = f"10.{self.rng.randrange(256)}.{self.rng.randrange(256)}.{self.rng.randrange(2, 250)}"
        return Told(
            cause=cause,
            ended_at=self.place.now,
            entity=self.back if entity is None else entity,
            truth=truth,
            broke_at=broke_at,
            mended_at=mended_at,
            names={self.back: "service"},
            hide={**self.hide, **swaps, f"127.0.0.1:{self.port}": "0.0.0.0:80", "127.0.0.1": client},
            alert=(self.rng.choice(alerts) if broke_at is not None else "", ""),
            accepted=accepted,
            severity=severity,
        )


def balancer(place: Place, rng: random.Random) -> Balancer:
    """Draw an HAProxy."""
    return Balancer(
        place=place,
        rng=rng,
        front=rng.choice(FRONTENDS),
        back=rng.choice(BACKENDS),
        server=rng.choice(SERVERS),
        port=place.free_port(),
    )
