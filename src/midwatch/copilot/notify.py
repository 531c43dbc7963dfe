"""Who is told: a message in Slack's format, from an outbox, so that a crash neither loses nor repeats it.

The message is written in the transaction that stores the diagnosis, so there is never one without the other, and once
per (incident, channel, version). Sending is: commit "claimed", post, commit "sent". After a restart whatever was
claimed is sent again under the same `Idempotency-Key`, because nobody can know whether it arrived.

What remains, honestly: if the process dies after the receiver took the post and before our commit, the post is repeated
once. A receiver that honours the key drops it; Slack does not, and would show it twice. The other order (commit first,
then post) would lose a message instead, which at 3 am is the worse of the two.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable

import aiohttp
import orjson

from midwatch.copilot.claims import Message, Sent
from midwatch.copilot.model import Finding, IncidentView
from midwatch.copilot.store import Store, StoreError
from midwatch.settings import NotifySettings

SLACK = "slack"
RETRY_FIRST_S, RETRY_CAP_S = 1.0, 300.0
_TIMEOUT_S = 15.0
_IDLE_S = 60.0
_RETRYABLE_4XX = {408, 429}
_SECTION_CHARS = 2_900  # Slack takes 3,000 in a section's text
_LINE_CHARS = 300
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
_log = logging.getLogger("midwatch.copilot")


def slack_body(incident: IncidentView, finding: Finding, page_url: str) -> str:
    """The post as JSON text: one sentence, category and confidence, the cited lines, next steps, where to read on.

    Every foreign word is escaped as Slack asks (`&`, `<`, `>`), and cannot close the code block that it stands in, so a
    log line can neither mention a channel nor draw a link.
    """
    diagnosis = finding.diagnosis
    answer = escape(diagnosis.summary) or "No answer in words."
    label = "calibrated" if diagnosis.calibrated else "uncalibrated"
    asks = " · *a person is needed*" if diagnosis.action == "ask_person" else ""
    facts = (
        f"`{escape(diagnosis.category)}` · severity {diagnosis.severity} · entity `{escape(diagnosis.entity)}` · "
        f"confidence {diagnosis.confidence:.2f} ({label}){asks}"
    )
    blocks = [_section(f"*{answer}*\n{escape(incident.title)} · service {escape(incident.service)}"), _section(facts)]
    if diagnosis.citations:
        cited = (f"{item.line_number}: {escape(item.text[:_LINE_CHARS])}" for item in diagnosis.citations)
        blocks.append(_section("```" + _cut("\n".join(cited), _SECTION_CHARS - 6) + "```"))
    if diagnosis.next_steps:
        blocks.append(_section("*Next steps*\n" + "\n".join(f"• {escape(step)}" for step in diagnosis.next_steps)))
    blocks.append(_section(f"<{page_url}/incidents/{incident.id}|Incident {incident.id}>"))
    return orjson.dumps({"text": f"{answer} ({escape(diagnosis.category)})", "blocks": blocks}).decode()


def escape(text: str) -> str:
    """Foreign text for Slack: no control characters, no markup, no code fence."""
    clean = _CONTROL.sub("", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return clean.replace("```", "'''").replace("`", "'")


def _cut(text: str, limit: int = _SECTION_CHARS) -> str:
    """A text that fits a section, not cut within an escape."""
    return text if len(text) <= limit else re.sub(r"&[a-z]*$", "", text[: limit - 1]) + "…"


def _section(text: str) -> dict[str, object]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": _cut(text)}}


class Notifier:
    """Sends what lies in the outbox, one message at a time, in the order in which it is due."""

    def __init__(
        self,
        store: Store,
        settings: NotifySettings,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._url = settings.slack_webhook_url
        self._clock = clock
        self._pause = pause
        self._session: aiohttp.ClientSession | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are set; a diagnosis is written to the outbox once for each."""
        return (SLACK,) if self._url is not None else ()

    async def run(self) -> None:
        """Send until cancelled. A store that cannot write is asked again; nothing else ends the loop."""
        while self.channels:
            seen = self._store.changes
            try:
                if await self.step():
                    continue
                _, due = await asyncio.to_thread(self._store.next_due)
            except StoreError as error:
                _log.warning("notify: %s", error)
                await self._pause(RETRY_FIRST_S)
                continue
            wait_s = _IDLE_S if due is None else min(_IDLE_S, max(0.0, due - self._clock()))
            await self._store.wait_change(seen, wait_s)

    async def step(self) -> bool:
        """Send one message, if one is due. True if there was one."""
        _, due = await asyncio.to_thread(self._store.next_due)
        if due is None or due > self._clock():
            return False
        message = await self._store.claim_message()
        if message is None:
            return False
        sent = await self._post(message)
        while True:  # what happened to a message must be written down, however long the disk takes
            try:
                await self._store.settle_message(sent)
            except StoreError as error:
                _log.warning("notify: %s", error)
                await self._pause(RETRY_FIRST_S)
            else:
                return True

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, message: Message) -> Sent:
        assert self._url is not None, "no message is claimed without a channel"
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.delivery_id}
        backoff_s = min(RETRY_CAP_S, RETRY_FIRST_S * 2 ** (message.attempts - 1))
        try:
            async with self._session.post(
                self._url.get_secret_value(), data=message.body.encode(), headers=headers, allow_redirects=False
            ) as answer:
                if 200 <= answer.status < 300:
                    return Sent(id=message.id)
                detail = (await answer.content.read(200)).decode("utf-8", "replace").strip()
                error = f"the receiver answered {answer.status}: {detail or answer.reason}"
                if answer.status < 500 and answer.status not in _RETRYABLE_4XX:
                    return Sent(id=message.id, error=f"{error}. Check notify.slack_webhook_url; it is not sent again.")
                return Sent(id=message.id, error=error, retry_in_s=max(backoff_s, _retry_after_s(answer)))
        except ValueError:  # aiohttp's InvalidURL is one, so this comes first
            return Sent(id=message.id, error="notify.slack_webhook_url is not a URL; the message is not sent again.")
        except (aiohttp.ClientError, TimeoutError) as error_:
            return Sent(
                id=message.id, error=f"the receiver cannot be reached ({type(error_).__name__})", retry_in_s=backoff_s
            )


def _retry_after_s(answer: aiohttp.ClientResponse) -> float:
    """The receiver's wish in seconds, within reason; its date form counts as none."""
    wish = answer.headers.get("Retry-After", "")
    return min(float(wish), 3600.0) if wish.isdecimal() and len(wish) < 9 else 0.0
