"""Who may post: a bearer token, or an HMAC over the raw bytes; with neither set, this machine only.

Secrets are compared in constant time, and all of them each time, so that neither the length of a match nor its place in
the list shows. The HMAC is taken over the bytes as they came, before any decompression or parsing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from midwatch.errors import RequestError
from midwatch.settings import SourceSettings

SIGNATURE_HEADER = "x-midwatch-signature"
_NO_SECRETS = SourceSettings()


def check_caller(settings: SourceSettings | None, source: str, headers: Mapping[str, str], peer: str | None) -> None:
    """Refuse before a byte of the body is read, where that can be known.

    `headers` has lower-case names; `peer` is the address of the other end, None for a Unix socket. Raises
    `RequestError` 401 (a token is missing or wrong) or 403 (no secret is set and the caller is not on this machine).
    """
    secrets = settings or _NO_SECRETS
    if not secrets.tokens and not secrets.hmac_secrets:
        if not _is_local(headers, peer):
            raise RequestError(
                "This hook has no secret, so it is open to this machine only.",
                f"Set sources.{source}.tokens or sources.{source}.hmac_secrets in midwatch.toml and send one of them.",
                status=403,
            )
        return
    if SIGNATURE_HEADER in headers and secrets.hmac_secrets:
        return  # decided by `check_signature`, when the raw bytes are here
    if not _has_token(secrets, headers.get("authorization", "")):
        ways = ["Authorization: Bearer TOKEN"] if secrets.tokens else []
        ways += ["X-Midwatch-Signature: sha256=HEX"] if secrets.hmac_secrets else []
        raise RequestError(
            "The caller did not prove who it is.",
            f"Send {' or '.join(ways)}, with a secret of sources.{source}.",
            status=401,
        )


def check_signature(settings: SourceSettings | None, source: str, headers: Mapping[str, str], raw: bytes) -> None:
    """Check the HMAC of the raw body, where the caller chose to sign. Raises `RequestError` 401."""
    secrets = settings or _NO_SECRETS
    if not secrets.hmac_secrets or _has_token(secrets, headers.get("authorization", "")):
        return
    given = headers.get(SIGNATURE_HEADER, "").strip().lower().removeprefix("sha256=").encode()
    good = False
    for secret in secrets.hmac_secrets:
        wanted = hmac.new(secret.get_secret_value().encode(), raw, hashlib.sha256).hexdigest().encode()
        good |= hmac.compare_digest(given, wanted)
    if not good:
        raise RequestError(
            "The signature does not fit the body.",
            f"Sign the raw body: X-Midwatch-Signature: sha256=<hex HMAC-SHA256> with a secret of sources.{source}.",
            status=401,
        )


def _has_token(secrets: SourceSettings, authorization: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return False
    good = False
    for token in secrets.tokens:
        good |= hmac.compare_digest(given.strip().encode(), token.get_secret_value().encode())
    return good


def _is_local(headers: Mapping[str, str], peer: str | None) -> bool:
    """True for a caller on this machine that is neither a proxy for others nor a web page from elsewhere."""
    if "x-forwarded-for" in headers or "forwarded" in headers:
        return False
    origin = headers.get("origin")
    if origin is not None and not _is_loopback(urlsplit(origin).hostname or ""):
        return False
    return peer is None or _is_loopback(peer)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
