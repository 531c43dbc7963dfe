"""Plain text: whatever a shell can pipe. `curl --data-binary @app.log 'http://HOST/hooks/text?service=app'`.

Somebody posted it because something is wrong, so it opens an incident. Logs are dirty: bytes that are not UTF-8 are
replaced, not refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from midwatch.copilot.intake.labels import UNKNOWN_SERVICE, severity_of
from midwatch.copilot.intake.source import NAME_CHARS, TITLE_CHARS, one_line, wrong_shape
from midwatch.copilot.model import Event, LogLine
from midwatch.errors import RequestError

_BINARY = ("multipart/", "image/", "audio/", "video/")


class Text:
    """`POST /hooks/text?service=NAME&title=WORDS&severity=WORD`; all three are optional."""

    name = "text"
    path = "/hooks/text"
    accepted_status = 202

    def check_media_type(self, media_type: str) -> None:
        """Anything that may be text: curl's default of a form is let through, a file upload or a picture is not."""
        if media_type.startswith(_BINARY):
            raise RequestError(
                f"This hook reads plain text, not {one_line(media_type, 80)}.",
                "Send the log as the body: curl --data-binary @app.log -H 'Content-Type: text/plain' ...",
                status=415,
            )

    def parse(self, body: bytes, query: Mapping[str, str]) -> list[Event]:
        """One event that carries the lines."""
        text = body.decode("utf-8", "replace").removeprefix("\ufeff")
        lines = tuple(LogLine(text=line.removesuffix("\r")) for line in text.split("\n"))
        while lines and not lines[-1].text.strip():
            lines = lines[:-1]
        if not lines:
            raise wrong_shape(
                "The log is empty: there is nothing to read.",
                "Send at least one line: curl --data-binary @app.log 'http://HOST/hooks/text?service=app'.",
            )
        service = one_line(query.get("service", ""), NAME_CHARS) or UNKNOWN_SERVICE
        title = one_line(query.get("title", ""), TITLE_CHARS) or f"Log of {service}"
        digest = hashlib.sha256()
        for part in (service.encode(), title.encode(), body):
            digest.update(len(part).to_bytes(8, "big") + part)
        return [
            Event(
                source=self.name,
                fingerprint=digest.hexdigest()[:32],
                status="firing",
                service=service,
                title=title,
                severity=severity_of(query.get("severity", "")),
                lines=lines,
            )
        ]
