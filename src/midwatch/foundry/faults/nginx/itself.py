"""What nginx says when its own settings, limits, files or certificates are wrong, and when nothing is."""

# ruff: noqa: E501 - a directive is a line
from __future__ import annotations

import random
import shutil
import socket
import ssl
import time
from contextlib import ExitStack, suppress

from midwatch.foundry.faults.nginx.server import Edge, edge
from midwatch.foundry.place import Place
from midwatch.foundry.props import certificate, dependency, private
from midwatch.foundry.services.supervisor import Supervisor
from midwatch.foundry.stage import Told

_BROKEN = (
    ("    proxy_read_timout 5s;", r"unknown directive"),
    ("    gzip_typess text/css;", r"unknown directive"),
    ("    lua_code_cache on;", r"unknown directive"),
    ("    client_max_body_size 10 m;", r"invalid number of arguments"),
    ("    client_max_body_size tenmegs;", r"invalid value"),
    ("    location /x { return 200 }", r'unexpected "}"|unexpected end of file'),
    ("    location /x { proxy_pass orders:8080; }", r"invalid URL prefix"),
    ("    listen 99999;", r"invalid port in"),
    ("    location ~ ^/(a { return 200; }", r"pcre2?_compile\(\) failed"),
    ("    include /etc/nginx/snippets/missing.conf;", r"open\(\) .* failed \(2: No such file"),
    ("    proxy_pass http://127.0.0.1;", r"directive is not allowed here"),
    ("    add_header X-Frame-Options;", r"invalid number of arguments"),
    ("    ssl_certificate /etc/nginx/tls/missing.crt; ssl_certificate_key /etc/nginx/tls/missing.key;", r"cannot load certificate"),
)  # fmt: skip


def config_refused(place: Place, rng: random.Random) -> Told:
    """A configuration that nginx does not take: it does not start, or goes on with the old one after a reload."""
    front = edge(place, rng)
    wrong, error = rng.choice(_BROKEN)
    listen = f"127.0.0.1:{front.port}" + (" ssl" if "ssl_" in wrong else "")
    with dependency() as served:
        outside, body = front.proxying(served.port)
        if rng.random() < 0.5:
            good = front.configure(body, outside=outside, level="notice")
            process = front.start(good)
            front.traffic().send(rng, rng.uniform(0.6, 1.2))
            broke = place.now
            front.configure(f"{body}\n{wrong}", outside=outside, level="notice", listen=listen)
            if rng.random() < 0.5:
                place.run("nginx", front.command(good, "-t"))
            process.send_signal(1)
            place.wait_for(error, timeout_s=10)
            front.traffic().send(rng, rng.uniform(0.4, 0.8))
        else:
            broke = place.now
            config = front.configure(f"{body}\n{wrong}", outside=outside, listen=listen)
            _supervised(front, config).crash_loop(rng.choice((2, 3, 4)))
        return front.told(f"nginx of {front.site} refuses its configuration", [error], broke, entity="nginx")


def port_taken(place: Place, rng: random.Random) -> Told:
    """Another program listens on the port."""
    front = edge(place, rng)
    with dependency(front.port):
        broke = place.now
        place.run("nginx", front.command(front.configure("    location / { return 200; }")), timeout_s=8)
        return front.told(
            "nginx cannot listen, because another program has the port",
            [r"bind\(\) to .* failed \(98: Address already in use\)", r"still could not bind\(\)"],
            broke,
            entity="nginx",
            accepted=("connection_exhaustion", "network_connectivity"),
        )


def _supervised(front: Edge, config: object) -> Supervisor:
    return Supervisor(
        place=front.place,
        rng=front.rng,
        name="nginx",
        style=front.rng.choice(("supervisord", "keeper", "kubelet")),
        start=lambda: front.place.start("nginx", front.command(config)),  # type: ignore[arg-type]
    )


def worker_connections(place: Place, rng: random.Random) -> Told:
    """More clients than nginx has connections for."""
    front = edge(place, rng)
    limit = rng.choice((10, 12, 16))
    with ExitStack() as stack:
        served = stack.enter_context(dependency())
        outside, body = front.proxying(served.port)
        front.start(front.configure(body, outside=outside, connections=limit))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        for _ in range(limit):
            with suppress(OSError):
                stack.enter_context(socket.create_connection(("127.0.0.1", front.port), 1))
        front.traffic(rate=20).send(rng, rng.uniform(1.0, 1.8))
        return front.told(
            "nginx has used up its worker_connections", [r"worker_connections are not enough"], broke, entity="nginx"
        )


def too_many_files(place: Place, rng: random.Random) -> Told:
    """A worker may not open more files."""
    front = edge(place, rng)
    (place.folder / "www").mkdir()
    for number in range(4):
        place.write(f"www/assets/{number}.css", "body {}\n")
    files = [("GET", f"/assets/{number}.css", "") for number in range(4)]
    with ExitStack() as stack:
        served = stack.enter_context(dependency())
        outside, body = front.proxying(served.port)
        front.start(front.configure(body, outside=outside, top="worker_rlimit_nofile 26;", connections=128))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        for _ in range(26):
            with suppress(OSError):
                stack.enter_context(socket.create_connection(("127.0.0.1", front.port), 1))
        front.traffic([*front.calls(), *files]).send(rng, rng.uniform(1.0, 1.8))
        return front.told(
            "a worker of nginx has too many open files", [r"\(24: Too many open files\)"], broke, entity="nginx"
        )


def rate_limit(place: Place, rng: random.Random) -> Told:
    """Clients call more often than a zone allows."""
    front = edge(place, rng)
    zone, status = rng.choice(("api", "perip", "login", "one")), rng.choice((429, 503))
    by_connections = rng.random() < 0.25
    limit = (
        f"limit_conn {zone} 1; limit_conn_status {status};"
        if by_connections
        else f"limit_req zone={zone} burst=2 nodelay; limit_req_status {status};"
    )
    with dependency() as served:
        served.delay_s, served.status, served.manner = 0.15 if by_connections else 0.0, 200, "status"
        outside, body = front.proxying(served.port, options=limit)
        outside += (
            f"  limit_conn_zone $server_name zone={zone}:1m;\n"
            if by_connections
            else f"  limit_req_zone $binary_remote_addr zone={zone}:1m rate=5r/s;\n"
        )
        front.start(front.configure(body, outside=outside))
        front.traffic(rate=3, workers=1).send(rng, rng.uniform(0.8, 1.4))
        broke = place.now
        front.traffic(rate=30, workers=6).send(rng, rng.uniform(1.2, 2.0))
        truth = [r"limiting requests, excess", r"limiting connections by zone"]
        if status == 429:
            truth.append(r'" 429 \d|"status":429')
        return front.told(f"clients of {front.site} exceed the limit of zone {zone}", truth, broke)


def own_certificate(place: Place, rng: random.Random) -> Told:
    """The site's certificate has expired, and clients say so; or it does not fit its key."""
    front = edge(place, rng)
    made = certificate(place.folder / "tls", front.site, days=-rng.randrange(1, 30))
    other = certificate(place.folder / "tls", "old-" + front.site)
    mismatch = rng.random() < 0.3
    key = other.key if mismatch else made.key
    body = f"    ssl_certificate {made.cert};\n    ssl_certificate_key {key};\n    location / {{ return 200; }}"
    config = front.configure(body, listen=f"127.0.0.1:{front.port} ssl", level="info")
    broke = place.now
    if mismatch:
        _supervised(front, config).crash_loop(rng.choice((1, 2, 3)))
        truth = [r"SSL_CTX_use_PrivateKey.*failed|key values mismatch"]
        return front.told(
            "the certificate and the key of nginx do not belong together", truth, broke, accepted=("config_env_error",)
        )
    front.start(config)
    strict = ssl.create_default_context(cafile=str(made.cert))
    strict.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = place.now + rng.uniform(1.2, 2.2)
    while place.now < ends:
        with suppress(OSError), socket.create_connection(("127.0.0.1", front.port), 1) as raw:
            strict.wrap_socket(raw, server_hostname=front.site)
        time.sleep(rng.uniform(0.05, 0.2))
    return front.told(f"the certificate of {front.site} has expired", [r"alert certificate expired"], broke)


def forbidden(place: Place, rng: random.Random) -> Told:
    """Clients are not let in: files that may not be read, rules, folders, wrong passwords."""
    front = edge(place, rng)
    kind = rng.choice(("file", "rule", "index", "password", "user"))
    body = "    location /files/ { }"
    if kind == "rule":
        body = "    location /files/ { deny all; }"
    elif kind in ("password", "user"):
        users = place.write("conf/htpasswd", "alice:{PLAIN}correct\n")
        body = f'    location /files/ {{ auth_basic "restricted"; auth_basic_user_file {users}; }}'
    config = front.configure(body, top="user nobody nogroup;")
    place.folder.joinpath("www/files").mkdir(parents=True)
    place.write("www/files/report.pdf", "x").chmod(0o600 if kind == "file" else 0o644)
    broke = place.now
    front.start(config)
    path = "/files/" if kind == "index" else "/files/report.pdf"
    traffic = front.traffic([("GET", path, "")], rate=8)
    basic = {"password": "YWxpY2U6d3Jvbmc=", "user": "Ym9iOnNlY3JldA=="}
    if kind in basic:
        traffic = front.traffic([("GET", path, "")], rate=8)
        traffic.headers["Authorization"] = f"Basic {basic[kind]}"  # type: ignore[index]
    traffic.send(rng, rng.uniform(1.2, 2.2))
    truth = {
        "file": r"failed \(13: Permission denied\)",
        "rule": r"access forbidden by rule",
        "index": r"directory index of .* is forbidden",
        "password": r"password mismatch",
        "user": r"was not found in",
    }
    return front.told(
        f"clients of {front.site} are denied access",
        [truth[kind]],
        broke,
        accepted=("storage_volume_mount", "config_env_error") if kind == "file" else ("config_env_error",),
    )


def disk_full(place: Place, rng: random.Random) -> Told:
    """The disk that bodies of requests are buffered on is full."""
    front = edge(place, rng)
    with dependency() as served:
        outside, body = front.proxying(served.port, options="client_body_buffer_size 1k; client_max_body_size 10m;")
        mount = f"-t tmpfs -o size={rng.choice((48, 64))}k tmpfs {place.folder}/run"
        broke = place.now
        front.start(front.configure(body, outside=outside), wrap=lambda command: private(command, mount))
        big = [
            ("POST", f"/api/{front.area}/{what}", "x" * rng.choice((90_000, 150_000))) for what in ("upload", "import")
        ]
        front.traffic([*front.calls(), *big]).send(rng, rng.uniform(2.0, 3.0))
        return front.told("the disk of nginx is full", [r"\(28: No space left on device\)"], broke)


def wrong_probe(place: Place, rng: random.Random) -> Told:
    """The supervisor asks for a path that does not exist, and restarts nginx for it."""
    front = edge(place, rng)
    with dependency() as served:
        outside, body = front.proxying(served.port)
        config = front.configure(body, outside=outside)
        watcher = _supervised(front, config)
        watcher.probe = rng.choice(("/healthz", "/nginx_status", "/health", "/ping"))
        broke = place.now
        for _ in range(rng.choice((1, 2))):
            process = front.start(config)
            watcher.say("started", pid=process.pid)
            front.traffic().send(rng, 0.5)
            watcher.probing(process, "no answer", port=front.port)
        truth = [r"(?i)probe failed|health checks? (of \S+ )?failed|failed liveness|is unhealthy"]
        return front.told("the health check of nginx asks for a path that does not exist", truth, broke, entity="nginx")


def quiet(place: Place, rng: random.Random) -> Told:
    """A quiet day: files, API calls, a few 404s, keep-alive connections that end."""
    front = edge(place, rng)
    shutil.rmtree(place.folder / "www", ignore_errors=True)
    place.write("www/index.html", "<p>hello</p>\n")
    place.write("www/assets/app.css", "body {}\n")
    with dependency() as served:
        outside, body = front.proxying(served.port)
        front.start(front.configure(body, outside=outside, level=rng.choice(("info", "warn", "notice"))))
        others = [("GET", path, "") for path in ("/", "/assets/app.css", "/favicon.ico", "/robots.txt", "/.env")]
        front.traffic([*front.calls() * 3, *others], rate=rng.uniform(15, 30)).send(rng, rng.uniform(2.5, 4.0))
        return front.told("", [], None, severity="info")


def planned_reload(place: Place, rng: random.Random) -> Told:
    """A reload on purpose: new workers start, old ones end when they are done."""
    front = edge(place, rng)
    with dependency() as served:
        outside, body = front.proxying(served.port)
        process = front.start(front.configure(body, outside=outside, level="notice"))
        front.traffic().send(rng, rng.uniform(0.6, 1.2))
        broke = place.now
        process.send_signal(1)
        place.wait_for(r"exited with code 0", timeout_s=10)
        front.traffic().send(rng, rng.uniform(0.8, 1.4))
        return front.told(
            "nginx was told to read its configuration again, and did",
            [r"signal 1 \(SIGHUP\) received.*reconfiguring", r"gracefully shutting down", r"exited with code 0"],
            broke,
            mended_at=place.now,
            severity="info",
        )


def blip(place: Place, rng: random.Random) -> Told:
    """One of two backends is away for a moment; requests go to the other, and all are answered."""
    front = edge(place, rng)
    front.layout = rng.choice(("timed", "json", "ingress"))
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        gone = first.enter_context(dependency()).port
        stays = stack.enter_context(dependency()).port
        outside, body = front.proxying(gone, stays, more=" max_fails=1 fail_timeout=1s")
        front.start(front.configure(body, outside=outside))
        front.traffic().send(rng, rng.uniform(0.6, 1.0))
        broke = place.now
        first.close()
        front.traffic().send(rng, 0.6)
        stack.enter_context(dependency(gone))
        mended = place.now
        front.traffic().send(rng, rng.uniform(1.2, 1.8))
        passed = r'us=502, 200|"upstream_status":"502, 200"| 502, 200$|us=\d+, 200|"\d+, 200"|\d+, 20\d$'
        return front.told(
            f"a backend of {front.site} was away for a moment, and another answered in its place",
            [passed, r"upstream server temporarily disabled"],
            broke,
            mended_at=mended,
            severity="low",
        )


ALL = (
    ("config_env_error", config_refused),
    ("config_env_error", port_taken),
    ("connection_exhaustion", worker_connections),
    ("connection_exhaustion", too_many_files),
    ("quota_rate_limit", rate_limit),
    ("tls_cert_expiry", own_certificate),
    ("authn_authz", forbidden),
    ("disk_storage_full", disk_full),
    ("health_probe", wrong_probe),
)
"""Category and what is done."""
