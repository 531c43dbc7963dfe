# ruff: noqa: E501 - a pattern is easier to read on one line
"""What may leave this machine? Nothing that is a secret or names a person or an address: the one door to a remote
model.

Secrets, e-mail addresses and IP addresses become placeholders such as `[SECRET_1]`, `[EMAIL_1]`, `[IP_2]`. Within one
call equal values share a placeholder, so that a model can still tell hosts apart; `restore` puts the values back into
its answer. A placeholder that the text already held is itself replaced first, so no log can smuggle one in and have
it "restored".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from midwatch.gateway.wire import ChatRequest, Message

_PLACEHOLDER = re.compile(r"\[(SECRET|EMAIL|IP|LITERAL)_\d{1,6}\]")
_HIDDEN = r"\[(?:SECRET|EMAIL|IP|LITERAL)_\d{1,6}\]"
_KEY_NAME = (
    r"(?:[\w.-]{0,60}(?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key|credentials?|authorization|"
    r"auth[_-]?key|client[_-]?key|encryption[_-]?key|signing[_-]?key|session(?:[_-]?id)?|cookie|dsn|pwd|passcode|otp|pin|x-amz-signature|sig))"
)

_SECRETS: tuple[tuple[re.Pattern[str], int], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.{0,8000}?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----",
            re.S,
        ),
        0,
    ),
    (re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[^\n]*"), 0),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?(?:\.[\w-]*){0,2}"), 0),
    (re.compile(r"\b[a-zA-Z][\w+.-]{1,30}://[^\s:@/'\"]{0,200}:([^\s@'\"]{1,300})@"), 1),
    (re.compile(r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|AGPA|AIDA|AROA|AIPA|ANPA|ANVA)[A-Z0-9]{12,20}\b"), 0),
    (
        re.compile(
            r"\bgh[pousr]_[A-Za-z0-9]{16,255}\b|\bgithub_pat_\w{20,255}\b|\bglpat-[\w-]{16,}\b|\bglrt-[\w-]{16,}\b"
        ),
        0,
    ),
    (
        re.compile(
            r"\bxox[abeoprs]-[\w-]{8,}|\bxapp-[\w-]{10,}|https://hooks\.slack\.com/(?:services|workflows)/[\w/+-]{8,}"
        ),
        0,
    ),
    (re.compile(r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or|svcacct)?[-_]?[\w-]{16,}"), 0),
    (
        re.compile(
            r"\bgsk_\w{16,}|\bhf_[A-Za-z0-9]{16,}|\bnpm_[A-Za-z0-9]{20,}|\bpypi-[\w-]{20,}|\bdop_v1_[a-f0-9]{32,}|\bya29\.[\w-]{10,}|\bAIza[\w-]{30,}"
        ),
        0,
    ),
    (
        re.compile(
            r"\bSG\.[\w-]{10,}\.[\w-]{10,}|\bkey-[0-9a-f]{32}\b|\bSK[0-9a-f]{32}\b|\bAC[0-9a-f]{32}\b|\bhvs\.[\w-]{20,}|\bs\.[A-Za-z0-9]{24}\b|\bdapi[0-9a-f]{32}\b"
        ),
        0,
    ),
    (re.compile(r"\b(?:bearer|basic|digest|token|negotiate)\s+([\w.~+/=-]{8,})", re.I), 1),
    (
        re.compile(
            rf"(?<![\w]){_KEY_NAME}\\?[\"']?\s*(?:=>|:=|[:=])\s*(?:bearer |basic |token )?\\?\"((?:[^\"\\]|\\(?!\")){{1,500}}?)\\?\"",
            re.I,
        ),
        1,
    ),
    (
        re.compile(rf"(?<![\w]){_KEY_NAME}[\"']?\s*(?:=>|:=|[:=])\s*(?:bearer |basic |token )?'([^']{{1,500}})'", re.I),
        1,
    ),
    (
        re.compile(
            rf"(?<![\w]){_KEY_NAME}\\?[\"']?\s*(?:=>|:=|[:=])\s*(?:bearer |basic |token )?({_HIDDEN}(?=$|[\s\"'\\,;&)\]}}])|(?:{_HIDDEN}|[^\s\"'\\,;&)\]}}]){{2,500}})",
            re.I,
        ),
        1,
    ),
    (re.compile(r"(?<![\w-])(?:--?(?:p(?:assword)?|token|secret|api-key))[ =]([^\s'\"-][^\s'\"]{3,200})", re.I), 1),
    (re.compile(r"\bpassword (?:is|was|of|for \S+ is) [\"']?([^\s\"']{3,200})", re.I), 1),
    (
        re.compile(
            r"(?<![\w/+=.-])(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*\d)[A-Za-z0-9+/]{40,}={0,2}(?![\w/+=.-])"
        ),
        0,
    ),
)
_ALL_HIDDEN = re.compile(rf"(?:{_HIDDEN}|\W)*")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}\b")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,6}(?::[0-9a-f]{1,4}){1,6}|(?:[0-9a-f]{1,4}:){1,7}:(?![\w:])|"
    r"::(?:[0-9a-f]{1,4}:){0,6}[0-9a-f]{1,4})(?![\w:])",
    re.I,
)
_NOT_SECRET = re.compile(
    r"^(?:true|false|null|none|nil|undefined|required|missing|invalid|expired|authentication|failed|error|is|was|not|has|the|\*+|<[^>]*>|\[\w+_\d+\]|\$\{?\w+\}?|\d{1,3})$",
    re.I,
)


class Redactor:
    """The placeholders of one call. `redact` and `restore` are inverses on everything that was redacted by it."""

    def __init__(self) -> None:
        self._by_value: dict[tuple[str, str], str] = {}
        self._by_name: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    @property
    def count(self) -> int:
        """How many distinct values were taken out."""
        return len(self._by_name)

    def redact(self, text: str) -> str:
        """Text in which every secret, e-mail and IP address is a placeholder. Redacting twice changes nothing more."""
        text = _PLACEHOLDER.sub(
            lambda match: match.group() if match.group() in self._by_name else self._hide("LITERAL", match.group()),
            text,
        )
        for pattern, group in _SECRETS:
            text = pattern.sub(self._replace("SECRET", group), text)
        text = _EMAIL.sub(self._replace("EMAIL", 0), text)
        text = _IPV4.sub(self._replace("IP", 0), text)
        return _IPV6.sub(self._replace("IP", 0), text)

    def restore(self, text: str) -> str:
        """Text with the values back in the place of their placeholders; unknown placeholders stay as they are."""
        return _PLACEHOLDER.sub(lambda match: self._by_name.get(match.group(), match.group()), text)

    def _replace(self, kind: str, group: int) -> Callable[[re.Match[str]], str]:
        def hide(match: re.Match[str]) -> str:
            value = match[group]
            if kind == "SECRET" and (_NOT_SECRET.match(value) or _ALL_HIDDEN.fullmatch(value)):
                return match.group()
            before = match.group()[: match.start(group) - match.start()]
            after = match.group()[match.end(group) - match.start() :]
            return before + self._hide(kind, value) + after

        return hide

    def _hide(self, kind: str, value: str) -> str:
        value = self.restore(value)  # what a value holds may be hidden already
        name = self._by_value.get((kind, value))
        if name is None:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            name = f"[{kind}_{self._counts[kind]}]"
            self._by_value[kind, value] = name
            self._by_name[name] = value
        return name


def redact_request(request: ChatRequest) -> tuple[ChatRequest, Redactor]:
    """A request whose messages and grammar may leave the machine, and the key to its answer."""
    redactor = Redactor()
    messages = tuple(
        Message(role=message.role, content=redactor.redact(message.content)) for message in request.messages
    )
    schema = None if request.json_schema is None else _walk(request.json_schema, redactor)
    return replace(request, messages=messages, json_schema=schema), redactor


def restore_value(value: Any, redactor: Redactor) -> Any:
    """A parsed answer with every string restored."""
    if isinstance(value, str):
        return redactor.restore(value)
    if isinstance(value, list):
        return [restore_value(item, redactor) for item in value]
    if isinstance(value, dict):
        return {key: restore_value(item, redactor) for key, item in value.items()}
    return value


def _walk(value: Any, redactor: Redactor) -> Any:
    if isinstance(value, str):
        return redactor.redact(value)
    if isinstance(value, list):
        return [_walk(item, redactor) for item in value]
    if isinstance(value, dict):
        return {key: _walk(item, redactor) for key, item in value.items()}
    return value
