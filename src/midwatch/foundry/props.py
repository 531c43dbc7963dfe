"""What stands around a program while it is broken: callers, a bad dependency, names, certificates, mounts."""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from midwatch.errors import FoundryError

Manner = Literal["ok", "status", "reset", "silent", "close", "garbage"]
Call = tuple[str, str, str]
"""Method, path and body of a request."""
_MAX_LINE = 65_536


@dataclass(kw_only=True)
class Dependency:
    """A real server of 127.0.0.1 that answers every HTTP request in one `manner`, which may be changed at any time.

    `status`, `headers` and `body` are what `status` answers with, after `delay_s`. `reset` tears the connection down,
    `silent` never answers, `close` ends it without an answer, `garbage` answers what is no HTTP. Only one of `every`
    requests is treated so; the others are answered well.
    """

    port: int = 0
    manner: Manner = "ok"
    status: int = 200
    reason: str = "OK"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"ok": true}'
    delay_s: float = 0.0
    every: int = 1
    context: ssl.SSLContext | None = None
    asked: int = 0
    talking: set[socket.socket] = field(default_factory=set)

    def serve(self, listener: socket.socket) -> None:
        """Answer until the listener is closed."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.talking.add(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def hang_up(self) -> None:
        """End the connections that are open."""
        for connection in tuple(self.talking):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _talk(self, raw: socket.socket) -> None:
        with raw, suppress(OSError, ValueError):
            raw.settimeout(10)
            connection = raw if self.context is None else self.context.wrap_socket(raw, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while stream.readline(_MAX_LINE):
                    headers = dict(line.lower().split(b":", 1) for line in iter(stream.readline, b"\r\n") if line)
                    stream.read(int(headers.get(b"content-length", 0)))
                    if not self._answer(connection):
                        break
        self.talking.discard(raw)

    def _answer(self, connection: socket.socket) -> bool:
        self.asked += 1
        manner = self.manner if self.asked % self.every == 0 else "ok"
        if manner == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if manner == "close":
            return False
        if manner == "silent":
            with suppress(OSError):
                connection.recv(1)
            return False
        if manner == "garbage":
            connection.sendall(b"\x00\x15\x03 not http at all\r\n\r\n")
            return False
        if self.delay_s:
            time.sleep(self.delay_s)
        status, reason = (200, "OK") if manner == "ok" else (self.status, self.reason)
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        body = self.body.encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\n{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return True


@contextmanager
def dependency(port: int = 0, *, certificate: Certificate | None = None) -> Iterator[Dependency]:
    """A dependency that listens while the block runs; with a certificate it speaks TLS."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert, certificate.key)
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        served = Dependency(port=listener.getsockname()[1], context=context)
        thread = threading.Thread(target=served.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            served.hang_up()


@contextmanager
def deaf_port(port: int = 0) -> Iterator[int]:
    """A port whose queue is full, so that connecting to it times out."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        try:
            yield int(address[1])
        finally:
            for one in waiting:
                one.close()


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Callers of a service: `calls` in an endless random order, `rate` a second in all, by `workers` at once.

    `answers` counts the statuses (0: no answer) that came back.
    """

    port: int
    calls: Sequence[Call]
    rate: float = 20.0
    workers: int = 4
    timeout_s: float = 1.0
    keep_alive: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)

    def send(self, rng: random.Random, seconds: float, enough: Callable[[], bool] = lambda: False) -> dict[int, int]:
        """Call for so many seconds, or until `enough`. Returns `answers`."""
        deadline = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._work, args=(random.Random(rng.random()), deadline, enough), daemon=True)
            for _ in range(self.workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.answers

    def _work(self, rng: random.Random, deadline: float, enough: Callable[[], bool]) -> None:
        connection: http.client.HTTPConnection | None = None
        while time.monotonic() < deadline and not enough():
            connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
            method, path, body = rng.choice(self.calls)
            status = _ask(connection, method, path, body, self.headers)
            self.answers[status] = self.answers.get(status, 0) + 1
            if status == 0 or not self.keep_alive:
                connection.close()
                connection = None
            time.sleep(min(rng.expovariate(self.rate / self.workers), 1.0))
        if connection is not None:
            connection.close()


def ask(port: int, path: str, *, method: str = "GET", body: str = "", timeout_s: float = 1.0) -> int:
    """One request to 127.0.0.1. Returns its status, 0 if nothing answered in time."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)) as connection:
        return _ask(connection, method, path, body, {})


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: str, headers: Mapping[str, str]) -> int:
    try:
        connection.request(method, path, body or None, dict(headers))
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return 0
    return response.status


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Files of a certificate and its key."""

    cert: Path
    key: Path


def certificate(
    folder: Path, name: str, *, days: int = 90, alias: str = "localhost", issuer: Certificate | None = None
) -> Certificate:
    """A certificate for `name` (and `alias`), made by openssl; with negative `days` it expired so many days ago.

    Without an issuer it is signed by itself and may sign others. Raises `FoundryError` if openssl cannot make it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(cert=folder / f"{name}.crt", key=folder / f"{name}.key")
    config, index, request = (folder / f"{name}.{ending}" for ending in ("cnf", "index", "csr"))
    config.write_text(
        f"[ca]\ndefault_ca=one\n[one]\ndatabase={index}\nnew_certs_dir={folder}\ndefault_md=sha256\npolicy=any\n"
        "rand_serial=yes\nunique_subject=no\n[any]\ncommonName=supplied\n[req]\ndistinguished_name=dn\n[dn]\n"
        f"[ext]\nsubjectAltName=DNS:{name},DNS:{alias}\nbasicConstraints=critical,CA:{'FALSE' if issuer else 'TRUE'}\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    index.write_text("")
    end = time.time() + days * 86_400
    begin = min(time.time() - 86_400, end - 90 * 86_400)
    dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(moment)) for moment in (begin, end)]
    ends = ["-startdate", dates[0], "-enddate", dates[1]]
    signer = ["-cert", str(issuer.cert)] if issuer else ["-selfsign"]
    asked = ["-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", str(made.key), "-out", str(request)]
    signed = ["-keyfile", str((issuer or made).key), "-in", str(request), "-out", str(made.cert), "-notext"]
    for command in (
        ["req", "-config", str(config), "-new", *asked],
        ["ca", "-config", str(config), "-batch", *signer, *signed, "-extensions", "ext", *ends],
    ):
        done = subprocess.run(
            ["openssl", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise FoundryError(f"openssl could not make a certificate for {name}: {done.stderr.strip()[-300:]}.")
    for file in (made.cert, made.key):
        file.chmod(0o644)
    return made


@contextmanager
def name_server(address: str, code: int | None) -> Iterator[None]:
    """A name server on port 53 of a loopback address. `code` is its answer (2 failed, 3 no such name), None: silence.

    Raises `FoundryError` where port 53 may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        try:
            listener.bind((address, 53))
        except OSError as error:
            raise FoundryError(
                f"No name server can listen on {address}: {error}.", "Record this fault as root."
            ) from error
        done = threading.Event()
        listener.settimeout(0.05)

        def answer() -> None:
            while not done.is_set():
                with suppress(TimeoutError):
                    query, caller = listener.recvfrom(4096)
                    if code is not None:
                        flags = struct.pack(">H", 0x8180 | code)
                        listener.sendto(query[:2] + flags + query[4:6] + b"\0" * 6 + query[12:], caller)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def private(command: Sequence[str], *mounts: str) -> list[str]:
    """A command in its own mount namespace, where `mounts` (arguments of `mount`) are done first. Needs root."""
    script = " && ".join([*(f"mount {mount}" for mount in mounts), 'exec "$@"'])
    return ["unshare", "-m", "sh", "-c", script, "sh", *command]


def limited(command: Sequence[str], **limits: int) -> list[str]:
    """A command under limits of the shell: `limited(command, v=200_000, n=64)` is `ulimit -v 200000 -n 64`."""
    script = "; ".join([*(f"ulimit -{name} {value}" for name, value in limits.items()), 'exec "$@"'])
    return ["sh", "-c", script, "sh", *command]


@contextmanager
def memory_group(mb: int, name: str) -> Iterator[Callable[[Sequence[str]], list[str]]]:
    """A control group with so much memory: what is yielded makes a command run in it.

    The kernel kills what needs more. Raises `FoundryError` where no group may be made.
    """
    old = Path("/sys/fs/cgroup/memory")
    folder, limit = (old / name, "memory.limit_in_bytes") if old.is_dir() else (old.parent / name, "memory.max")
    try:
        folder.mkdir()
        (folder / limit).write_text(str(mb << 20))
    except OSError as error:
        raise FoundryError(f"No control group can be made: {error}.", "Record this fault as root.") from error
    script = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
    try:
        yield lambda command: ["sh", "-c", script, "sh", *command]
    finally:
        for _ in range(200):  # the last process of a group may need a moment to be gone
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def kernel_kill(group: str) -> list[str]:
    """What the kernel said when it last killed a process of a memory group, its stack and counters left out.

    Raises `FoundryError` if it said nothing, or may not be read.
    """
    done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    at = max((number for number, line in enumerate(lines) if f"task_memcg=/{group}," in line), default=-1)
    if at < 0:
        raise FoundryError(
            f"The kernel told nothing about {group}: {done.stderr.strip()}.", "Record this fault as root."
        )
    begin = max(number for number in range(at + 1) if "invoked oom-killer" in lines[number])
    kept = re.compile(r"oom-kill|out of memory|(memory|swap): usage|Tasks state|\] \[ *(pid|\d+)\]|oom_reaper")
    return [line for line in lines[begin : at + 2] if kept.search(line)]
