"""The raw bytes of a request, never more of them than allowed, and their decompression with the same bound."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

from midwatch.errors import RequestError

_PIECE = 65_536


def too_large(limit: int) -> RequestError:
    """The 413 of a body over the cap."""
    return RequestError(
        f"The body is larger than {limit:,} bytes.",
        "Send it in smaller pieces, or raise app.max_body_bytes in midwatch.toml.",
        status=413,
    )


async def read_bounded(chunks: AsyncIterator[bytes], declared: str | None, limit: int) -> bytes:
    """Read a body of at most `limit` bytes. `declared` is the Content-Length header, if any.

    A declared length over the limit is refused before anything is read, an undeclared one as soon as it is passed.
    Raises `RequestError` 413.
    """
    if declared is not None and declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large(limit)
    kept: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        kept.append(chunk)
    return b"".join(kept)


def decompress(raw: bytes, encoding: str, limit: int) -> bytes:
    """Undo `Content-Encoding`; the result is bounded too, so that a small bomb stays small.

    Raises `RequestError` 400 (damaged), 413 (over the limit) or 415 (an encoding that we do not read).
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return raw
    if name not in {"gzip", "x-gzip"}:
        raise RequestError(
            f"The encoding {name[:40]!r} is not read.",
            "Send the body plain or with Content-Encoding: gzip.",
            status=415,
        )
    kept: list[bytes] = []
    size = 0
    rest = raw
    try:
        while rest:  # a gzip body may hold several members one after the other
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                piece = member.decompress(rest, _PIECE)
                rest = member.unconsumed_tail
                size += len(piece)
                if size > limit:
                    raise too_large(limit)
                kept.append(piece)
                if not piece and not rest and not member.eof:
                    raise RequestError("The gzip body ends before it is whole.", "Send it again.", status=400)
            rest = member.unused_data
    except zlib.error:
        raise RequestError(
            "The body is not gzip, although Content-Encoding says so.",
            "Compress it with gzip, or drop the header.",
        ) from None
    return b"".join(kept)
