"""The supervisor against real child processes that serve, crash, hang and refuse to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

from midwatch.resilience.supervisor import ChildSpec, Policy, Supervisor

QUICK = Policy(
    probe_every_s=0.02,
    steady_probe_every_s=0.05,
    probe_timeout_s=0.5,
    hung_after_s=0.5,
    backoff_s=0.05,
    stop_grace_s=0.5,
)
SERVER = textwrap.dedent("""
    import http.server, pathlib, signal, sys
    port, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    if (folder / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = 503 if (folder / "unwell").exists() else 200
            self.send_response(status); self.send_header("Content-Length", "0"); self.end_headers()
        def log_message(self, *a): pass
    with (folder / "starts").open("a") as starts: starts.write("start\\n")
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
""")


def _spec(folder: Path) -> ChildSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ChildSpec(
        name="child",
        argv=(sys.executable, "-c", SERVER, str(port), str(folder)),
        health_url=f"http://127.0.0.1:{port}/",
    )


def _starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


async def _until(condition, limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_killed_child_is_started_again_and_becomes_ready(tmp_path: Path) -> None:
    said: list[str] = []
    async with Supervisor([_spec(tmp_path)], report=said.append, policy=QUICK) as supervisor:
        await supervisor.ready()
        first = supervisor.pids()["child"]
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await _until(lambda: _starts(tmp_path) == 2)
        await supervisor.ready()
        assert supervisor.pids()["child"] not in (None, first)
    assert any("ended with signal SIGKILL" in sentence for sentence in said)


async def test_a_child_that_stays_unwell_is_replaced(tmp_path: Path) -> None:
    said: list[str] = []
    async with Supervisor([_spec(tmp_path)], report=said.append, policy=QUICK) as supervisor:
        await supervisor.ready()
        (tmp_path / "unwell").touch()
        await _until(lambda: _starts(tmp_path) >= 2)
        (tmp_path / "unwell").unlink()
        await supervisor.ready()
    assert any("has not been well" in sentence for sentence in said)


async def test_stopping_ends_even_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    async with Supervisor([_spec(tmp_path)], report=lambda _: None, policy=QUICK) as supervisor:
        await supervisor.ready()
        pid = supervisor.pids()["child"]
    assert pid is not None
    assert not _alive(pid)


async def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    parent = textwrap.dedent(f"""
        import asyncio
        from midwatch.resilience.supervisor import ChildSpec, Supervisor
        spec = ChildSpec(name="child", argv={spec.argv!r}, health_url={spec.health_url!r})
        async def main():
            async with Supervisor([spec], report=lambda _: None) as supervisor:
                await supervisor.ready()
                print(supervisor.pids()["child"], flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert _alive(pid)
        process.kill()
    await _until(lambda: not _alive(pid))
