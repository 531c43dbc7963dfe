"""The pages as they are served: statuses, escaping, the policy, what the reader is told."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from dashboard_site import serve
from markup import Page
from sample_incidents import HOSTILE, NOW, MemoryReader, finding, incident, many, twelve

from midwatch.copilot import taxonomy
from midwatch.dashboard import words
from midwatch.dashboard.security import HEADERS
from midwatch.dashboard.static_files import static_folder
from midwatch.errors import MidwatchError
from midwatch.settings import Settings

PAGES = [
    "/",
    "/?before=7",
    "/?limit=3",
    "/?theme=dark",
    "/?limit=none",
    "/incidents/404",
    "/incidents/abc",
    *(f"/incidents/{n}" for n in range(1, 13)),
]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_balanced_html_with_nothing_inline_and_nothing_from_elsewhere(site, path):
    _, html = await site.get(path)
    page = Page(html)
    assert page.breaches() == []
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/?before=5", 200),
        ("/incidents/11", 200),
        ("/incidents/11/log", 200),
        ("/api/incidents", 200),
        ("/api/incidents/11", 200),
        ("/static/app.css", 200),
        ("/static/vendor/htmx.min.js", 200),
        ("/incidents/99", 404),
        ("/incidents/x", 404),
        ("/incidents/99/log", 404),
        ("/api/incidents/99", 404),
        ("/api/incidents/-1", 404),
        ("/api/incidents/" + "9" * 30, 404),
        ("/static/..%2fapp.py", 404),
        ("/static/no.css", 404),
        ("/?limit=0", 400),
        ("/?before=x", 400),
        ("/api/incidents?limit=1001", 400),
        ("/api/incidents?before=-1", 400),
        ("/events?incident=x", 400),
    ],
)
async def test_every_route_answers_with_its_status_and_the_security_headers(site, path, status):
    answer, _ = await site.get(path)
    assert answer.status == status
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


async def test_hostile_text_is_shown_and_never_run(site):
    for path in ("/", "/incidents/6"):
        _, html = await site.get(path)
        assert "<script>alert" not in html
        assert "<img" not in html
        assert "\u202e" not in html
        assert "\x1b" not in html
        assert '<script>alert("pwned")</script>' in Page(html).text
        assert "⟨U+202E⟩" in html


async def test_the_stream_escapes_hostile_text_too(site):
    async with site.session.get(site.url + "/events?incident=6") as answer:
        message = b""
        while b"\n\nid:" not in message and b'id="shown"' not in message:
            message += await answer.content.readany()
    assert b"<script>alert" not in message
    assert b"&lt;script&gt;alert" in message


async def test_an_unknown_incident_says_so_kindly_and_as_json_under_api(site):
    _, html = await site.get("/incidents/%3Cb%3E99")
    assert "There is no incident <b>99." in Page(html).text
    answer, body = await site.get("/api/incidents/99")
    assert answer.content_type == "application/json"
    assert json.loads(body)["error"]["next_step"] == (
        "It may have been in another database; /api/incidents and the list show those there are."
    )


async def test_the_list_says_how_each_incident_stands(site):
    _, html = await site.get("/")
    text = Page(html).text
    assert "3 attempts failed, will try again: The model host engine at" in text
    assert "The model is reading the log." in text
    assert "Waiting for the events to settle." in text
    assert "0.47 uncalibrated person needed diagnosed" in text
    assert "0.44 uncalibrated escalated diagnosed" in text
    assert "0.79 uncalibrated local diagnosed 1,214 deliveries" in text
    assert "12 Incidents" in text.replace("Incidents 12", "12 Incidents")
    assert "1,209 duplicates merged" in html


async def test_rows_stand_newest_first_and_can_be_reached_by_keys(site):
    _, html = await site.get("/")
    page = Page(html)
    rows = [attributes["id"] for tag, attributes in page.tags if tag == "a" and "data-row" in attributes]
    assert rows == [f"row-{n}" for n in range(12, 0, -1)]
    assert {"theme", "live", "announce", "incident-list", "totals", "main", "stream", "home"} <= set(page.ids)
    _, html = await site.get("/incidents/11")
    page = Page(html)
    assert {"up", "theme", "live", "incident", "line-181", "line-184", "line-185"} <= set(page.ids)


async def test_an_older_page_follows_and_is_not_live(site):
    _, html = await site.get("/?limit=5")
    assert 'href="/?before=8"' in html
    _, html = await site.get("/?before=8")
    assert "hx-sse:connect" not in html
    assert 'id="row-7"' in html
    assert 'id="row-8"' not in html


async def test_an_empty_list_shows_the_command_that_fills_it(empty_site):
    _, html = await empty_site.get("/")
    text = Page(html).text
    assert f"'{empty_site.url}/hooks/text?service=postgres'" in text
    assert "Authorization" not in text


async def test_the_command_names_the_token_when_the_hook_wants_one_and_never_shows_it(tmp_path):
    settings = Settings(state_dir=tmp_path, sources={"text": {"tokens": ["s3cret"]}})
    async for site in serve(MemoryReader(), settings):
        _, html = await site.get("/")
        assert "$MIDWATCH_TOKEN" in html
        assert "s3cret" not in html


async def test_a_forged_host_header_does_not_reach_the_command(empty_site):
    _, html = await empty_site.get("/", headers={"Host": "a'; rm -rf ~ #"})
    assert "rm -rf" not in html
    assert "http://127.0.0.1:8010/hooks/text" in html


async def test_the_incident_page_answers_first_and_shows_cited_lines_in_context(site):
    _, html = await site.get("/incidents/11")
    page = Page(html)
    text = page.text
    assert text.index("PostgreSQL is out of connections") < text.index("Above the threshold.") < text.index("FATAL:")
    cited = [attributes["id"] for tag, attributes in page.tags if "data-cited" in attributes]
    assert cited == ["line-181", "line-184", "line-185"]
    assert "177 lines, 57 of them only in the whole log" in text
    assert "1,214 deliveries of 5 events, 1,209 duplicates merged, from alertmanager, loki." in text
    assert "same service (postgres) within 900 s of incident 11" in text
    assert "Connections exhausted" in text
    assert "874" in text
    assert "$0.000071" in text


async def test_a_reader_is_told_when_the_answer_is_not_sure_enough(site):
    _, html = await site.get("/incidents/8")
    assert "Not sure enough: ask a person." in Page(html).text
    _, html = await site.get("/incidents/6")
    assert "The log does not say why: ask a person." in Page(html).text
    assert "1 cited line was never shown to the model and was dropped." in Page(html).text
    _, html = await site.get("/incidents/5")
    assert "Escalated to llama-3.3-70b-versatile (groq)" in Page(html).text


async def test_a_line_of_megabytes_makes_no_page_of_megabytes(tmp_path):
    lines = ("start", "x" * 5_000_000, *(f"line {n} " + "y" * 5_000 for n in range(40_000)))
    view = incident(
        1,
        "big",
        "Big",
        lines=lines,
        state="diagnosed",
        diagnosed_at=NOW + 4,
        finding=finding(lines[:2], [2], category="unknown", summary="Too long to read."),
    )
    async for site in serve(MemoryReader([view]), Settings(state_dir=tmp_path)):
        _, html = await site.get("/incidents/1")
        assert len(html) < 200_000
        assert "4,998,000 more characters" in html
        _, body = await site.get("/api/incidents")
        assert len(body) < 20_000
        _, body = await site.get("/api/incidents/1")
        assert json.loads(body)["lines"][1] == "x" * 5_000_000


async def test_the_whole_log_is_plain_text(site):
    answer, text = await site.get("/incidents/6/log")
    assert answer.content_type == "text/plain"
    assert HOSTILE in text


async def test_text_that_is_no_unicode_is_still_shown(tmp_path):
    view = incident(1, "odd \ud800", "odd \udfff title", lines=("half \ud83d",), last_error="\ud800")
    async for site in serve(MemoryReader([view]), Settings(state_dir=tmp_path)):
        for path in ("/", "/incidents/1", "/incidents/1/log", "/api/incidents", "/api/incidents/1"):
            answer, _ = await site.get(path)
            assert answer.status == 200


async def test_the_json_list_pages_and_leaves_lines_out(site):
    _, body = await site.get("/api/incidents?limit=2&before=12")
    views = json.loads(body)["incidents"]
    assert [view["id"] for view in views] == [11, 10]
    assert "lines" not in views[0]
    assert views[0]["finding"]["diagnosis"]["category"] == "connection_exhaustion"
    assert views[1]["finding"] is None


async def test_static_files_are_kept_for_long_under_their_versioned_name(site):
    _, html = await site.get("/")
    style = next(attributes["href"] for tag, attributes in Page(html).tags if attributes.get("rel") == "stylesheet")
    answer, _ = await site.get(style)
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    again, _ = await site.get(style, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status == 304
    bare, _ = await site.get("/static/app.css")
    assert bare.headers["Cache-Control"] == "no-cache"
    page, _ = await site.get("/")
    assert page.headers["Cache-Control"] == "no-store"


async def test_a_theme_is_remembered(site):
    answer, html = await site.get("/?theme=dark")
    assert 'data-theme="dark"' in html
    assert answer.cookies["midwatch_theme"].value == "dark"
    _, html = await site.get("/", headers={"Cookie": "midwatch_theme=light"})
    assert 'data-theme="light"' in html
    _, html = await site.get("/", headers={"Cookie": 'midwatch_theme="><script>'})
    assert "data-theme" not in html


async def test_a_thousand_incidents_can_be_asked_for_at_once(tmp_path):
    async for site in serve(MemoryReader(many(1_000)), Settings(state_dir=tmp_path)):
        _, html = await site.get("/?limit=1000")
        assert html.count("data-row") == 1_000


def test_twelve_sample_incidents_are_twelve():
    assert [view.id for view in twelve()] == list(range(1, 13))


async def test_a_message_that_did_not_go_out_is_seen_on_the_list_and_the_incident(site):
    site.reader.put(replace(site.reader.incident(11), notified_at=None, last_error="slack: 404 no_team"))
    for path in ("/", "/incidents/11"):
        _, html = await site.get(path)
        assert "People could not be told: slack: 404 no_team" in Page(html).text
        assert Page(html).breaches() == []


async def test_an_incident_that_is_read_again_keeps_its_answer_on_the_page(site):
    site.reader.put(replace(site.reader.incident(11), state="waiting"))
    _, html = await site.get("/incidents/11")
    assert "PostgreSQL is out of connections" in Page(html).text
    assert "New events came in; the log is read again." in Page(html).text


class BrokenReader(MemoryReader):
    """A reader whose disk has gone."""

    def list_incidents(self, limit=100, before_id=None):
        raise MidwatchError("The database cannot be read.", "Check the disk.")

    def incident(self, incident_id):
        raise MidwatchError("The database cannot be read.", "Check the disk.")


async def test_a_store_that_cannot_be_read_is_a_503_with_words(tmp_path):
    async for site in serve(BrokenReader(), Settings(state_dir=tmp_path)):
        for path in ("/", "/incidents/1"):
            answer, html = await site.get(path)
            assert answer.status == 503
            assert "The database cannot be read. Check the disk." in Page(html).text
        answer, body = await site.get("/api/incidents")
        assert answer.status == 503
        assert json.loads(body) == {
            "error": {"message": "The database cannot be read.", "next_step": "Check the disk."}
        }
        answer, body = await site.get("/events")
        assert body.startswith("retry:")


def test_vendored_scripts_are_the_ones_written_down():
    folder = static_folder() / "vendor"
    written = (folder / "VENDOR.md").read_text()
    scripts = sorted(folder.glob("*.js"))
    assert [script.name for script in scripts] == ["htmx.min.js", "hx-sse.min.js"]
    for script in scripts:
        assert hashlib.sha256(script.read_bytes()).hexdigest() in written


def test_every_category_of_the_taxonomy_has_words():
    assert {*taxonomy.IDS, taxonomy.UNKNOWN} <= set(words.CATEGORIES)
