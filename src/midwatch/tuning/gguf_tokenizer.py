"""The tokenizer of a Hugging Face folder as the metadata that a GGUF file keeps it in.

llama.cpp splits words by a name (`tokenizer.ggml.pre`) and not by the pattern in `tokenizer.json`. A folder that
Midwatch converted remembers its name; in any other the pattern is recognised, or the folder is refused: under a wrong
name a model would read other tokens than it was taught, and nobody would be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.engine.safetensors_checkpoint import read_json
from midwatch.engine.tokenizer_json import from_folder
from midwatch.engine.vocabulary import CONTROL, NORMAL, PATTERNS, USER_DEFINED, Vocabulary
from midwatch.errors import TuningError
from midwatch.tuning.model_folder import provenance_of

UNUSED = 5
_IDS = {"unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


@dataclass(frozen=True, kw_only=True)
class GGUFTokenizer:
    """`tokens`, their types and the merges, in GGUF's spelling; `metadata` is every other key, whole."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    metadata: dict[str, str | int | bool]


def read_tokenizer(folder: Path) -> GGUFTokenizer:
    """Read a folder's tokenizer. Raises `TuningError` for one whose way to split words has no name that is known."""
    vocabulary, found = from_folder(folder), read_json(folder / "tokenizer.json")
    kept = provenance_of(folder).get("tokenizer", {})
    return GGUFTokenizer(
        tokens=vocabulary.tokens,
        types=_types(vocabulary, found, kept.get("token_types", {})),
        merges=[item if isinstance(item, str) else " ".join(item) for item in found["model"]["merges"]],
        metadata={**_metadata(folder, vocabulary, found), **kept.get("metadata", {}), **_template(vocabulary)},
    )


def _types(vocabulary: Vocabulary, found: dict[str, Any], kept: dict[str, list[int]]) -> list[int]:
    """The type of every token: as the source had them, or control, user-defined and unused by what the folder says."""
    types = [NORMAL] * len(vocabulary.tokens)
    by_type = {int(kind): ids for kind, ids in kept.items()}
    if not by_type:
        named = set(vocabulary.special_ids.values())
        added = {item["id"]: bool(item.get("special")) for item in found.get("added_tokens") or []}
        by_type = {
            CONTROL: [index for index, special in added.items() if special],
            USER_DEFINED: [index for index, special in added.items() if not special],
            UNUSED: list(vocabulary.control_ids - named - added.keys()),
        }
    for kind, ids in by_type.items():
        for index in ids:
            if index < len(types):
                types[index] = kind
    return types


def _metadata(folder: Path, vocabulary: Vocabulary, found: dict[str, Any]) -> dict[str, str | int | bool]:
    eos = vocabulary.special_ids.get(vocabulary.eos_name, min(vocabulary.eos_ids))
    metadata: dict[str, str | int | bool] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split_name(found, folder),
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.add_bos_token": vocabulary.adds_bos,
    }
    if vocabulary.bos_id is not None:
        metadata["tokenizer.ggml.bos_token_id"] = vocabulary.bos_id
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    for name, key in _IDS.items():
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in vocabulary.special_ids:
            metadata[f"tokenizer.ggml.{key}"] = vocabulary.special_ids[token]
    return metadata


def _template(vocabulary: Vocabulary) -> dict[str, str]:
    return {"tokenizer.chat_template": vocabulary.template} if isinstance(vocabulary.template, str) else {}


def split_name(found: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for the way in which a `tokenizer.json` splits words."""
    outer = found.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers") or [outer]
    normalizer = (found.get("normalizer") or {}).get("type")
    last = steps[-1]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and normalizer in (None, "NFC"):
        whole_words = bool(found["model"].get("ignore_merges"))
        kinds, by_regex = [step.get("type") for step in steps[:-1]], last.get("use_regex", True)
        if kinds == [] and by_regex and not normalizer:
            return "gpt-2"
        if kinds == ["Digits"] and steps[0].get("individual_digits") and by_regex and not normalizer:
            return "smollm"
        if kinds == ["Split"] and not by_regex and steps[0].get("behavior") == "Isolated":
            pattern = steps[0].get("pattern", {}).get("Regex")
            if pattern == PATTERNS["llama-bpe"] and whole_words and not normalizer:
                return "llama-bpe"
            if pattern == PATTERNS["qwen2"] and not whole_words:
                return "qwen2"
    raise TuningError(
        f"{folder / 'tokenizer.json'} splits words in a way that is none of smollm, gpt-2, llama-bpe and qwen2, so "
        "llama.cpp would read other tokens than the model was taught.",
        "Export a model with one of these tokenizers.",
    )
