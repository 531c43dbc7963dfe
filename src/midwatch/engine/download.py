"""Bytes from a URL to a file that is whole, checked, and there for good: resumable, hashed, renamed into place.

A download grows in `<name>.<first hex of its hash>.part`, so that a later run continues the same bytes and no others.
Only when the SHA-256 of the whole file agrees is it flushed to the disk and renamed; nothing else gets its final name.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from midwatch.errors import DownloadError

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, the bytes done, and the bytes in all where known."""

CHUNK_BYTES = 1 << 20
SOCKET_TIMEOUT_S = 60.0
FRUITLESS_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Link:
    """Where a file is, and what it must hash to.

    `ca_file` is a bundle of certificates to trust besides the system's; `insecure_tls` accepts any certificate, for a
    host that the user's pip already trusts so (the hash still guards the bytes).
    """

    url: str
    sha256: str
    ca_file: str | None = None
    insecure_tls: bool = False


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a download needs from the outside, passed in so that a test can bring its own."""

    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    pause: Callable[[float], None] = time.sleep
    progress: Progress = lambda what, done, total: None


def fetch(link: Link, target: Path, tools: Tools, *, spare_bytes: int = 0) -> Path:
    """Bring `link` to `target` and return it. Continues an earlier run; a lost connection is taken up again.

    `spare_bytes` must stay free on the disk besides the file itself. Raises `DownloadError` for an absent network, a
    host that refuses, a full disk or a wrong hash (the wrong bytes are deleted).
    """
    part = target.with_name(f"{target.name}.{link.sha256[:12]}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with disk_errors(target.parent):
                _continue(link, part, tools, spare_bytes)
            break
        except urllib.error.HTTPError as error:
            raise _refused(link, error) from None
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
            if isinstance(reason := getattr(error, "reason", None), ssl.SSLCertVerificationError):
                raise _refused(link, reason) from None
            after = part.stat().st_size if part.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless >= FRUITLESS_ATTEMPTS:
                raise DownloadError(
                    f"{_host(link)} cannot be reached or keeps hanging up ({getattr(error, 'reason', error)!s:.200}).",
                    "Check the network and run the same command again; it continues where it stopped.",
                ) from None
            if fruitless:
                tools.pause(2.0 ** (fruitless - 1))
    found = sha256_of(part, tools)
    if found != link.sha256:
        part.unlink()
        raise DownloadError(
            f"{target.name} has SHA-256 {found}, but {link.sha256} was expected; the file is deleted.",
            "Run the command again; if the hash differs again, the mirror should not be trusted.",
        )
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    rename_durably(part, target)
    return target


def rename_durably(part: Path, target: Path) -> None:
    """Give a finished, flushed file its final name, and flush the folder so that the name survives a power cut."""
    part.replace(target)
    if sys.platform != "win32":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256_of(path: Path, tools: Tools) -> str:
    """SHA-256 of a whole file, hexadecimal."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            tools.progress("checking", done, total)
    return digest.hexdigest()


def need_space(folder: Path, needed_bytes: int, tools: Tools) -> None:
    """Raise `DownloadError` when `folder` has less free space than `needed_bytes`."""
    free = tools.free_bytes(folder)
    if free < needed_bytes:
        raise DownloadError(
            f"{folder} has {free / 1e6:.0f} MB free, and {needed_bytes / 1e6:.0f} MB are needed.",
            "Free some space, or set MIDWATCH_CACHE_DIR to a folder on a larger disk.",
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a disk that is full, over quota, or not to be written to into a `DownloadError` that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DownloadError(
                f"The disk of {folder} became full while writing.",
                "Free some space, or set MIDWATCH_CACHE_DIR to a folder on a larger disk, and run the command again; "
                "it continues where it stopped.",
            ) from None
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}:
            raise DownloadError(
                f"{folder} cannot be written to ({error.strerror}).",
                "Set MIDWATCH_CACHE_DIR to a folder that you own.",
            ) from None
        raise


@contextmanager
def only_one(lock_file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `lock_file` against other processes; wait, after calling `on_wait`, while another one holds it.

    The lock is the operating system's, so it ends with the process that held it, however that process ended.
    """
    with disk_errors(lock_file.parent):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        stream = lock_file.open("a+b")
    with stream:
        if not _try_lock(stream, wait=False):
            on_wait()
            while not _try_lock(stream, wait=True):
                pass
        yield


def _continue(link: Link, part: Path, tools: Tools, spare_bytes: int) -> None:
    """Append what is missing to `part`. Raises `ConnectionError` when the stream ends before the file is whole."""
    done = part.stat().st_size if part.exists() else 0
    if (local := _local_path(link)) is not None:
        _copy_local(local, part, tools, spare_bytes)
        return
    request = urllib.request.Request(link.url, headers={"Accept-Encoding": "identity"})  # noqa: S310 - scheme checked
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=SOCKET_TIMEOUT_S, context=_tls(link))  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:  # nothing lies beyond what we have: the hash tells whether it is whole
            return
        if error.code in {408, 425, 429, 500, 502, 503, 504}:
            raise ConnectionError(f"HTTP {error.code}") from None
        raise
    with response:
        start = _start_of(response)
        if start not in {0, done}:
            part.unlink(missing_ok=True)
            raise ConnectionError("the host sent another range than was asked for")
        done = start  # 0 where the host ignored the range: begin again
        length = response.headers.get("Content-Length")
        total = done + int(length) if length and length.isdigit() else None
        need_space(part.parent, (total - done if total is not None else 0) + spare_bytes, tools)
        with part.open("r+b" if done else "wb") as stream:
            stream.seek(done)
            while chunk := response.read(CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                tools.progress("downloading", done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection was lost after {done} of {total} bytes")


def _start_of(response: http.client.HTTPResponse) -> int:
    """First byte that a response carries: 0 for a whole file, the range's start for a part of one."""
    if response.status != 206:
        return 0
    unit, _, span = (response.headers.get("Content-Range") or "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _copy_local(source: Path, part: Path, tools: Tools, spare_bytes: int) -> None:
    try:
        total = source.stat().st_size
        stream_in = source.open("rb")
    except OSError as error:
        raise DownloadError(
            f"{source} cannot be read ({error.strerror}).", "Check the index in your pip settings."
        ) from None
    need_space(part.parent, total + spare_bytes, tools)
    with stream_in, part.open("wb") as stream_out:
        while chunk := stream_in.read(CHUNK_BYTES):
            stream_out.write(chunk)
            tools.progress("copying", stream_out.tell(), total)


def _local_path(link: Link) -> Path | None:
    parts = urlsplit(link.url)
    if parts.scheme in {"http", "https"}:
        return None
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    raise DownloadError(
        f"Files cannot be fetched over {parts.scheme or 'no'} URLs.", "Use an index with http, https or file URLs."
    )


def _tls(link: Link) -> ssl.SSLContext | None:
    if urlsplit(link.url).scheme != "https":
        return None
    context = ssl.create_default_context()
    if link.ca_file:
        try:
            location = Path(link.ca_file).expanduser()
            context.load_verify_locations(**{"capath" if location.is_dir() else "cafile": str(location)})
        except OSError as error:
            raise DownloadError(
                f"The certificate bundle {link.ca_file} of your pip settings cannot be read ({error}).",
                "Correct `cert` in your pip settings.",
            ) from None
    if link.insecure_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refused(link: Link, error: urllib.error.HTTPError | ssl.SSLCertVerificationError) -> DownloadError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return DownloadError(
            f"The certificate of {_host(link)} is not trusted here ({error.verify_message}).",
            "Name your organisation's bundle with `pip config set global.cert FILE`; it is honoured here too.",
        )
    next_step = {
        401: "The index wants a login that pip does not pass on: fetch the file yourself and give its path.",
        403: "The index forbids it: ask who runs it, or fetch the file yourself and give its path.",
        404: "Check the name, or that your package index still has the file.",
    }.get(error.code, "Try again later.")
    return DownloadError(f"{_host(link)} answered {error.code} {error.reason}.", next_step)


def _host(link: Link) -> str:
    return urlsplit(link.url).hostname or "the index"


if sys.platform == "win32":
    import msvcrt

    def _try_lock(stream: IO[Any], *, wait: bool) -> bool:
        try:
            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(stream: IO[Any], *, wait: bool) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
