"""The page in a real browser: it goes live, takes changes, obeys keys, and breaks no rule of its own policy."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sample_incidents import incident

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "screenshots.py"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


async def key(tab, name):
    for kind in ("keyDown", "keyUp"):
        await tab.call("Input.dispatchKeyEvent", type=kind, key=name, text=name if kind == "keyDown" else "")


async def test_an_open_list_goes_live_takes_changes_and_obeys_keys(site):
    async with runpy.run_path(str(SCRIPT), run_name="screenshots")["browser"](CHROMIUM) as tab:
        await tab.call("Page.navigate", url=site.url + "/")
        await tab.until("document.getElementById('live')?.dataset.live === 'on'")
        await key(tab, "j")
        await key(tab, "j")
        assert await tab.evaluate("document.activeElement.id") == "row-11"
        site.reader.put(incident(13, "cart", "CartDown <script>alert(1)</script>"))
        await tab.until("document.querySelector('#incident-list > li')?.id === 'incident-13'")
        assert await tab.evaluate("document.querySelectorAll('[data-row]').length") == 13
        assert await tab.evaluate("document.activeElement.id") == "row-11"
        changed = replace(site.reader.incident(10), state="diagnosed", finding=site.reader.incident(8).finding)
        site.reader.put(changed)
        await tab.until("document.getElementById('incident-10').textContent.includes('person needed')")
        await tab.until("document.getElementById('announce').textContent.startsWith('Incident 10, Deploy regression')")
        await key(tab, "k")
        await tab.evaluate("document.activeElement.click()")
        await tab.until("location.pathname === '/incidents/12'")
        assert tab.problems == []


async def test_an_open_incident_shows_its_answer_when_it_comes_and_keeps_what_was_unfolded(site):
    async with runpy.run_path(str(SCRIPT), run_name="screenshots")["browser"](CHROMIUM) as tab:
        await tab.call("Page.navigate", url=site.url + "/incidents/11")
        await tab.until("document.getElementById('live')?.dataset.live === 'on'")
        await tab.evaluate("document.getElementById('shown').open = true")
        await key(tab, "j")
        assert await tab.evaluate("document.activeElement.id") == "line-181"
        site.reader.put(replace(site.reader.incident(11), deliveries=4_321))
        await tab.until("document.getElementById('incident').textContent.includes('4,321 deliveries')")
        assert await tab.evaluate("document.getElementById('shown').open")
        assert await tab.evaluate("document.activeElement.id") == "line-181"
        await key(tab, "t")
        theme = await tab.evaluate("document.documentElement.dataset.theme")
        assert theme in {"light", "dark"}
        await key(tab, "u")
        await tab.until("location.pathname === '/' && document.readyState === 'complete'")
        assert await tab.evaluate("document.documentElement.dataset.theme") == theme
        assert tab.problems == []
