"""Take pictures of the page with headless Chromium, light and dark, on a phone and on a wide screen.

    python scripts/screenshots.py --url http://127.0.0.1:8010 --out docs/images   # a running Midwatch
    python scripts/screenshots.py --sample --out docs/images                      # invented incidents, no server needed

The browser is driven over its debugging protocol: its command line can neither make a window as narrow as a phone nor
ask for a colour scheme. The script waits until the page says that it is live, and fails if the page logs an error.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
SIZES: dict[str, tuple[int, int, float]] = {
    "phone": (390, 844, 1.5),
    "tablet": (820, 1180, 1),
    "laptop": (1280, 760, 1),
    "wide": (1600, 1000, 1),
    "4k": (3840, 2160, 1),
}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "about:blank",
)


class Tab:
    """One page of a browser, driven over the DevTools protocol."""

    def __init__(self, channel: aiohttp.ClientWebSocketResponse) -> None:
        self._channel = channel
        self._next = 0
        self.problems: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method and return its result; what the page logs meanwhile is gathered in `problems`."""
        self._next += 1
        await self._channel.send_json({"id": self._next, "method": method, "params": params})
        while True:
            message: dict[str, Any] = await self._channel.receive_json(timeout=30)
            self._note(message)
            if message.get("id") == self._next:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Log.entryAdded":
            entry = message["params"]["entry"]
            if entry["level"] in ("error", "warning"):
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(message["params"]["exceptionDetails"])[:500])

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def until(self, script: str, timeout_s: float = 15.0) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout_s
        while not await self.evaluate(script):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Waited {timeout_s} s in vain for: {script}")
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def browser(executable: str) -> AsyncIterator[Tab]:
    """A fresh headless Chromium with one tab."""
    with tempfile.TemporaryDirectory(prefix="midwatch-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            executable,
            f"--user-data-dir={profile}",
            *FLAGS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            deadline = time.monotonic() + 30
            while not (port_file.exists() and "\n" in port_file.read_text()):
                if time.monotonic() > deadline or process.returncode is not None:
                    raise RuntimeError("Chromium did not start.")
                await asyncio.sleep(0.05)
            port = port_file.read_text().splitlines()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [page for page in await answer.json() if page["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as channel:
                    tab = Tab(channel)
                    for domain in ("Page", "Log", "Runtime"):
                        await tab.call(f"{domain}.enable")
                    yield tab
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to take. `whole` takes the full height of the page instead of one screen."""

    page: str
    size: str
    theme: str
    whole: bool = False

    def file_name(self, prefix: str) -> str:
        """Such as `list-wide-light.png`."""
        return f"{prefix}{'incident' if self.page != '/' else 'list'}-{self.size}-{self.theme}.png"


async def shoot(tab: Tab, url: str, picture: Picture) -> bytes:
    """The PNG of one page, taken when its stream is live."""
    width, height, scale = SIZES[picture.size]
    await tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=scale,
        mobile=picture.size == "phone",
    )
    await tab.call(
        "Emulation.setEmulatedMedia",
        features=[
            {"name": "prefers-color-scheme", "value": picture.theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ],
    )
    await tab.call("Page.navigate", url=url + picture.page)
    await tab.until("document.readyState === 'complete' && location.href !== 'about:blank'")
    await tab.until("!document.getElementById('live') || document.getElementById('live').dataset.live === 'on'")
    overflow = await tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if overflow > 0:
        tab.problems.append(f"{picture.page} is {overflow} px too wide at {width} px")
    clip: dict[str, Any] = {}
    if picture.whole:
        content = (await tab.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"clip": {"x": 0, "y": 0, "width": width, "height": min(content["height"], 4_000), "scale": 1}}
    answer = await tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=picture.whole, **clip)
    return base64.b64decode(answer["data"])


@contextlib.asynccontextmanager
async def sample_server() -> AsyncIterator[str]:
    """The page over the invented incidents of the tests, on a free port."""
    import uvicorn
    from starlette.applications import Starlette

    from midwatch.dashboard.app import routes
    from midwatch.settings import Settings

    sample = runpy.run_path(str(ROOT / "tests" / "dashboard" / "sample_incidents.py"), run_name="sample_incidents")
    app = Starlette(routes=routes(sample["MemoryReader"](sample["twelve"](time.time())), Settings()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


def wanted(incident: int, every: bool) -> list[Picture]:
    """The two pictures of the documentation, or every page in every size and theme."""
    one = f"/incidents/{incident}"
    if not every:
        return [Picture(page="/", size="laptop", theme="light"), Picture(page=one, size="phone", theme="dark")]
    return [
        Picture(page=page, size=size, theme=theme, whole=page == one and size != "4k")
        for size in SIZES
        for theme in ("light", "dark")
        for page in ("/", one)
    ]


async def take(arguments: argparse.Namespace) -> list[str]:
    """Take and write the pictures; gives what the pages complained about."""
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(sample_server()) if arguments.sample else arguments.url.rstrip("/")
        tab = await stack.enter_async_context(browser(arguments.chromium))
        for picture in wanted(arguments.incident, arguments.every):
            png = await shoot(tab, url, picture)
            path = arguments.out / picture.file_name("sample-" if arguments.sample else "")
            path.write_bytes(png)
            print(f"{path}  {len(png) // 1000} kB")
        return tab.problems


def main() -> None:
    """Read the arguments and take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8010", help="where Midwatch runs")
    parser.add_argument("--sample", action="store_true", help="serve invented incidents instead")
    parser.add_argument("--incident", type=int, default=11, help="id of the incident to show")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--every", action="store_true", help="every page, size and theme")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome") or "chromium")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problems = asyncio.run(take(arguments))
    for problem in problems:
        print(f"the page complained: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
